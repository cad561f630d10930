"""Pointwise operators, sums, gates and batch norm."""

from collections.abc import Callable

import numpy as np
import onnx

from graphs.builder import GRAPHS, OPSET, graph, head, image


@graph
def batch_normalisation() -> onnx.ModelProto:
    b = image()
    x = b.conv("x", 3, 8, bias=False)
    x = b.add("BatchNormalization", x, b.positive(8), b.weight(8), b.weight(8), b.positive(8))
    return head(b, b.add("Relu", x), 8)


@graph
def batch_normalisation_before_conv() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("BatchNormalization", x, b.positive(8), b.weight(8, scale=1), b.weight(8), b.positive(8))
    return head(b, b.conv(b.add("Relu", x), 8, 4), 4)


@graph
def arithmetic() -> onnx.ModelProto:
    b = image()
    left, right = b.conv("x", 3, 8), b.conv("x", 3, 8)
    x = b.add("Div", b.add("Mul", b.add("Sub", left, right), b.positive(8, 1, 1)), b.positive(1, 8, 1, 1))
    x = b.add("Add", x, b.constant(np.float32(0.25)))
    return head(b, b.add("Relu", x), 8)


@graph
def residual() -> onnx.ModelProto:
    b = image()
    stem = b.add("Relu", b.conv("x", 3, 8))
    inner = b.conv(b.add("Relu", b.conv(stem, 8, 6)), 6, 8)
    return head(b, b.add("Relu", b.add("Add", inner, stem)), 8)


@graph
def prelu() -> onnx.ModelProto:
    b = image()
    return head(b, b.add("PRelu", b.conv("x", 3, 8), b.positive(8, 1, 1)), 8)


@graph
def squeeze_and_excite() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    gate = b.add("Relu", b.conv(b.add("GlobalAveragePool", x), 8, 4, 1))
    gate = b.add("HardSigmoid", b.conv(gate, 4, 8, 1))
    return head(b, b.conv(b.add("Mul", gate, x), 8, 4), 4)


@graph
def identity_and_dropout() -> onnx.ModelProto:
    b = image()
    x = b.add("Dropout", b.add("Identity", b.add("Relu", b.conv("x", 3, 8))), outputs=1)
    return head(b, x, 8)


def _pointwise(op_type: str, opset: int = OPSET) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        b = image(opset=opset)
        x = b.conv("x", 3, 8)
        if op_type in {"Log", "Sqrt", "Reciprocal", "Acosh"}:
            x = b.add("Add", b.add("Abs", x), b.constant(np.float32(1.5)))
        elif op_type in {"Acos", "Asin", "Atanh"}:
            x = b.add("Mul", b.add("Tanh", x), b.constant(np.float32(0.9)))
        if op_type == "Clip":
            x = b.add("Clip", x, b.constant(np.float32(-0.5)), b.constant(np.float32(0.5)))
        else:
            x = b.add(op_type, x)
        return head(b, b.conv(x, 8, 4), 4)

    return build


for _name in (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish "
    "LeakyRelu Log Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh "
    "ThresholdedRelu"
).split():
    GRAPHS[f"pointwise_{_name}"] = _pointwise(_name)
for _name in ("Gelu", "Mish"):
    GRAPHS[f"pointwise_{_name}"] = _pointwise(_name, opset=20)


@graph
def squeeze_and_excite_wide() -> onnx.ModelProto:
    """A gate between a convolution and one of the same width."""
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    gate = b.add("Relu", b.conv(b.add("GlobalAveragePool", x), 8, 4, 1))
    gate = b.add("Sigmoid", b.conv(gate, 4, 8, 1))
    return head(b, b.conv(b.add("Mul", gate, x), 8, 5), 5)
