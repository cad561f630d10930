"""Pooling, reductions and normalisations."""

import numpy as np
import onnx

from graphs.builder import Builder, graph, head, image


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
def sums_over_channels() -> onnx.ModelProto:
    """Zeros do not count in a sum or a norm, so that the channels under it may go."""
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    norm = b.add("ReduceL2", x, axes=[1], keepdims=1)
    total = b.add("ReduceSum", b.conv("x", 3, 6), b.constant(np.array([1])), keepdims=1)
    return head(b, b.add("Add", norm, total), 1)


@graph
def lp_normalisation() -> onnx.ModelProto:
    b = image()
    x = b.add("LpNormalization", b.add("Relu", b.conv("x", 3, 8)), axis=1, p=2)
    return head(b, b.conv(x, 8, 4), 4)


@graph
def instance_normalisation() -> onnx.ModelProto:
    b = image()
    x = b.add("InstanceNormalization", b.conv("x", 3, 8), b.positive(8), b.weight(8))
    return head(b, b.conv(b.add("Relu", x), 8, 4), 4)


@graph
def group_normalisation() -> onnx.ModelProto:
    b = image(opset=21)
    x = b.add("GroupNormalization", b.conv("x", 3, 8), b.positive(8), b.weight(8), num_groups=4)
    b.declare(x, ["N", 8, 8, 8])
    return head(b, b.conv(b.add("Relu", x), 8, 4), 4)


@graph
def group_normalisation_written_out() -> onnx.ModelProto:
    b = image()
    x = b.add("Reshape", b.conv("x", 3, 8), b.constant(np.array([0, 4, -1])))
    x = b.add("InstanceNormalization", x, b.constant(np.ones(4, np.float32)), b.constant(np.zeros(4, np.float32)))
    x = b.add("Reshape", x, b.constant(np.array([0, 8, 8, 8])))
    x = b.add("Add", b.add("Mul", x, b.positive(8, 1, 1)), b.weight(8, 1, 1))
    return head(b, b.conv(b.add("Relu", x), 8, 4), 4)


@graph
def softmax_over_tokens() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    x = b.add("Softmax", b.add("MatMul", "x", b.weight(10, 12)), axis=1)
    return b.finish(b.add("MatMul", x, b.weight(12, 5)))


@graph
def statistics_beside_channels() -> onnx.ModelProto:
    """Sorting, accumulating and masking along the tokens leaves the channels free."""
    b = Builder(["N", 7, 10])
    x = b.add("CumSum", b.add("MatMul", "x", b.weight(10, 12)), b.constant(np.array(1)))
    x = b.add("TopK", x, b.constant(np.array([5])), axis=1, outputs=2)
    return b.finish(b.add("MatMul", x, b.weight(12, 5)))


@graph
def sampled_planes() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    grid = b.constant(b.random.uniform(-0.9, 0.9, (2, 4, 4, 2)).astype(np.float32))
    b.inputs[0].type.tensor_type.shape.dim[0].dim_value = 2
    return head(b, b.conv(b.add("GridSample", x, grid), 8, 4), 4, 16)


@graph
def layer_normalisation() -> onnx.ModelProto:
    """The width of the stream stays unless inexact removal is allowed; the hidden layer is narrowed."""
    b = Builder(["N", 7, 10])
    x = b.add("MatMul", "x", b.weight(10, 12))
    x = b.add("LayerNormalization", x, b.positive(12), b.weight(12, scale=0.5), axis=-1)
    x = b.add("Relu", b.add("MatMul", x, b.weight(12, 8)))
    return b.finish(b.add("MatMul", x, b.weight(8, 5)))


@graph
def layer_normalisation_written_out() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    x = b.add("MatMul", "x", b.weight(10, 12))
    centred = b.add("Sub", x, b.add("ReduceMean", x, axes=[-1]))
    variance = b.add("ReduceMean", b.add("Pow", centred, b.constant(np.float32(2))), axes=[-1])
    x = b.add("Div", centred, b.add("Sqrt", b.add("Add", variance, b.constant(np.float32(1e-5)))))
    x = b.add("Add", b.add("Mul", x, b.positive(12)), b.weight(12, scale=0.5))
    x = b.add("Relu", b.add("MatMul", x, b.weight(12, 8)))
    return b.finish(b.add("MatMul", x, b.weight(8, 5)))


@graph
def root_mean_square_normalisation() -> onnx.ModelProto:
    b = Builder(["N", 7, 10], opset=23)
    x = b.add("MatMul", "x", b.weight(10, 12))
    x = b.add("RMSNormalization", x, b.positive(12), axis=-1)
    x = b.add("Relu", b.add("MatMul", x, b.weight(12, 8)))
    return b.finish(b.add("MatMul", x, b.weight(8, 5)))


@graph
def softmax_over_channels() -> onnx.ModelProto:
    b = image()
    x = b.add("Softmax", b.conv("x", 3, 8), axis=1)
    return head(b, b.add("Relu", b.conv(x, 8, 6)), 6)
