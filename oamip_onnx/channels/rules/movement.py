"""Movement rules: the node is run once on labels, and each output cell's label is read off.

Shape values are followed by the same run: the elements of a Shape output carry the axis that they measure, as long as
they only move until they reach the target of a Reshape or the like.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import FIXED, NOTHING, IntArray, collapse
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Sizes, Trace, node_label
from oamip_onnx.errors import ModelError
from oamip_onnx.model import attribute, int_attribute, ints_attribute


def run_on(node: onnx.NodeProto, operands: list[IntArray | None], opset: int) -> list[IntArray]:
    """Return the outputs of one node of the standard domain for integer operands; None stands for an absent one.

    Raises
    ------
    ModelError
        If the reference evaluator refuses the node.
    """
    feeds = {f"operand{i}": value for i, value in enumerate(operands) if value is not None}
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend("" if value is None else f"operand{i}" for i, value in enumerate(operands))
    function = onnx.helper.make_function(
        "oamip", "run", list(feeds), list(copy.output), [copy], [onnx.helper.make_opsetid("", opset)]
    )
    try:
        return [np.asarray(v) for v in ReferenceEvaluator(function).run(None, feeds, attributes={})]
    except Exception as error:
        raise ModelError(f"The node {node.op_type} {node.name!r} cannot be evaluated: {error}") from error


def _full(factor: IntArray, shape: tuple[int, ...]) -> IntArray:
    return np.broadcast_to(factor, shape)


@rule(["Reshape", "Flatten", "Squeeze", "Unsqueeze"], Family.MOVEMENT)
def reshape(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Lay the labels out in the output's shape."""
    data, out = node.input[0], node.output[0]
    if _moves_sizes(trace, node, lambda sizes: sizes.reshape(trace.shape(out))):
        return
    before, after = trace.shape(data), trace.shape(out)
    factors = [collapse(_full(f, before).reshape(after)) for f in trace.of(data).factors]
    trace.set(out, factors)
    if node.op_type == "Reshape":
        _check_target(trace, index, node)


