"""Reductions and normalisations: removal along a reduced axis would change the statistic, so labels are pinned."""

import onnx

from oamip_onnx.channels.groups import PinCode
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, node_label
from oamip_onnx.model import int_attribute, ints_attribute

REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
).split()


@rule(REDUCTIONS, Family.REDUCTION)
def reduce(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Reduce over axes given as an attribute or, in newer opsets, as a constant operand."""
    data, out = node.input[0], node.output[0]
    rank = len(trace.shape(data))
    axes = ints_attribute(node, "axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        values = trace.constant(node.input[1])
        axes = None if values is None else [int(v) for v in values.ravel()]
        if values is None:
            axes = list(range(rank))
    if not axes:
        axes = [] if int_attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    reduced = {a % rank for a in axes}
    where = node_label(trace, index, node)
    trace.pin_tensor(data, PinCode.NORMALISATION, f"{where} takes a statistic over these channels.", axes=reduced)
    kept = [f for f in trace.of(data).factors if all(f.shape[a] == 1 for a in reduced)]
    if int_attribute(node, "keepdims", 1):
        trace.set(out, kept)
    else:
        shape = [a for a in range(rank) if a not in reduced]
        trace.set(out, [f.reshape([f.shape[a] for a in shape]) for f in kept])


@rule(["Softmax", "LogSoftmax", "Hardmax"], Family.REDUCTION, since=13)
def softmax(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise over one axis."""
    rank = len(trace.shape(node.input[0]))
    _normalise(trace, index, node, {int_attribute(node, "axis", -1) % rank})


@rule(["Softmax", "LogSoftmax", "Hardmax"], Family.REDUCTION, until=12)
def flattened_softmax(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise over all axes from the given one on, as before opset 13."""
    rank = len(trace.shape(node.input[0]))
    _normalise(trace, index, node, set(range(int_attribute(node, "axis", 1) % rank, rank)))


@rule("LayerNormalization", Family.REDUCTION)
def layer_normalisation(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise over all axes from the given one on."""
    rank = len(trace.shape(node.input[0]))
    _normalise(trace, index, node, set(range(int_attribute(node, "axis", -1) % rank, rank)))


def _normalise(trace: Trace, index: int, node: onnx.NodeProto, axes: set[int]) -> None:
    data = node.input[0]
    where = node_label(trace, index, node)
    trace.pin_tensor(data, PinCode.NORMALISATION, f"{where} normalises over these channels.", axes=axes)
    for parameter in node.input[1:]:
        if parameter:
            trace.pin_tensor(parameter, PinCode.NORMALISATION, f"It is a parameter of {where}.")
    trace.set(node.output[0], [f for f in trace.of(data).factors if all(f.shape[a] == 1 for a in axes)])
