"""Operators that work along some axes and leave the others alone: labels on their axes are pinned, others pass."""

import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import axes_of
from oamip_onnx.channels.rules.pinned import pin_all
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, node_label
from oamip_onnx.model import int_attribute, ints_attribute


def pass_other_axes(trace: Trace, node: onnx.NodeProto, axes: set[int], code: PinCode, reason: str) -> None:
    """Pin the first operand's labels along the axes; pass the rest on to every output of its rank."""
    data = node.input[0]
    trace.pin_tensor(data, code, reason, axes=axes)
    factors = [f for f in trace.of(data).factors if not axes_of(f) & axes]
    for name in node.output:
        if name:
            trace.set(name, factors if len(trace.shape(name)) == len(trace.shape(data)) else [])


@rule(["CumSum", "CumProd"], Family.REDUCTION)
def cumulative(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Accumulate along one axis, given as a constant operand."""
    axis = trace.constant(node.input[1])
    where = node_label(trace, index, node)
    if axis is None:
        pin_all(trace, node, PinCode.SHAPE_VALUE, f"{where} takes its axis from the graph.")
        return
    chosen = {int(axis.ravel()[0]) % len(trace.shape(node.input[0]))}
    pass_other_axes(trace, node, chosen, PinCode.NORMALISATION, f"{where} accumulates along this axis.")


@rule("TopK", Family.REDUCTION)
def largest(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Sort along one axis."""
    axis = int_attribute(node, "axis", -1) % len(trace.shape(node.input[0]))
    where = node_label(trace, index, node)
    pass_other_axes(trace, node, {axis}, PinCode.NORMALISATION, f"{where} sorts along this axis.")


@rule("Trilu", Family.MOVEMENT)
def triangle(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Zero a triangle of the last two axes."""
    rank = len(trace.shape(node.input[0]))
    where = node_label(trace, index, node)
    pass_other_axes(trace, node, {rank - 2, rank - 1}, PinCode.MOVEMENT, f"{where} zeroes by position on this axis.")


@rule("ReverseSequence", Family.MOVEMENT)
def reverse(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Reverse along the time axis, by lengths along the batch axis."""
    axes = {int_attribute(node, "time_axis", 0), int_attribute(node, "batch_axis", 1)}
    where = node_label(trace, index, node)
    pass_other_axes(trace, node, axes, PinCode.MOVEMENT, f"{where} reverses along this axis.")


@rule("CenterCropPad", Family.MOVEMENT)
def crop_or_pad(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Crop or pad the axes given; all without them."""
    rank = len(trace.shape(node.input[0]))
    axes = ints_attribute(node, "axes")
    chosen = set(range(rank)) if axes is None else {a % rank for a in axes}
    where = node_label(trace, index, node)
    pass_other_axes(trace, node, chosen, PinCode.MOVEMENT, f"{where} crops or pads this axis.")


@rule(["GridSample", "RoiAlign", "MaxRoiPool"], Family.REDUCTION)
def sampled_planes(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Sample each channel's plane at positions that come as an operand."""
    data = node.input[0]
    where = node_label(trace, index, node)
    for name in node.input[1:]:
        if name:
            trace.pin_tensor(name, PinCode.FIXED_AXIS, f"{where} reads positions from it.")
    axes = set(range(len(trace.shape(data)))) - {1}
    pass_other_axes(trace, node, axes, PinCode.FIXED_AXIS, f"{where} samples along this axis.")


@rule("RotaryEmbedding", Family.MOVEMENT, since=23)
def rotary_embedding(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Turn pairs of a head's cells: of (batch, heads, sequence, width) whole heads pass; all else stays."""
    data = node.input[0]
    where = node_label(trace, index, node)
    for name in node.input[1:]:
        if name:
            trace.pin_tensor(name, PinCode.FIXED_AXIS, f"It is a table of {where}.")
    passing = []
    for factor in trace.of(data).factors:
        pin = Pin(data, PinCode.MOVEMENT, f"{where} mixes the cells of a head.")
        if factor.ndim == 4 and factor.shape[1] > 1 and trace.heads == "whole":
            passing.append(trace.tie(factor, axes_of(factor) - {1}, pin))
        else:
            trace.pin(factor.ravel(), pin)
    trace.set(node.output[0], passing)


@rule(["Constant", "Range"], Family.MOVEMENT)
def without_channels(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Make strings or sparse values (all other constants are initializers by now), or count up to a dynamic limit."""
    del index
    for name in node.output:
        if name in trace.types:
            trace.set(name, [])
