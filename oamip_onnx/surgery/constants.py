"""Shape constants after removal: what Reshape, Split, Slice, … need to be told when channels have gone.

Each rewriter takes the node before removal and the shapes and kept indices around it, and returns the new values of
the operands (or, in old opsets, attributes) that name sizes or positions. Entries that still hold stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from oamip_onnx.channels import BoolArray, ChannelAnalysis, Labels, kept_indices, kept_shape, lookup
from oamip_onnx.model import Array, Model, int_attribute, ints_attribute


@dataclass(frozen=True)
class Rewrite:
    """New values of a node's constant operands by position, and of its integer attributes by name; None removes one."""

    operands: Mapping[int, Array]
    attributes: Mapping[str, int | list[int] | None]


@dataclass(frozen=True)
class Around:
    """A node and what removal does around it."""

    model: Model
    analysis: ChannelAnalysis
    kept: BoolArray
    node: onnx.NodeProto

    def labels(self, name: str) -> Labels:
        """Return the labels of a tensor; none where it was not traced."""
        return self.analysis.labels.get(name) or Labels(self.analysis.types[name].shape)

    def after(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor after removal."""
        return kept_shape(self.labels(name), self.kept)

    def before(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor before removal."""
        return self.analysis.types[name].shape

    def indices(self, name: str, axis: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return which indices along an axis stay."""
        found = kept_indices(self.labels(name), self.kept)
        return found.get(axis, np.arange(self.before(name)[axis]))

    def constant(self, operand: int) -> Array | None:
        """Return the values of a constant operand, None where it is absent or computed."""
        if operand >= len(self.node.input) or not self.node.input[operand]:
            return None
        name = self.node.input[operand]
        return self.model.array(name) if self.model.is_constant(name) else None


Rewriter = Callable[[Around], Rewrite]

NO_CHANGE = Rewrite({}, {})


def _convolution(around: Around) -> Rewrite:
    """Blocks that went as wholes leave fewer groups; a depthwise convolution has as many as channels."""
    group = int_attribute(around.node, "group", 1)
    if group == 1:
        return NO_CHANGE
    weight = around.after(around.node.input[1])
    counted = around.node.output[0] if around.node.op_type == "ConvTranspose" else around.node.input[0]
    after = around.after(counted)[1] // max(weight[1], 1)
    return NO_CHANGE if after == group else Rewrite({}, {"group": after})


def _recurrent(around: Around) -> Rewrite:
    return Rewrite({}, {"hidden_size": around.after(around.node.input[2])[2]})


def _group_normalisation(around: Around) -> Rewrite:
    """Whole blocks go, so that a block keeps its width."""
    groups = int_attribute(around.node, "num_groups", 1)
    before, after = (shape[1] for shape in (around.before(around.node.input[0]), around.after(around.node.input[0])))
    return Rewrite({}, {"num_groups": after * groups // before})


def _attention(around: Around) -> Rewrite:
    """Heads are counted by attributes where they are not an axis of their own."""
    changed: dict[str, int | list[int] | None] = {}
    for name, operand in (("q_num_heads", 0), ("kv_num_heads", 1)):
        heads = int_attribute(around.node, name, 0)
        data = around.node.input[operand]
        if heads and len(around.before(data)) == 3:
            changed[name] = around.after(data)[2] * heads // around.before(data)[2]
    return Rewrite({}, changed)


def _sizes(around: Around, operand: int) -> Rewrite:
    """Replace the entries of a target shape that name a size which removal changed."""
    target = around.constant(operand)
    if target is None:
        return NO_CHANGE
    out = around.node.output[0]
    changed = [b != a for b, a in zip(around.before(out), around.after(out), strict=True)]
    offset = len(changed) - len(target)  # Expand may name fewer axes than the output has
    values = target.astype(np.int64).copy()
    for axis, has_changed in enumerate(changed):
        if has_changed and axis >= offset and values[axis - offset] > 1:
            values[axis - offset] = around.after(out)[axis]
    return NO_CHANGE if np.array_equal(values, target) else Rewrite({operand: values.astype(target.dtype)}, {})


def _reshape(around: Around) -> Rewrite:
    rewritten = _sizes(around, 1)
    target = rewritten.operands.get(1, around.constant(1))
    if target is None:
        return rewritten
    # A zero copies the size of the same input axis; where that is no longer the output's, it is named.
    data, out = around.node.input[0], around.node.output[0]
    values = target.copy()
    if not int_attribute(around.node, "allowzero", 0):
        for axis in np.flatnonzero(values == 0):
            if around.after(data)[axis] != around.after(out)[axis]:
                values[axis] = around.after(out)[axis]
    return rewritten if np.array_equal(values, target) else Rewrite({1: values}, {})


def _split(around: Around) -> Rewrite:
    axis = int_attribute(around.node, "axis", 0) % len(around.before(around.node.input[0]))
    before = [around.before(name)[axis] for name in around.node.output]
    after = [around.after(name)[axis] for name in around.node.output]
    if before == after:
        return NO_CHANGE
    if around.model.opsets[""] < 13:
        return Rewrite({}, {"split": after})
    # The parts are no longer equal, so that they are named instead of counted.
    counted = {"num_outputs": None} if int_attribute(around.node, "num_outputs", 0) else {}
    return Rewrite({1: np.array(after, dtype=np.int64)}, counted)


def _slice(around: Around) -> Rewrite:
    """Count how many kept indices lie before the old ones."""
    data, out = around.node.input[0], around.node.output[0]
    if around.model.opsets[""] < 10:
        starts, ends = ints_attribute(around.node, "starts") or [], ints_attribute(around.node, "ends") or []
        axes, steps = ints_attribute(around.node, "axes") or list(range(len(starts))), [1] * len(starts)
    else:
        starts, ends = _integers(around.constant(1), 0), _integers(around.constant(2), 0)
        axes = _integers(around.constant(3), len(starts), count_up=True)
        steps = _integers(around.constant(4), len(starts))
    rank = len(around.before(data))
    starts, ends = list(starts), list(ends)
    for i, axis in enumerate(a % rank for a in axes):
        size = around.before(data)[axis]
        kept = around.indices(data, axis)
        chosen = np.arange(size)[slice(*_bounds(starts[i], ends[i], steps[i], size))]
        if len(kept) == size:
            continue
        positions = np.flatnonzero(np.isin(kept, chosen))
        if len(positions) != around.after(out)[axis]:
            raise ValueError(f"A slice with step {steps[i]} cannot be narrowed.")
        if steps[i] == 1:
            starts[i], ends[i] = (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (0, 0)
        else:
            starts[i], ends[i] = int(positions[-1]), int(positions[0]) - 1 if positions[0] else -(2**31)
    if around.model.opsets[""] < 10:
        return Rewrite({}, {"starts": starts, "ends": ends})
    dtype = np.asarray(around.constant(1)).dtype
    return Rewrite({1: np.array(starts, dtype=dtype), 2: np.array(ends, dtype=dtype)}, {})


def _integers(values: Array | None, count: int, *, count_up: bool = False) -> list[int]:
    if values is None:
        return list(range(count)) if count_up else [1] * count
    return [int(v) for v in values.ravel()]


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int | None, int | None, int]:
    """Return ONNX slice bounds as Python's: ends past the start of the axis mean "to the very beginning"."""
    if step < 0:
        first = min(start, size - 1) if start >= 0 else start
        last = None if end < -size else end
        return first, last, step
    return start, end, step


def _gather(around: Around) -> Rewrite:
    indices = around.constant(1)
    data, out = around.node.input[0], around.node.output[0]
    axis = int_attribute(around.node, "axis", 0) % len(around.before(data))
    kept = around.indices(data, axis)
    size = around.before(data)[axis]
    if indices is None or len(kept) == size:
        return NO_CHANGE
    if indices.ndim > 1:
        raise ValueError("A gather with indices of several axes cannot be narrowed.")
    position = np.full(size, -1, dtype=np.int64)
    position[kept] = np.arange(len(kept))
    moved = position[indices.astype(np.int64).ravel() % size]
    if indices.ndim == 0:
        return Rewrite({1: np.asarray(moved[0], dtype=indices.dtype)}, {})
    stays = around.indices(out, axis)
    return Rewrite({1: moved[stays].astype(indices.dtype)}, {})


REWRITERS: Mapping[str, Rewriter] = {
    "Attention": _attention,
    "ConstantOfShape": partial(_sizes, operand=0),
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Expand": partial(_sizes, operand=1),
    "FusedConv": _convolution,
    "GRU": _recurrent,
    "Gather": _gather,
    "GroupNormalization": _group_normalisation,
    "LSTM": _recurrent,
    "RNN": _recurrent,
    "Reshape": _reshape,
    "Resize": partial(_sizes, operand=3),
    "Slice": _slice,
    "Split": _split,
}


def rewrite(model: Model, analysis: ChannelAnalysis, kept: BoolArray, node: onnx.NodeProto) -> Rewrite:
    """Return what must change in a node so that it works on the narrower tensors."""
    rewriter = REWRITERS.get(node.op_type) if node.domain in {"", "ai.onnx", "com.microsoft"} else None
    return NO_CHANGE if rewriter is None else rewriter(Around(model, analysis, kept, node))


def touches(analysis: ChannelAnalysis, names: Sequence[str], kept: BoolArray) -> bool:
    """Return whether any of these tensors loses cells."""
    return any(
        not bool(lookup(kept, factor).all())
        for name in names
        if name in analysis.labels
        for factor in analysis.labels[name].factors
    )
