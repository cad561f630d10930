"""Recurrent layers: one label a hidden unit, across the gates, the recurrent axis, the states and the output.

A hidden unit's own state reaches the others through the recurrent weights only, so that its removal means a zero
column there and a zero wherever the output is contracted.
"""

import numpy as np
import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import NOTHING, IntArray, axes_of, merge_factors
from oamip_onnx.channels.rules.pinned import pin_all
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, along, node_label
from oamip_onnx.model import int_attribute

# Parts of the stacked weights; a bias holds twice as many, a peephole (LSTM only) one for each of three gates.
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_PEEPHOLES = 3

_X, _W, _R, _B, _STATES, _P = 0, 1, 2, 3, (5, 6), 7


@rule(["LSTM", "GRU", "RNN"], Family.CONTRACTION)
def recurrent(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Weights W (directions, gates · hidden, input), R (directions, gates · hidden, hidden)."""
    where = node_label(trace, index, node)
    names = [*node.input, *[""] * (8 - len(node.input))]
    trace.pin_tensor(names[_X], PinCode.FIXED_AXIS, f"{where} runs along this axis.", axes=[0, 1])
    if not all(trace.is_parameter(names[i]) for i in (_W, _R)):
        pin_all(trace, node, PinCode.UNSUPPORTED_CASE, f"{where} takes its weights from the graph.")
        return
    directions, _, hidden = trace.shape(names[_R])
    units = trace.fresh((directions, hidden))
    _join_weights(trace, index, node, names, units)
    # The output's axes: sequence, direction, batch, hidden; with the layout 1: batch, sequence, direction, hidden.
    batch_first = int_attribute(node, "layout", 0) == 1
    state = units[None] if batch_first else units[:, None]
    for operand in _STATES:
        if names[operand]:
            _join(trace, names[operand], state, Pin(names[operand], PinCode.FIXED_AXIS, f"It is a state of {where}."))
    trace.require_grid(units, names[_R])
    for position, name in enumerate(node.output):
        if name:
            trace.contracted.append(name)
            sequence = units[None, None] if batch_first else units[None, :, None]
            trace.set(name, [state if position else sequence])


def _join_weights(trace: Trace, index: int, node: onnx.NodeProto, names: list[str], units: IntArray) -> None:
    where = node_label(trace, index, node)
    gates = _GATES[node.op_type]
    pin = Pin(names[_X], PinCode.FIXED_AXIS, f"{where} shares its weights with a layer of fixed channels.")
    inputs = trace.fresh((1, 1, trace.shape(names[_W])[2]))
    stacked = np.tile(units, (1, gates))[:, :, None]
    _put(trace, names[_W], [stacked, inputs], pin)
    _put(trace, names[_R], [stacked, units[:, None, :]], pin)
    if names[_B]:
        _put(trace, names[_B], [np.tile(units, (1, 2 * gates))], pin)
    if names[_P]:
        _put(trace, names[_P], [np.tile(units, (1, _PEEPHOLES))], pin)
    entering = trace.single_axis(names[_X], 2)
    trace.join(inputs, NOTHING if entering is None else along(entering, 2, 3), pin)
    if entering is not None:
        trace.contract(index, _X, along(entering, 2, 3), _W)
    trace.contract(index, _R, units[:, None, :], None)


def _put(trace: Trace, name: str, factors: list[IntArray], pin: Pin) -> None:
    """Label a weight, or join the labels that it has already."""
    if name not in trace.labels and trace.model.is_constant(name):
        trace.labels[name] = merge_factors(trace.shape(name), factors)
        return
    for factor in factors:
        _join(trace, name, factor, pin)


def _join(trace: Trace, name: str, factor: IntArray, pin: Pin) -> None:
    """Join a factor with a tensor's labels on the same axes; pin it where there are none."""
    own = [f for f in trace.of(name).factors if axes_of(f) & axes_of(factor)]
    for found in own:
        trace.join(found, factor, pin)
    if not any(max(axes_of(factor)) in axes_of(f) for f in own):
        trace.pin(factor.ravel(), pin)
