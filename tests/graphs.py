"""Small graphs, at least one per operator, on which removal must equal masking."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8

GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {}


class Builder:
    """A graph under construction, with seeded random weights."""

    def __init__(
        self, shape: Sequence[int | str], seed: int = 0, opset: int = OPSET, dtype: int = TensorProto.FLOAT
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", dtype, list(shape))]

    def constant(self, values: Any, name: str | None = None) -> str:
        """Add an initializer."""
        array = np.asarray(values)
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Add random weights."""
        spread = scale or 1 / np.sqrt(max(int(np.prod(shape[1:])), 1))
        values = self.random.normal(0, spread, shape)
        return self.constant(values.astype(helper.tensor_dtype_to_np_dtype(self.dtype)))

    def positive(self, *shape: int) -> str:
        """Add random weights between a half and one and a half."""
        values = self.random.uniform(0.5, 1.5, shape)
        return self.constant(values.astype(helper.tensor_dtype_to_np_dtype(self.dtype)))

    def add(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first output."""
        names = [f"t{len(self.nodes)}" + (f"_{k}" if k else "") for k in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, f"{op_type}_{len(self.nodes)}", **attributes))
        return names[0]

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True, **attributes: Any) -> str:
        """Add a convolution that keeps the plane's size."""
        group = attributes.get("group", 1)
        operands = [x, self.weight(outputs, inputs // group, kernel, kernel)]
        if bias:
            operands.append(self.weight(outputs, scale=0.5))
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.add("Conv", *operands, **attributes)

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        """Add a fully connected layer."""
        return self.add("Gemm", x, self.weight(outputs, inputs), self.weight(outputs, scale=0.5), transB=1)

    def finish(self, y: str) -> onnx.ModelProto:
        """Return the model with one output `y`."""
        self.nodes.append(helper.make_node("Identity", [y], ["y"], "out"))
        outputs = [helper.make_tensor_value_info("y", self.dtype, None)]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, outputs, self.constants)
        domains = [helper.make_opsetid(d, 1) for d in sorted({n.domain for n in self.nodes if n.domain})]
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset), *domains])
        model.ir_version = IR_VERSION
        return onnx.shape_inference.infer_shapes(model)


def graph(function: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    """Register a graph under its function's name."""
    GRAPHS[function.__name__] = function
    return function


def image(**settings: Any) -> Builder:
    """Return a builder with an image input of 3 × 8 × 8."""
    return Builder(["N", 3, 8, 8], **settings)


def head(b: Builder, x: str, channels: int, plane: int = 64) -> onnx.ModelProto:
    """Flatten a feature map and classify it."""
    return b.finish(b.gemm(b.add("Flatten", x), channels * plane, 5))


@graph
def conv_relu_flatten_gemm() -> onnx.ModelProto:
    b = image()
    return head(b, b.add("Relu", b.conv("x", 3, 8)), 8)


@graph
def conv_without_bias() -> onnx.ModelProto:
    b = image()
    return head(b, b.add("Relu", b.conv(b.add("Relu", b.conv("x", 3, 8, bias=False)), 8, 6, bias=False)), 6)


@graph
def conv_stride_dilation_auto_pad() -> onnx.ModelProto:
    b = image()
    x = b.conv("x", 3, 8, strides=[2, 2])
    x = b.conv(b.add("Relu", x), 8, 6, dilations=[2, 2], pads=[2, 2, 2, 2])
    x = b.add("Conv", b.add("Relu", x), b.weight(4, 6, 2, 2), auto_pad="SAME_UPPER")
    return head(b, x, 4, 16)


@graph
def conv_1d() -> onnx.ModelProto:
    b = Builder(["N", 3, 16])
    x = b.add("Relu", b.add("Conv", "x", b.weight(8, 3, 3), b.weight(8), pads=[1, 1]))
    x = b.add("Conv", x, b.weight(4, 8, 3), b.weight(4))
    return b.finish(b.gemm(b.add("Flatten", x), 4 * 14, 5))


@graph
def conv_3d() -> onnx.ModelProto:
    b = Builder(["N", 2, 5, 5, 5])
    x = b.add("Relu", b.add("Conv", "x", b.weight(6, 2, 3, 3, 3), b.weight(6)))
    x = b.add("Conv", x, b.weight(4, 6, 3, 3, 3), b.weight(4))
    return b.finish(b.gemm(b.add("Flatten", x), 4, 5))


@graph
def conv_depthwise() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("Relu", b.conv(x, 8, 8, group=8))
    return head(b, b.conv(x, 8, 4, 1), 4)


@graph
def conv_channel_multiplier() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 6))
    x = b.add("Relu", b.conv(x, 6, 12, group=6))
    return head(b, b.conv(x, 12, 4, 1), 4)