def _check_target(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pin where a computed target counts channels that end up on another axis than the one they were counted on."""
    target, out = node.input[1], node.output[0]
    where = node_label(trace, index, node)
    if trace.model.is_constant(target):
        return
    sizes = trace.sizes.get(target)
    if sizes is None:
        # A target from elsewhere (an input, arithmetic) fixes the sizes that it names.
        trace.pin_tensor(out, PinCode.SHAPE_VALUE, f"{where} takes its target from the graph.")
        return
    labels = trace.of(out)
    for axis, (value, number) in enumerate(zip(sizes.values.ravel(), sizes.measured.ravel(), strict=True)):
        there = labels.factor_over(axis)
        if number != FIXED:
            counted = sizes.factors[number]
            if there is None or there.size != counted.size or not bool((there.ravel() == counted.ravel()).all()):
                reason = f"{where} computes its target from the number of channels."
                trace.pin(counted.ravel(), Pin(out, PinCode.SHAPE_VALUE, reason))
                trace.pin_tensor(out, PinCode.SHAPE_VALUE, reason)
        elif there is not None and value != -1:
            reason = f"{where} has a computed target that names the number of channels."
            trace.pin(there.ravel(), Pin(out, PinCode.SHAPE_VALUE, reason))


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
    if _concat_sizes(trace, node):
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
        covered = [f for f in across if any(_share(f, g) for g in others)]
        uncovered = [g for g in others if not any(_share(f, g) for f in across)]
        for known in across:
            for factor in others:
                if _share(known, factor):
                    trace.join(known, factor, pin)
            if known not in covered and not any(known is c for c in covered):
                trace.pin(known.ravel(), pin)
        if position:
            for factor in uncovered:
                trace.pin(factor.ravel(), pin)
        else:
            across = others
    trace.set(out, [*across, *_laid_out(trace, node, axis, laid)])


def _share(left: IntArray, right: IntArray) -> bool:
    return any(a > 1 and b > 1 for a, b in zip(left.shape, right.shape, strict=True))


def _laid_out(trace: Trace, node: onnx.NodeProto, axis: int, laid: list[list[IntArray]]) -> list[IntArray]:
    """Return the factor over the concatenated axis, over as many axes as any operand's needs."""
    if not any(laid):
        return []
    rank = len(trace.shape(node.output[0]))
    sizes = [max((f.shape[a] for fs in laid for f in fs), default=1) for a in range(rank)]
    parts = []
    for name, factors in zip(node.input, laid, strict=True):
        shape = [trace.shape(name)[a] if a == axis else sizes[a] for a in range(rank)]
        factor = factors[0] if factors else NOTHING
        parts.append(np.broadcast_to(factor, shape))
    return [np.concatenate(parts, axis=axis)]


@rule(["Split", "Slice", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth"], Family.MOVEMENT)
def rearrange(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Run the node on the labels of its first operand; new cells (padding) are fixed."""
    data = node.input[0]
    opset = trace.model.opsets[""]
    constants = [trace.constant(name) for name in node.input[1:]]
    where = node_label(trace, index, node)
    if any(value is None and name for value, name in zip(constants, node.input[1:], strict=True)):
        trace.pin_tensor(data, PinCode.SHAPE_VALUE, f"{where} takes its parameters from the graph.")
        for name in node.output:
            trace.set(name, [])
        return
    parameters: list[IntArray | None] = [None if v is None else np.asarray(v) for v in constants]
    if node.op_type == "Pad" and len(parameters) > 1:
        parameters[1] = None  # labels are filled with zeros, whatever the data are
    if _moves_sizes(trace, node, lambda sizes: run_on(node, [sizes, *parameters], opset)[0]):
        return
    if node.op_type == "Pad" and attribute(node, "mode", "constant") != "constant":
        changed = [
            a for a, (b, c) in enumerate(zip(trace.shape(data), trace.shape(node.output[0]), strict=True)) if b != c
        ]
        trace.pin_tensor(data, PinCode.MOVEMENT, f"{where} mirrors along this axis.", axes=changed)
    moved: list[list[IntArray]] = [[] for _ in node.output]
    for factor in trace.of(data).factors:
        # Shifted by one, so that the zeros of padding come back as FIXED.
        results = run_on(node, [_full(factor, trace.shape(data)) + 1, *parameters], opset)
        for collected, result in zip(moved, results, strict=True):
            collected.append(collapse(result - 1))
    for name, factors in zip(node.output, moved, strict=True):
        trace.set(name, factors)


@rule("Gather", Family.MOVEMENT)
def gather(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pick cells along an axis: by constant indices anything moves, by computed ones (embeddings) the axis stays."""
    data, chosen, out = node.input[0], node.input[1], node.output[0]
    shape = trace.shape(data)
    axis = int_attribute(node, "axis", 0) % len(shape)
    indices = trace.constant(chosen)
    if indices is not None:
        if _moves_sizes(trace, node, lambda sizes: np.take(sizes, indices.astype(np.int64), axis=axis)):
            return
        results = []
        for factor in trace.of(data).factors:
            opened = [shape[a] if a == axis else factor.shape[a] for a in range(len(shape))]
            results.append(np.take(np.broadcast_to(factor, opened), indices.astype(np.int64), axis=axis))
        trace.set(out, results)
        return
    where = node_label(trace, index, node)
    trace.pin_tensor(data, PinCode.FIXED_AXIS, f"{where} looks rows up along this axis.", axes=[axis])
    trace.pin_tensor(chosen, PinCode.UNSUPPORTED_CASE, f"{where} uses it as indices.")
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
    values = np.array(labels.shape, dtype=np.int64)
    trace.sizes[out] = Sizes(values[part], measured[part], tuple(factors))
    trace.set(out, [])


def _moves_sizes(trace: Trace, node: onnx.NodeProto, move: Callable[[IntArray], IntArray]) -> bool:
    """Carry measured sizes through a movement; return whether the operand holds any."""
    data = node.input[0]
    if data not in trace.sizes:
        return False
    sizes = trace.sizes[data]
    if len(node.output) > 1:
        for factor in sizes.factors:
            trace.pin(factor.ravel(), Pin(data, PinCode.SHAPE_VALUE, "The number of channels is split from a shape."))
        for name in node.output:
            trace.set(name, [])
        return True
    (out,) = node.output
    # Shifted by one, as labels are, so that padding comes back as FIXED.
    trace.sizes[out] = Sizes(move(sizes.values), move(sizes.measured + 1) - 1, sizes.factors)
    trace.set(out, [])
    return True


def _concat_sizes(trace: Trace, node: onnx.NodeProto) -> bool:
    """Lay measured sizes beside constant ones; a part of unknown value measures nothing and is no size."""
    if not any(name in trace.sizes for name in node.input):
        return False
    values, measured = [], []
    factors: tuple[IntArray, ...] = ()
    for name in node.input:
        sizes = trace.sizes.get(name)
        if sizes is None:
            constant = trace.constant(name)
            known = np.zeros(trace.shape(name)) if constant is None else constant
            sizes = Sizes(known.astype(np.int64), np.full(known.shape, FIXED, dtype=np.int64), ())
        values.append(sizes.values)
        measured.append(np.where(sizes.measured == FIXED, FIXED, sizes.measured + len(factors)))
        factors += sizes.factors
    out, axis = node.output[0], int_attribute(node, "axis", 0)
    trace.sizes[out] = Sizes(np.concatenate(values, axis=axis), np.concatenate(measured, axis=axis), factors)
    trace.set(out, [])
    return True
