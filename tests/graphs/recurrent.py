"""Recurrent layers."""

import numpy as np
import onnx

from graphs.builder import Builder, graph

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent(
    b: Builder, x: str, op_type: str, inputs: int, hidden: int, *, states: tuple[str, ...] = (), **attributes: object
) -> str:
    """Add a recurrent layer over (sequence, batch, inputs); return its sequence of states, axis 1 the direction."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    gates = _GATES[op_type]
    weights = [
        b.weight(directions, gates * hidden, inputs, scale=0.4),
        b.weight(directions, gates * hidden, hidden, scale=0.4),
        b.weight(directions, 2 * gates * hidden, scale=0.3),
    ]
    return b.add(op_type, x, *weights, *states, hidden_size=hidden, **attributes)


def _over_sequence(b: Builder, states: str, features: int) -> onnx.ModelProto:
    """Put the directions beside each other and classify every step."""
    x = b.add("Transpose", states, perm=[0, 2, 1, 3])
    x = b.add("Reshape", x, b.constant(np.array([0, 0, -1])))
    return b.finish(b.add("MatMul", x, b.weight(features, 4)))


@graph
def lstm_between_layers() -> onnx.ModelProto:
    b = Builder([5, "N", 6])
    x = b.add("Tanh", b.add("MatMul", "x", b.weight(6, 8)))
    return _over_sequence(b, recurrent(b, x, "LSTM", 8, 7), 7)


@graph
def lstm_bidirectional_twice() -> onnx.ModelProto:
    b = Builder([5, "N", 6])
    x = b.add("Transpose", recurrent(b, "x", "LSTM", 6, 4, direction="bidirectional"), perm=[0, 2, 1, 3])
    x = b.add("Reshape", x, b.constant(np.array([0, 0, 8])))
    return _over_sequence(b, recurrent(b, x, "LSTM", 8, 5, direction="bidirectional"), 10)


@graph
def lstm_peepholes_and_states() -> onnx.ModelProto:
    b = Builder([5, 2, 6])
    lengths = b.constant(np.array([5, 4], dtype=np.int32))
    states = [b.weight(1, 2, 7, scale=0.5) for _ in range(2)]
    return _over_sequence(b, recurrent(b, "x", "LSTM", 6, 7, states=(lengths, *states, b.weight(1, 21, scale=0.4))), 7)


@graph
def lstm_zero_states_of_the_batch() -> onnx.ModelProto:
    """As exporters write them: zeros of (1, batch, hidden), the batch taken from the input."""
    b = Builder([5, "N", 6])
    batch = b.add("Gather", b.add("Shape", "x"), b.constant(np.array([1])), axis=0)
    shape = b.add("Concat", b.constant(np.array([1])), batch, b.constant(np.array([7])), axis=0)
    zeros = b.add("ConstantOfShape", shape)
    expanded = b.add("Expand", b.constant(np.zeros((1, 1, 7), np.float32)), shape)
    return _over_sequence(b, recurrent(b, "x", "LSTM", 6, 7, states=("", zeros, expanded)), 7)


@graph
def gru_linear_before_reset() -> onnx.ModelProto:
    b = Builder([5, "N", 6])
    x = b.add("Squeeze", recurrent(b, "x", "GRU", 6, 7, linear_before_reset=1), b.constant(np.array([1])))
    return _over_sequence(b, recurrent(b, x, "GRU", 7, 5, direction="reverse"), 5)


@graph
def gru_last_state() -> onnx.ModelProto:
    b = Builder([5, "N", 6])
    recurrent(b, "x", "GRU", 6, 7, outputs=2)
    last = b.add("Squeeze", b.nodes[-1].output[1], b.constant(np.array([0])))
    return b.finish(b.gemm(last, 7, 4))


@graph
def rnn_bidirectional() -> onnx.ModelProto:
    b = Builder([5, "N", 6])
    return _over_sequence(b, recurrent(b, "x", "RNN", 6, 6, direction="bidirectional"), 12)