@graph
def conv_grouped() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("Relu", b.conv(x, 8, 12, group=2))
    return head(b, b.conv(x, 12, 4, 1), 4)


@graph
def conv_transpose() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("ConvTranspose", x, b.weight(8, 6, 2, 2), b.weight(6), strides=[2, 2])
    return head(b, b.conv(b.add("Relu", x), 6, 4), 4, 256)


@graph
def conv_transpose_depthwise() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("ConvTranspose", x, b.weight(8, 1, 2, 2), b.weight(8), strides=[2, 2], group=8)
    return head(b, b.conv(x, 8, 4), 4, 256)


@graph
def gemm_layouts() -> onnx.ModelProto:
    b = Builder(["N", 10])
    x = b.add("Gemm", "x", b.weight(10, 12), b.weight(1, 12), alpha=0.5, beta=2.0)
    x = b.add("Gemm", b.add("Relu", x), b.weight(9, 12), transB=1)
    return b.finish(b.add("Gemm", b.add("Tanh", x), b.weight(9, 5), b.constant(np.float32(0.3))))


@graph
def matmul_tokens() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    x = b.add("Add", b.add("MatMul", "x", b.weight(10, 16)), b.weight(16))
    return b.finish(b.add("MatMul", b.add("Sigmoid", x), b.weight(16, 6)))


@graph
def matmul_constant_left() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    x = b.add("Relu", b.add("MatMul", b.weight(12, 7), "x"))
    return b.finish(b.add("MatMul", b.weight(4, 12), x))


@graph
def matmul_activations() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    q = b.add("MatMul", "x", b.weight(10, 12))
    k = b.add("Transpose", b.add("MatMul", "x", b.weight(10, 12)), perm=[0, 2, 1])
    return b.finish(b.add("MatMul", q, k))


