"""Convolutions: the contracted axis is joined with the weight's and ends; the output axis starts at the weight.

A grouped convolution sees its weight as blocks: every block keeps equally many channels, or, where whole blocks are
one unit, blocks go and `group` is rewritten. A depthwise one passes its channels through.
"""

from dataclasses import dataclass

import numpy as np
import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import FIXED, NOTHING, IntArray, Labels, axes_of
from oamip_onnx.channels.rules.broadcast import join_operands
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Blocks, Trace, along, node_label
from oamip_onnx.errors import ModelError
from oamip_onnx.model import int_attribute


@dataclass(frozen=True)
class _Convolution:
    """One convolution with its operands' names."""

    index: int
    data: str
    weight: str
    bias: str
    out: str
    group: int
    transposed: bool
    where: str

    def is_depthwise(self, shape: tuple[int, ...]) -> bool:
        """Return whether every channel of the data has its own filters."""
        return shape[0] == self.group if self.transposed else shape[1] == 1


@rule(["Conv", "ConvTranspose"], Family.CONTRACTION)
@rule("FusedConv", Family.CONTRACTION, domain="com.microsoft")
def convolution(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Conv has the weight (out, in / group, …), ConvTranspose (in, out / group, …)."""
    where = node_label(trace, index, node)
    data, weight, bias, addend = (*node.input, "", "")[:4]
    group, transposed = int_attribute(node, "group", 1), node.op_type == "ConvTranspose"
    found = _Convolution(index, data, weight, bias, node.output[0], group, transposed, where)
    _check(trace, found)
    plane = range(2, len(trace.shape(found.data)))
    for axes in ((0,), plane):
        reason = f"{where} keeps samples apart." if axes == (0,) else f"{where} slides over this axis."
        trace.pin_tensor(found.data, PinCode.FIXED_AXIS, reason, axes=axes)
    if not trace.is_parameter(found.weight):
        trace.pin_tensor(found.data, PinCode.UNSUPPORTED_CASE, f"{where} takes its weight from the graph.")
        trace.pin_tensor(found.weight, PinCode.UNSUPPORTED_CASE, f"It is the computed weight of {where}.")
        trace.set(found.out, [])
        return
    _propagate(trace, found)
    if addend:  # FusedConv adds a tensor to the result
        trace.set(found.out, join_operands(trace, [found.out, addend], trace.shape(found.out), where))


def _check(trace: Trace, conv: _Convolution) -> None:
    """Raise where the operands do not fit each other; ONNX's shape inference does not compare them.

    Raises
    ------
    ModelError
        With the sizes expected and found.
    """
    channels, shape = trace.shape(conv.data)[1], trace.shape(conv.weight)
    if conv.group < 1 or shape[0] % conv.group:
        raise ModelError(f"{conv.where} has {conv.group} groups for a weight of shape {shape}.")
    expected = shape[0] if conv.transposed else shape[1] * conv.group
    if channels != expected:
        raise ModelError(f"{conv.where} reads {channels} channels; its weight of shape {shape} expects {expected}.")
    produced = shape[1] * conv.group if conv.transposed else shape[0]
    if conv.bias and trace.shape(conv.bias) != (produced,):
        raise ModelError(f"{conv.where} has a bias of shape {trace.shape(conv.bias)} for {produced} channels.")


def _propagate(trace: Trace, conv: _Convolution) -> None:
    channels = trace.single_axis(conv.data, 1)
    trace.contracted.append(conv.out)
    if conv.group == 1:
        produced = _dense(trace, conv, channels)
    elif conv.is_depthwise(trace.shape(conv.weight)):
        produced = _depthwise(trace, conv, channels)
    else:
        produced = _grouped(trace, conv, channels)
    if produced is None:
        trace.set(conv.out, [])
        return
    if conv.bias:
        bias = trace.of(conv.bias).factor_over(0)
        pin = Pin(conv.out, PinCode.FIXED_AXIS, f"The bias of {conv.where} cannot be narrowed.")
        trace.join(NOTHING if bias is None else bias, produced, pin)
    trace.set(conv.out, [along(produced, 1, len(trace.shape(conv.out)))])


def _end(trace: Trace, conv: _Convolution, channels: IntArray) -> None:
    trace.contract(conv.index, 0, along(channels, 1, len(trace.shape(conv.data))), 1)


def _weight_axis(trace: Trace, weight: str, axis: int) -> IntArray | None:
    """Return the labels along an axis of a weight; None where its size is 1."""
    factor = trace.of(weight).factor_over(axis)
    if factor is None:
        return None
    if len(axes_of(factor)) > 1:  # the weight is shared with a grouped convolution
        pin = Pin(weight, PinCode.UNSUPPORTED_CASE, f"The weight {weight!r} is shared.")
        return trace.tie(factor, axes_of(factor) - {axis}, pin).ravel()
    return factor.ravel()


def _dense(trace: Trace, conv: _Convolution, channels: IntArray | None) -> IntArray | None:
    entering, leaving = (0, 1) if conv.transposed else (1, 0)
    consumed = _weight_axis(trace, conv.weight, entering)
    pin = Pin(conv.data, PinCode.FIXED_AXIS, f"{conv.where} shares its weight with a consumer of fixed channels.")
    if consumed is not None:
        trace.join(NOTHING if channels is None else channels, consumed, pin)
    if channels is not None:
        _end(trace, conv, channels)
    return _weight_axis(trace, conv.weight, leaving)


def _depthwise(trace: Trace, conv: _Convolution, channels: IntArray | None) -> IntArray | None:
    shape = trace.shape(conv.weight)
    produced = trace.of(conv.weight).factor_over(0)
    if shape[0] == 1 or produced is None:
        return None
    # Conv: (in × multiplier, 1, …); ConvTranspose: (in, multiplier, …), its output laid out channel by channel.
    pin = Pin(conv.data, PinCode.FIXED_AXIS, f"{conv.where} runs over channels of which some cannot be removed.")
    labels = produced.ravel()
    if channels is None:
        trace.pin(labels, pin)
        return None
    if conv.transposed:
        trace.join(labels, channels, pin)
        if shape[1] > 1:
            trace.pin_tensor(
                conv.weight, PinCode.FIXED_AXIS, f"It is the channel multiplier of {conv.where}.", axes=[1]
            )
        return np.repeat(labels, shape[1])
    trace.join(labels.reshape(len(channels), -1), channels[:, None], pin)
    return labels


def _grouped(trace: Trace, conv: _Convolution, channels: IntArray | None) -> IntArray | None:
    """Label the weight by block: axis 0 is laid out block after block, axis 1 holds one block's other side.

    For Conv axis 0 is what leaves and axis 1 what enters; for ConvTranspose the other way round.
    """
    shape = trace.shape(conv.weight)
    weight, group = conv.weight, conv.group
    block = np.arange(shape[0]) // (shape[0] // group)
    pin = Pin(conv.data, PinCode.FIXED_AXIS, f"{conv.where} shares its weight with a consumer of fixed channels.")
    first = _weight_axis(trace, weight, 0) if weight in trace.labels else trace.fresh((shape[0],))
    outer = np.full(shape[0], FIXED, dtype=np.int64) if first is None else first
    inner = trace.fresh((group, shape[1])) if shape[1] > 1 else np.full((group, 1), FIXED, dtype=np.int64)
    if conv.transposed:
        entering, leaving = outer, inner.ravel()
        trace.join(NOTHING if channels is None else channels, entering, pin)
    else:
        entering, leaving = inner.ravel(), outer
        trace.join(NOTHING if channels is None else channels, entering, pin)
    cells = inner[block].reshape(shape[:2] + (1,) * (len(shape) - 2))
    if weight in trace.labels:
        for factor in trace.labels[weight].factors:
            if factor.shape[1] > 1:
                trace.join(factor, cells, pin)
    else:
        trace.labels[weight] = Labels(shape, (along(outer, 0, len(shape)), cells))
    if channels is not None:
        _end(trace, conv, channels)
    for side in (entering, leaving):
        trace.require_grid(side.reshape(group, -1), conv.out)
    trace.blocks.append(Blocks(entering.reshape(group, -1), leaving.reshape(group, -1), conv.out))
    return leaving
