"""Convolutions and products."""

import numpy as np
import onnx

from graphs.builder import Builder, graph, head, image


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
def conv_grouped_one_output_a_block() -> onnx.ModelProto:
    """Whole blocks go, and the convolution loses groups."""
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("Relu", b.conv(x, 8, 4, group=4))
    return head(b, b.conv(x, 4, 5, 1), 5)


@graph
def conv_grouped_twice() -> onnx.ModelProto:
    """The finer blocks of the second convolution nest in those of the first."""
    b = image()
    x = b.add("Relu", b.conv("x", 3, 12))
    x = b.conv(b.add("Relu", b.conv(x, 12, 12, group=2)), 12, 12, group=4)
    return head(b, b.conv(x, 12, 4, 1), 4)


@graph
def conv_transpose_grouped() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("ConvTranspose", x, b.weight(8, 3, 2, 2), b.weight(6), strides=[2, 2], group=2)
    return head(b, b.conv(b.add("Relu", x), 6, 4), 4, 256)


@graph
def conv_transpose_3d() -> onnx.ModelProto:
    b = Builder(["N", 2, 3, 3, 3])
    x = b.add("Relu", b.add("ConvTranspose", "x", b.weight(2, 6, 2, 2, 2), b.weight(6)))
    x = b.add("Conv", x, b.weight(4, 6, 4, 4, 4), b.weight(4))
    return b.finish(b.gemm(b.add("Flatten", x), 4, 5))


@graph
def einsum_layers() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    x = b.add("Relu", b.add("Einsum", "x", b.weight(10, 12), equation="btc,cd->btd"))
    return b.finish(b.add("Einsum", x, b.weight(12, 5), equation="...d,de"))


@graph
def einsum_three_operands() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    left, right = (b.add("MatMul", "x", b.weight(10, 6)) for _ in range(2))
    return b.finish(b.add("Einsum", left, right, b.weight(6, 4), equation="btc,bsc,cd->btsd"))


@graph
def einsum_outer_product() -> onnx.ModelProto:
    b = Builder(["N", 10])
    left, right = b.gemm("x", 10, 4), b.gemm("x", 10, 6)
    x = b.add("Einsum", left, right, equation="bi,bj->bij")
    return b.finish(b.add("MatMul", x, b.weight(6, 5)))


@graph
def einsum_sums_an_operand() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    x = b.add("Relu", b.add("MatMul", "x", b.weight(10, 12)))
    return b.finish(b.add("Einsum", x, b.weight(7, 5), equation="btc,te->be"))


@graph
def fused_convolution() -> onnx.ModelProto:
    b = image()
    x = b.conv("x", 3, 8)
    operands = [x, b.weight(8, 8, 3, 3), b.weight(8), x]
    fused = b.add("FusedConv", *operands, pads=[1] * 4, activation="Relu", domain="com.microsoft")
    b.declare(fused, [None, 8, 8, 8])
    return head(b, b.conv(fused, 8, 4), 4)


@graph
def fused_matmul() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    x = b.add("MatMul", "x", b.weight(10, 12))
    fused = b.add("FusedMatMul", x, b.weight(5, 12), transB=1, alpha=0.5, domain="com.microsoft")
    b.declare(fused, [None, 7, 5])
    return b.finish(fused)


@graph
def conv_grouped_across_branches() -> onnx.ModelProto:
    """Branches of three and of five channels enter two blocks of four."""
    b = image()
    x = b.add("Relu", b.conv("x", 3, 6))
    x = b.add("Concat", b.conv(x, 6, 3), b.conv(x, 6, 5), axis=1)
    return head(b, b.conv(x, 8, 4, group=2), 4)