@graph
def attention_heads() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])

    def heads(order: list[int]) -> str:
        x = b.add("Add", b.add("MatMul", "x", b.weight(10, 12)), b.weight(12))
        return b.add("Transpose", b.add("Reshape", x, b.constant(np.array([0, -1, 4, 3]))), perm=order)

    scores = b.add("MatMul", heads([0, 2, 1, 3]), heads([0, 2, 3, 1]))
    mixed = b.add("MatMul", b.add("Softmax", scores, axis=-1), heads([0, 2, 1, 3]))
    joined = b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant(np.array([0, 0, 12])))
    return b.finish(b.add("MatMul", joined, b.weight(12, 6)))


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
def pools() -> onnx.ModelProto:
    b = image()
    x = b.add("MaxPool", b.add("Relu", b.conv("x", 3, 8)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.add("AveragePool", b.conv(x, 8, 6), kernel_shape=[2, 2], strides=[2, 2])
    return head(b, x, 6, 4)


@graph
def global_pools() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("Add", b.add("GlobalAveragePool", x), b.add("GlobalMaxPool", x))
    return head(b, x, 8, 1)


@graph
def reduce_mean_plane() -> onnx.ModelProto:
    b = image()
    x = b.add("ReduceMean", b.add("Relu", b.conv("x", 3, 8)), axes=[2, 3], keepdims=0)
    return b.finish(b.gemm(x, 8, 5))


@graph
def reshape_constant_batch() -> onnx.ModelProto:
    b = Builder([1, 3, 8, 8])
    x = b.add("Reshape", b.add("Relu", b.conv("x", 3, 8)), b.constant(np.array([1, 512])))
    return b.finish(b.gemm(x, 512, 5))


@graph
def reshape_computed_batch() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    batch = b.add("Gather", b.add("Shape", x), b.constant(np.array(0)), axis=0)
    batch = b.add("Unsqueeze", batch, b.constant(np.array([0])))
    target = b.add("Concat", batch, b.constant(np.array([-1])), axis=0)
    return b.finish(b.gemm(b.add("Reshape", x, target), 512, 5))


@graph
def reshape_computed_channels() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    sizes = b.add("Slice", b.add("Shape", x), b.constant(np.array([0])), b.constant(np.array([2])))
    target = b.add("Concat", sizes, b.constant(np.array([-1])), axis=0)
    x = b.add("Transpose", b.add("Reshape", x, target), perm=[0, 2, 1])
    return b.finish(b.add("MatMul", x, b.weight(8, 4)))


@graph
def transpose_channels_last() -> onnx.ModelProto:
    b = image()
    x = b.add("Transpose", b.add("Relu", b.conv("x", 3, 8)), perm=[0, 2, 3, 1])
    x = b.add("Relu", b.add("Add", b.add("MatMul", x, b.weight(8, 6)), b.weight(6)))
    return head(b, b.conv(b.add("Transpose", x, perm=[0, 3, 1, 2]), 6, 4), 4)


@graph
def concat_branches() -> onnx.ModelProto:
    b = image()
    stem = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("Concat", b.add("Relu", b.conv(stem, 8, 5)), stem, b.add("Relu", b.conv(stem, 8, 3)), axis=1)
    return head(b, b.conv(x, 16, 4), 4)


@graph
def concat_with_input() -> onnx.ModelProto:
    b = image()
    x = b.add("Concat", "x", b.add("Relu", b.conv("x", 3, 8)), axis=1)
    return head(b, b.conv(x, 11, 4), 4)


@graph
def split_halves() -> onnx.ModelProto:
    b = image()
    b.add("Split", b.conv("x", 3, 10), b.constant(np.array([4, 6])), outputs=2, axis=1)
    first, second = b.nodes[-1].output
    x = b.add("Concat", b.conv(b.add("Relu", first), 4, 5), b.conv(b.add("Sigmoid", second), 6, 5), axis=1)
    return head(b, x, 10)


@graph
def split_old_opset() -> onnx.ModelProto:
    b = image(opset=11)
    b.add("Split", b.conv("x", 3, 10), outputs=2, axis=1, split=[4, 6])
    first, second = b.nodes[-1].output
    x = b.add("Concat", b.add("Relu", first), b.add("Sigmoid", second), axis=1)
    return head(b, b.conv(x, 10, 4), 4)


@graph
def slice_channels() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 10))
    part = [b.constant(np.array(v)) for v in ([2], [7], [1], [1])]
    sliced = b.add("Slice", x, *part)
    return head(b, b.add("Concat", b.conv(x, 10, 4), b.conv(sliced, 5, 4), axis=1), 8)


@graph
def slice_old_opset() -> onnx.ModelProto:
    b = image(opset=9)
    x = b.add("Relu", b.conv("x", 3, 10))
    sliced = b.add("Slice", x, starts=[2], ends=[9], axes=[1])
    return head(b, b.add("Concat", b.conv(x, 10, 4), b.conv(sliced, 7, 4), axis=1), 8)


@graph
def slice_backwards() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 10))
    part = [b.constant(np.array(v)) for v in ([-1], [-(2**31)], [1], [-1])]
    return head(b, b.conv(b.add("Slice", x, *part), 10, 4), 4)


