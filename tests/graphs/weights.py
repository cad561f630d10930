"""How weights arrive, and operators that stay."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphs.builder import Builder, graph, head, image


@graph
def weights_through_nodes() -> onnx.ModelProto:
    b = Builder(["N", 10])
    first = b.add("Transpose", b.add("Identity", b.weight(12, 10)), perm=[1, 0])
    x = b.add("Relu", b.add("MatMul", "x", first))
    value = numpy_helper.from_array(b.random.normal(size=(12, 5)).astype(np.float32))
    b.nodes.append(helper.make_node("Constant", [], ["weight"], value=value))
    return b.finish(b.add("MatMul", x, "weight"))


@graph
def shared_bias() -> onnx.ModelProto:
    b = image()
    bias = b.weight(8)
    left = b.add("Conv", "x", b.weight(8, 3, 1, 1), bias)
    right = b.add("Conv", b.add("Relu", left), b.weight(8, 8, 1, 1), bias)
    return head(b, b.conv(b.add("Relu", right), 8, 4), 4)


@graph
def unknown_operator_beside() -> onnx.ModelProto:
    """The branch with cumulative sums over channels stays; the one beside it is narrowed."""
    b = image()
    left = b.add("CumSum", b.conv("x", 3, 6), b.constant(np.array(1)))
    right = b.add("Relu", b.conv("x", 3, 8))
    return head(b, b.add("Add", b.conv(left, 6, 4), b.conv(right, 8, 4)), 4)


@graph
def tied_embedding() -> onnx.ModelProto:
    """The same table makes the embedding and, transposed, the scores of the words."""
    b = Builder(["N", 7])
    tokens = b.add(
        "Mod", b.add("Cast", b.add("Abs", b.add("Mul", "x", b.constant(np.float32(3)))), to=7), b.constant(np.array(11))
    )
    table = b.weight(11, 12)
    x = b.add("Tanh", b.add("Gather", table, tokens))
    return b.finish(b.add("MatMul", x, b.add("Transpose", table, perm=[1, 0])))


@graph
def shared_weight() -> onnx.ModelProto:
    b = image()
    weight, bias = b.weight(8, 8, 3, 3), b.weight(8)
    x = b.add("Relu", b.conv("x", 3, 8))
    for _ in range(2):
        x = b.add("Relu", b.add("Conv", x, weight, bias, pads=[1] * 4))
    return head(b, b.conv(x, 8, 4), 4)


@graph
def standardised_weight() -> onnx.ModelProto:
    """The weight is computed: a direction times a length for every output."""
    b = image()
    weight = b.add("Mul", b.weight(8, 3, 3, 3), b.positive(8, 1, 1, 1))
    x = b.add("Relu", b.add("Conv", "x", weight, b.weight(8), pads=[1] * 4))
    return head(b, b.conv(x, 8, 4), 4)


@graph
def half_precision_weights() -> onnx.ModelProto:
    b = image()
    stored = b.constant(b.random.normal(0, 0.2, (8, 3, 40, 3)).astype(np.float16)[:, :, :3])
    x = b.add("Relu", b.add("Conv", "x", b.add("Cast", stored, to=1), pads=[1] * 4))
    return head(b, b.conv(x, 8, 4), 4)


@graph
def quantised_weights_and_activations() -> onnx.ModelProto:
    """Per-channel scales of the weights are narrowed with them."""
    b = image()

    def weight(outputs: int, inputs: int) -> str:
        values = b.constant(b.random.integers(-100, 100, (outputs, inputs, 3, 3)).astype(np.int8))
        scales = b.constant((b.random.uniform(0.5, 1.5, outputs) / 200 / np.sqrt(inputs)).astype(np.float32))
        return b.add("DequantizeLinear", values, scales, b.constant(np.zeros(outputs, np.int8)), axis=0)

    def activation(x: str) -> str:
        scale, zero = b.constant(np.float32(0.02)), b.constant(np.uint8(128))
        return b.add("DequantizeLinear", b.add("QuantizeLinear", x, scale, zero), scale, zero)

    x = b.add("Conv", activation("x"), weight(8, 3), b.weight(8), pads=[1] * 4)
    x = b.add("Conv", activation(b.add("Relu", x)), weight(6, 8), b.weight(6), pads=[1] * 4)
    return head(b, b.add("Relu", x), 6)
