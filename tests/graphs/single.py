"""One graph for each operator that needs no structure of its own: between two convolutions, or between layers."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from graphs.builder import GRAPHS, Builder, head, image

Make = Callable[[Builder, str], str]


def _between_convolutions(make: Make, opset: int = 17) -> Callable[[], onnx.ModelProto]:
    """Return a graph whose operator maps a feature map of 8 channels to one of 8 channels."""

    def build() -> onnx.ModelProto:
        b = image(opset=opset)
        b.inputs[0].type.tensor_type.shape.dim[0].dim_value = 2  # operands with a batch of their own need a fixed one
        x = make(b, b.conv("x", 3, 8))
        b.declare(x, [2, 8, None, None])
        x = b.add("Relu", b.conv(x, 8, 4, 1))
        return b.finish(b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), 4, 5))

    return build


def _float(b: Builder, x: str) -> str:
    return b.add("Cast", x, to=TensorProto.FLOAT)


def _comparison(op_type: str) -> Make:
    def make(b: Builder, x: str) -> str:
        y = b.conv("x", 3, 8)
        if op_type == "Equal":
            x, y = (b.add("Round", b.add("Mul", v, b.constant(np.float32(2)))) for v in (x, y))
        return b.add("Where", b.add(op_type, x, y), x, b.add("Mul", y, y))

    return make


def _logical(op_type: str) -> Make:
    def make(b: Builder, x: str) -> str:
        masks = [b.add("Greater", v, b.constant(np.float32(0))) for v in (x, b.conv("x", 3, 8))]
        mask = b.add(op_type, *(masks if op_type != "Not" else masks[:1]))
        return b.add("Where", mask, x, b.add("Mul", x, x))

    return make


def _bitwise(op_type: str, kind: int) -> Make:
    def make(b: Builder, x: str) -> str:
        operands = [
            b.add("Cast", b.add("Abs", b.add("Mul", v, b.constant(np.float32(4)))), to=kind)
            for v in (x, b.conv("x", 3, 8))
        ]
        attributes = {"direction": "RIGHT"} if op_type == "BitShift" else {}
        return _float(b, b.add(op_type, *(operands if op_type != "BitwiseNot" else operands[:1]), **attributes))

    return make


def _several(op_type: str) -> Make:
    return lambda b, x: b.add(op_type, x, b.conv("x", 3, 8), b.weight(8, 1, 1))


def _positive(b: Builder, x: str) -> str:
    return b.add("Add", b.add("Abs", x), b.constant(np.float32(0.5)))


def _reduced(op_type: str) -> Make:
    """Reduce each channel's plane; axes are an attribute up to opset 17, except for ReduceSum."""

    def make(b: Builder, x: str) -> str:
        if op_type == "ReduceProd":  # of numbers near one
            x = b.add("Add", b.add("Mul", b.add("Tanh", x), b.constant(np.float32(0.1))), b.constant(np.float32(1)))
        else:
            x = _positive(b, x)
        return b.add(op_type, x, axes=[2, 3], keepdims=1)

    return make


def _position(op_type: str) -> Make:
    return lambda b, x: _float(b, b.add(op_type, x, axis=3, keepdims=1))


def _normalised(op_type: str, **attributes: object) -> Make:
    return lambda b, x: b.add(op_type, x, **attributes)


def _boxes(b: Builder) -> str:
    return b.constant(np.array([[0, 0, 5, 5], [1, 2, 7, 6]], dtype=np.float32))


def _region(b: Builder, x: str) -> str:
    rows = b.constant(np.array([0, 1]))
    return b.add("RoiAlign", x, _boxes(b), rows, output_height=4, output_width=4)


def _pooled_region(b: Builder, x: str) -> str:
    boxes = b.constant(np.array([[0, 0, 0, 5, 5], [1, 1, 2, 7, 6]], dtype=np.float32))
    return b.add("MaxRoiPool", x, boxes, pooled_shape=[3, 3])


def _infinite(op_type: str) -> Make:
    def make(b: Builder, x: str) -> str:
        divided = b.add("Div", x, b.add("Relu", x))  # where x is negative, infinity; nothing is both
        return b.add("Where", b.add(op_type, divided), b.add("Mul", x, x), x)

    return make