@graph
def gather_channels() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 10))
    return head(b, b.conv(b.add("Gather", x, b.constant(np.array([7, 0, 3, 9])), axis=1), 4, 4), 4)


@graph
def pad_plane() -> onnx.ModelProto:
    b = image()
    x = b.add("Pad", b.add("Relu", b.conv("x", 3, 8)), b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    return head(b, b.conv(x, 8, 4, pads=[0, 0, 0, 0]), 4)


@graph
def pad_channels() -> onnx.ModelProto:
    b = image()
    x = b.add("Pad", b.add("Relu", b.conv("x", 3, 8)), b.constant(np.array([0, 2, 0, 0, 0, 1, 0, 0])))
    return head(b, b.conv(x, 11, 4), 4)


@graph
def squeeze_unsqueeze() -> onnx.ModelProto:
    b = image()
    x = b.add("GlobalAveragePool", b.add("Relu", b.conv("x", 3, 8)))
    x = b.add("Squeeze", x, b.constant(np.array([2, 3])))
    x = b.add("Tanh", b.gemm(x, 8, 6))
    x = b.add("Unsqueeze", x, b.constant(np.array([1])))
    return b.finish(b.add("MatMul", x, b.weight(6, 4)))


@graph
def identity_and_dropout() -> onnx.ModelProto:
    b = image()
    x = b.add("Dropout", b.add("Identity", b.add("Relu", b.conv("x", 3, 8))), outputs=1)
    return head(b, x, 8)


@graph
def resize_scales() -> onnx.ModelProto:
    b = image()
    scales = b.constant(np.array([1, 1, 2, 2], dtype=np.float32))
    x = b.add("Resize", b.add("Relu", b.conv("x", 3, 8)), "", scales, mode="nearest")
    return head(b, b.conv(x, 8, 4), 4, 256)


@graph
def resize_sizes() -> onnx.ModelProto:
    b = Builder([1, 3, 8, 8])
    sizes = b.constant(np.array([1, 8, 12, 12]))
    x = b.add("Resize", b.add("Relu", b.conv("x", 3, 8)), "", "", sizes, mode="linear")
    return head(b, b.conv(x, 8, 4), 4, 144)


@graph
def expand_gate() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    gate = b.add("Expand", b.add("GlobalMaxPool", x), b.constant(np.array([1, 8, 8, 8])))
    return head(b, b.conv(b.add("Mul", x, gate), 8, 4), 4)


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
def channel_shuffle() -> onnx.ModelProto:
    b = image()
    x = b.add("Reshape", b.add("Relu", b.conv("x", 3, 8)), b.constant(np.array([0, 2, 4, 8, 8])))
    x = b.add("Reshape", b.add("Transpose", x, perm=[0, 2, 1, 3, 4]), b.constant(np.array([0, -1, 8, 8])))
    return head(b, b.conv(x, 8, 4), 4)


@graph
def split_process_concat_shuffle() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    for _ in range(2):
        b.add("Split", x, b.constant(np.array([4, 4])), outputs=2, axis=1)
        first, second = b.nodes[-1].output
        x = b.add("Concat", first, b.add("Relu", b.conv(second, 4, 4)), axis=1)
        x = b.add("Reshape", x, b.constant(np.array([0, 2, 4, 8, 8])))
        x = b.add("Transpose", x, perm=[0, 2, 1, 3, 4])
        x = b.add("Reshape", x, b.constant(np.array([0, 8, 8, 8])))
    return head(b, b.conv(x, 8, 4), 4)


@graph
def unknown_operator_beside() -> onnx.ModelProto:
    """The branch with cumulative sums over channels stays; the one beside it is narrowed."""
    b = image()
    left = b.add("CumSum", b.conv("x", 3, 6), b.constant(np.array(1)))
    right = b.add("Relu", b.conv("x", 3, 8))
    return head(b, b.add("Add", b.conv(left, 6, 4), b.conv(right, 8, 4)), 4)


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
