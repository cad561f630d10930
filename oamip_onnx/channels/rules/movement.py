"""Movement rules: the node is run once on labels, and each output cell's label is read off."""

import numpy as np
import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import FIXED, NOTHING, IntArray, axes_of, collapse
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.rules.shape_values import check_target, concat_sizes, copies, moves_sizes
from oamip_onnx.channels.trace import Sizes, Trace, node_label
from oamip_onnx.errors import ModelError
from oamip_onnx.model import Array, attribute, int_attribute, ints_attribute, run_node


def run_on(node: onnx.NodeProto, operands: list[Array | None], opset: int) -> list[Array]:
    """Return the outputs of one node of the standard domain; None stands for an absent operand.

    Raises
    ------
    ModelError
        If the reference evaluator refuses the node.
    """
    results = run_node(node, operands, opset)
    if results is None:
        raise ModelError(f"The node {node.op_type} {node.name!r} cannot be evaluated; its parameters do not fit.")
    return results


def _full(factor: IntArray, shape: tuple[int, ...]) -> IntArray:
    return np.broadcast_to(factor, shape)


@rule(["Reshape", "Flatten", "Squeeze", "Unsqueeze"], Family.MOVEMENT)
def reshape(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Lay the labels out in the output's shape."""
    data, out = node.input[0], node.output[0]
    if moves_sizes(trace, node, lambda sizes: sizes.reshape(trace.shape(out))):
        return
    before, after = trace.shape(data), trace.shape(out)
    factors = [collapse(_full(f, before).reshape(after)) for f in trace.of(data).factors]
    trace.set(out, factors)
    if node.op_type == "Reshape":
        check_target(trace, index, node, 1)


@rule("ConstantOfShape", Family.MOVEMENT)
def filled(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Fill a tensor with one value: it can be narrowed along every axis whose size does not depend on dynamic ones."""
    trace.set(node.output[0], copies(trace, node.input[0], trace.shape(node.output[0])))
    check_target(trace, index, node, 0)


@rule("Expand", Family.MOVEMENT)
def expand(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Broadcast to a target: labels pass, and copies along a new axis can go freely."""
    data, target, out = node.input[0], node.input[1], node.output[0]
    shape, before = trace.shape(out), trace.shape(data)
    if moves_sizes(trace, node, lambda sizes: np.broadcast_to(sizes, shape)):
        return
    offset = len(shape) - len(before)
    factors = [f.reshape((1,) * offset + f.shape) for f in trace.of(data).factors]
    long = [a + offset for a, size in enumerate(before) if size > 1]
    trace.set(out, [*factors, *copies(trace, target, shape, long)])
    check_target(trace, index, node, 1)


@rule("Transpose", Family.MOVEMENT)
def transpose(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Permute the axes."""
    del index
    data = node.input[0]
    order = ints_attribute(node, "perm") or list(range(len(trace.shape(data))))[::-1]
    trace.set(node.output[0], [np.transpose(f, order) for f in trace.of(data).factors])


@rule("Concat", Family.MOVEMENT)
def concat(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Lay labels one behind the other along the axis; along all others the operands are joined."""
    out = node.output[0]
    if concat_sizes(trace, node):
        return
    shape = trace.shape(out)
    axis = int_attribute(node, "axis", 1) % len(shape)
    where = node_label(trace, index, node)
    pin = Pin(out, PinCode.FIXED_AXIS, f"{where} puts these channels beside others that cannot be removed.")
    across: list[IntArray] = []
    laid: list[list[IntArray]] = []
    for position, name in enumerate(node.input):
        labels = trace.of(name)
        others = [f for f in labels.factors if f.shape[axis] == 1]
        laid.append([f for f in labels.factors if f.shape[axis] > 1])
        covered = [f for f in across if any(axes_of(f) & axes_of(g) for g in others)]
        uncovered = [g for g in others if not any(axes_of(f) & axes_of(g) for f in across)]
        for known in across:
            for factor in others:
                if axes_of(known) & axes_of(factor):
                    trace.join(known, factor, pin)
            if not any(known is c for c in covered):
                trace.pin(known.ravel(), pin)
        if position:
            for factor in uncovered:
                trace.pin(factor.ravel(), pin)
        else:
            across = others
    trace.set(out, [*across, *_laid_out(trace, node, axis, laid)])


def _laid_out(trace: Trace, node: onnx.NodeProto, axis: int, laid: list[list[IntArray]]) -> list[IntArray]:
    """Return the factor over the concatenated axis, over as many axes as any operand's needs."""
    if not any(laid):
        return []
    rank = len(trace.shape(node.output[0]))
    sizes = [max((f.shape[a] for fs in laid for f in fs), default=1) for a in range(rank)]
    parts = []
    for name, factors in zip(node.input, laid, strict=True):
        shape = [trace.shape(name)[a] if a == axis else sizes[a] for a in range(rank)]
        # Two factors over one axis (a part inside a split of it) are more than this can lay out: the others stay.
        for crossing in factors[1:]:
            reason = f"These channels cross others that {node.op_type} lays out along one axis."
            trace.pin(crossing.ravel(), Pin(name, PinCode.MOVEMENT, reason))
        factor = factors[0] if factors else NOTHING
        parts.append(np.broadcast_to(factor, shape))
    return [np.concatenate(parts, axis=axis)]


@rule(["Split", "Slice", "Tile", "Pad", "DepthToSpace", "SpaceToDepth"], Family.MOVEMENT)
def rearrange(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Run the node on the labels of its first operand; new cells (padding) are fixed."""
    data = node.input[0]
    opset = trace.model.opsets[""]
    constants = [trace.constant(name) for name in node.input[1:]]
    if any(value is None and name for value, name in zip(constants, node.input[1:], strict=True)):
        _changed_axes_stay(trace, index, node)
        return
    parameters: list[Array | None] = [None if v is None else np.asarray(v) for v in constants]
    if node.op_type == "Pad" and len(parameters) > 1:
        parameters[1] = None  # labels are filled with zeros, whatever the data are
    if moves_sizes(trace, node, lambda sizes: run_on(node, [sizes, *parameters], opset)[0]):
        return
    _pin_irregular(trace, index, node)
    moved: list[list[IntArray]] = [[] for _ in node.output]
    moving = _moving_axes(trace, node)
    for factor in trace.of(data).factors:
        if not axes_of(factor) & moving:
            for collected in moved:
                collected.append(factor)
            continue
        # Shifted by one, so that the zeros of padding come back as FIXED.
        results = run_on(node, [_full(factor, trace.shape(data)) + 1, *parameters], opset)
        for collected, result in zip(moved, results, strict=True):
            collected.append(collapse(np.asarray(result, dtype=np.int64) - 1))
    for name, factors in zip(node.output, moved, strict=True):
        trace.set(name, factors)


def _pin_irregular(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pin axes along which the cells that arrive depend on how many there are."""
    where = node_label(trace, index, node)
    if node.op_type == "Pad" and attribute(node, "mode", "constant") != "constant":
        axes = _changed_axes(trace, node)
        trace.pin_tensor(node.input[0], PinCode.MOVEMENT, f"{where} mirrors along this axis.", axes=axes)
    if node.op_type == "Slice":
        axes = _strided(trace, node)
        trace.pin_tensor(node.input[0], PinCode.MOVEMENT, f"{where} skips cells along this axis.", axes=axes)


def _moving_axes(trace: Trace, node: onnx.NodeProto) -> set[int]:
    """Return the axes along which cells move; along all others a factor passes as it is."""
    rank = len(trace.shape(node.input[0]))
    if node.op_type in {"DepthToSpace", "SpaceToDepth"}:
        return set(range(rank))
    if node.op_type == "Split":
        return {int_attribute(node, "axis", 0) % rank}
    if node.op_type == "Slice":
        axes = trace.constant(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        listed = ints_attribute(node, "axes") if axes is None else [int(a) for a in axes.ravel()]
        return set(range(rank)) if listed is None else {a % rank for a in listed}
    return _changed_axes(trace, node)


def _strided(trace: Trace, node: onnx.NodeProto) -> set[int]:
    """Return the axes of a Slice whose step is neither 1 nor -1: what it picks depends on what went before."""
    steps = trace.constant(node.input[4]) if len(node.input) > 4 else None
    if steps is None:
        return set()
    axes = trace.constant(node.input[3]) if node.input[3] else None
    chosen = np.arange(steps.size) if axes is None else axes.ravel()
    rank = len(trace.shape(node.input[0]))
    return {int(a) % rank for a, step in zip(chosen, steps.ravel(), strict=True) if abs(int(step)) > 1}


def _changed_axes(trace: Trace, node: onnx.NodeProto) -> set[int]:
    before, after = trace.shape(node.input[0]), trace.shape(node.output[0])
    return {a for a, (b, c) in enumerate(zip(before, after, strict=True)) if b != c}


def _changed_axes_stay(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Follow a movement by computed parameters: labels pass along axes that it provably leaves alone."""
    data = node.input[0]
    where = node_label(trace, index, node)
    rank = len(trace.shape(data))
    axes = set(range(rank))
    if node.op_type == "Split":
        axes = {int_attribute(node, "axis", 0) % rank}
    elif node.op_type == "Slice":
        chosen = [trace.constant(name) for name in node.input[3:4] if name]
        axes = {int(a) % rank for c in chosen if c is not None for a in c.ravel()} or axes
    elif node.op_type in {"Pad", "Tile"}:
        axes = {a for a in range(rank) if not _is_left_alone(trace, node, a, rank)}
    if moves_sizes(trace, node, None):
        return
    trace.pin_tensor(data, PinCode.SHAPE_VALUE, f"{where} takes its parameters from the graph.", axes=axes)
    factors = [f for f in trace.of(data).factors if all(f.shape[a] == 1 for a in axes)]
    for name in node.output:
        trace.set(name, factors)


def _is_left_alone(trace: Trace, node: onnx.NodeProto, axis: int, rank: int) -> bool:
    """Return whether the computed pads or repeats of an axis are known to be none."""
    known = trace.known.get(node.input[1])
    if known is None or len(node.input) > 3:
        return False
    if node.op_type == "Tile":
        return bool(known.known[axis]) and int(known.values[axis]) == 1
    both = [axis, axis + rank]
    return bool(known.known[both].all()) and not bool(known.values[both].any())


@rule("Gather", Family.MOVEMENT)
def gather(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pick cells along an axis: by constant indices anything moves, by computed ones (embeddings) the axis stays."""
    data, chosen, out = node.input[0], node.input[1], node.output[0]
    shape = trace.shape(data)
    axis = int_attribute(node, "axis", 0) % len(shape)
    indices = trace.constant(chosen)
    if indices is not None:
        if moves_sizes(trace, node, lambda sizes: np.take(sizes, indices.astype(np.int64), axis=axis)):
            return
        if indices.ndim > 1:
            where = node_label(trace, index, node)
            trace.pin_tensor(data, PinCode.MOVEMENT, f"{where} spreads this axis over several.", axes=[axis])
        results = []
        for factor in trace.of(data).factors:
            opened = [shape[a] if a == axis else factor.shape[a] for a in range(len(shape))]
            results.append(np.take(np.broadcast_to(factor, opened), indices.astype(np.int64), axis=axis))
        trace.set(out, results)
        return
    where = node_label(trace, index, node)
    trace.pin_tensor(data, PinCode.FIXED_AXIS, f"{where} looks rows up along this axis.", axes=[axis])
    trace.pin_tensor(chosen, PinCode.UNSUPPORTED_CASE, f"{where} uses it as indices.")
    if trace.is_parameter(data):
        trace.contracted.append(out)  # an embedding makes channels as a contraction does
    between = (1,) * len(trace.shape(chosen))
    rest = [f for f in trace.of(data).factors if f.shape[axis] == 1]
    trace.set(out, [f.reshape(f.shape[:axis] + between + f.shape[axis + 1 :]) for f in rest])


@rule("Shape", Family.MOVEMENT)
def shape_of(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Say which axis each element of the output measures, where that axis can shrink."""
    del index
    data, out = node.input[0], node.output[0]
    labels = trace.of(data)
    rank = len(labels.shape)
    measured = np.full(rank, FIXED, dtype=np.int64)
    factors: list[IntArray] = []
    for axis in range(rank):
        factor = labels.factor_over(axis)
        if factor is not None:
            measured[axis] = len(factors)
            factors.append(factor)
    part = slice(int_attribute(node, "start", 0), int_attribute(node, "end", rank))
    trace.sizes[out] = Sizes(measured[part], tuple(factors))
    trace.set(out, [])
