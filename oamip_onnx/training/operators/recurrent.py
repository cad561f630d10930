"""Recurrent layers, step by step."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.training.operators.table import Function, Operation, Tensor, operator

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_USUAL = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_ACTIVATIONS = {"Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": functional.relu}

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


@operator("RNN", "GRU", "LSTM", weights=(1, 2, 3, 7), sizes=(4,))
def recurrent(operation: Operation) -> Function:
    """RNN, GRU and LSTM, in either direction, with lengths and initial states."""
    operation.refuse(layout=(0,), input_forget=(0,), clip=(None,))
    kind, direction = operation.op_type, operation.get("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    names = operation.get("activations") or _USUAL[kind] * directions
    if any(name not in _ACTIVATIONS for name in names):
        raise UnsupportedOperatorError(f"{kind} with activations = {names}")
    size = len(_USUAL[kind])
    functions = [[_ACTIVATIONS[name] for name in names[size * k : size * (k + 1)]] for k in range(directions)]
    makes = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[kind]

    def run(x: Tensor, w: Tensor, r: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        bias, lengths, first, cell, peepholes = (*rest, None, None, None, None, None)[:5]
        outputs, finals = [], []
        for k in range(directions):
            backwards = direction == "reverse" or k == 1
            hidden = r.shape[-1]
            zero = x.new_zeros(x.shape[1], hidden)
            state: State = (zero if first is None else first[k],)
            if kind == "LSTM":
                state += (zero if cell is None else cell[k],)
            b = x.new_zeros(2 * _GATES[kind] * hidden) if bias is None else bias[k]
            step = makes(operation, r[k], b, None if peepholes is None else peepholes[k], functions[k])
            entering = functional.linear(x, w[k], b[: _GATES[kind] * hidden])
            sequence, state = _over_time(entering, state, step, lengths, backwards=backwards)
            outputs.append(sequence)
            finals.append(state)
        last = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        return (torch.stack(outputs, 1), *last)

    return run


def _over_time(entering: Tensor, state: State, step: Step, lengths: Tensor, *, backwards: bool) -> tuple[Tensor, State]:
    """Run over the steps; a sample that has ended keeps its state and puts out zeros."""
    count, found = entering.shape[0], {}
    for time in reversed(range(count)) if backwards else range(count):
        new = step(entering[time], state)
        if lengths is None:
            state, found[time] = new, new[0]
            continue
        alive = (time < lengths).to(entering.device).unsqueeze(1)
        state = tuple(torch.where(alive, after, before) for after, before in zip(new, state, strict=True))
        found[time] = torch.where(alive, new[0], torch.zeros_like(new[0]))
    return torch.stack([found[time] for time in range(count)]), state


def _rnn(_operation: Operation, r: Tensor, b: Tensor, _peepholes: Tensor, functions: list[Function]) -> Step:
    def step(entering: Tensor, state: State) -> State:
        return (functions[0](entering + functional.linear(state[0], r, b[r.shape[-1] :])),)

    return step


def _gru(operation: Operation, r: Tensor, b: Tensor, _peepholes: Tensor, functions: list[Function]) -> Step:
    linear_first, hidden = operation.get("linear_before_reset", 0), r.shape[-1]
    recurrent_bias = b[3 * hidden :]

    def step(entering: Tensor, state: State) -> State:
        (h,) = state
        update_in, reset_in, new_in = entering.chunk(3, -1)
        both = functional.linear(h, r[: 2 * hidden], recurrent_bias[: 2 * hidden])
        update = functions[0](update_in + both[:, :hidden])
        reset = functions[0](reset_in + both[:, hidden:])
        matrix, offset = r[2 * hidden :], recurrent_bias[2 * hidden :]
        passed = (
            reset * functional.linear(h, matrix, offset)
            if linear_first
            else functional.linear(reset * h, matrix, offset)
        )
        return ((1 - update) * functions[1](new_in + passed) + update * h,)

    return step


def _lstm(_operation: Operation, r: Tensor, b: Tensor, peepholes: Tensor, functions: list[Function]) -> Step:
    hidden = r.shape[-1]
    recurrent_bias = b[4 * hidden :]
    seen_by = [0.0] * 3 if peepholes is None else list(peepholes.chunk(3))

    def step(entering: Tensor, state: State) -> State:
        h, c = state
        into, out, forget, new = (entering + functional.linear(h, r, recurrent_bias)).chunk(4, -1)
        into, forget = functions[0](into + seen_by[0] * c), functions[0](forget + seen_by[2] * c)
        c = forget * c + into * functions[1](new)
        return functions[0](out + seen_by[1] * c) * functions[2](c), c

    return step