def _reversed(b: Builder, x: str) -> str:
    """Reverse the rows of each plane, up to a length of its own for every sample."""
    lengths = b.constant(np.array([5, 8]))
    rows_first = b.add("Transpose", x, perm=[2, 0, 1, 3])
    turned = b.add("ReverseSequence", rows_first, lengths, batch_axis=1, time_axis=0)
    return b.add("Transpose", turned, perm=[1, 2, 0, 3])


def _microsoft(op_type: str) -> Make:
    def make(b: Builder, x: str) -> str:
        y = b.add(op_type, x, domain="com.microsoft")
        b.declare(y, [2, 8, 8, 8])
        return y

    return make


MAKERS: dict[str, tuple[Make, int]] = {
    **{name: (_comparison(name), 17) for name in ("Equal", "GreaterOrEqual", "Less", "LessOrEqual")},
    **{name: (_logical(name), 17) for name in ("And", "Not", "Or", "Xor")},
    **{
        name: (_bitwise(name, TensorProto.INT32), 18)
        for name in ("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor")
    },
    "BitShift": (_bitwise("BitShift", TensorProto.UINT32), 17),
    **{name: (_several(name), 17) for name in ("Max", "Mean", "Min", "Sum")},
    **{
        name: (_reduced(name), 17)
        for name in ("ReduceL1 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMin ReduceProd ReduceSumSquare".split())
    },
    **{name: (_position(name), 17) for name in ("ArgMax", "ArgMin")},
    **{name: (_infinite(name), 17) for name in ("IsInf", "IsNaN")},
    **{name: (_microsoft(name), 17) for name in ("FastGelu", "Gelu", "QuickGelu")},
    "CastLike": (lambda b, x: b.add("CastLike", x, "x"), 17),
    "CenterCropPad": (
        lambda b, x: b.add("CenterCropPad", x, b.constant(np.array([6, 9])), axes=[2, 3]),
        18,
    ),
    "GlobalLpPool": (_normalised("GlobalLpPool", p=2), 17),
    "Hardmax": (_normalised("Hardmax", axis=3), 17),
    "LogSoftmax": (_normalised("LogSoftmax", axis=2), 17),
    "LpPool": (_normalised("LpPool", kernel_shape=[2, 2], p=2), 17),
    "MaxRoiPool": (_pooled_region, 17),
    "MeanVarianceNormalization": (_normalised("MeanVarianceNormalization", axes=[2, 3]), 17),
    "ReverseSequence": (_reversed, 17),
    "RoiAlign": (_region, 17),
    "Swish": (_normalised("Swish", alpha=1.5), 24),
    "Trilu": (lambda b, x: b.add("Trilu", x), 17),
    "Upsample": (
        lambda b, x: b.add("Upsample", x, b.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest"),
        9,
    ),
}

for _name, (_make, _opset) in MAKERS.items():
    GRAPHS[f"single_{_name}"] = _between_convolutions(_make, _opset)


def _bias_gelu() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    x = b.add("BiasGelu", b.add("MatMul", "x", b.weight(10, 12)), b.weight(12), domain="com.microsoft")
    b.declare(x, ["N", 7, 12])
    return b.finish(b.add("MatMul", x, b.weight(12, 5)))


def _neighbours() -> onnx.ModelProto:
    """Stay under a normalisation over neighbouring channels; the layer behind it is narrowed."""
    b = image()
    x = b.add("LRN", b.conv("x", 3, 8), size=3)
    return head(b, b.add("Relu", b.conv(x, 8, 6)), 6)


def _rotary() -> onnx.ModelProto:
    b = Builder([2, 7, 10], opset=23)

    def heads() -> str:
        x = b.add("Reshape", b.add("MatMul", "x", b.weight(10, 16)), b.constant(np.array([0, 7, 4, 4])))
        return b.add("Transpose", x, perm=[0, 2, 1, 3])

    q, k = (b.add("RotaryEmbedding", heads(), b.weight(2, 7, 2), b.weight(2, 7, 2)) for _ in range(2))
    x = b.add("Transpose", b.add("Attention", q, k, heads()), perm=[0, 2, 1, 3])
    x = b.add("Reshape", x, b.constant(np.array([0, 0, 16])))
    return b.finish(b.add("MatMul", x, b.weight(16, 6)))


GRAPHS["single_BiasGelu"] = _bias_gelu
GRAPHS["single_LRN"] = _neighbours
GRAPHS["single_RotaryEmbedding"] = _rotary
