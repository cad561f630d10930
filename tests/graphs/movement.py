"""Reshapes, transposes, splits, slices, shuffles."""

import numpy as np
import onnx

from graphs.builder import Builder, graph, head, image


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
def split_by_count() -> onnx.ModelProto:
    b = image(opset=18)
    b.add("Split", b.conv("x", 3, 10), outputs=2, axis=1, num_outputs=2)
    first, second = b.nodes[-1].output
    x = b.add("Concat", b.add("Relu", first), b.add("Sigmoid", second), axis=1)
    return head(b, b.conv(x, 10, 4), 4)


@graph
def halves_by_computed_bounds() -> onnx.ModelProto:
    """As a chunk is exported: the bounds come from the number of channels, divided by two."""
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    count = b.add("Gather", b.add("Shape", x), b.constant(np.array([1])), axis=0)
    half = b.add("Div", b.add("Add", count, b.constant(np.array([1]))), b.constant(np.array([2])))
    axes = b.constant(np.array([1]))
    first = b.add("Slice", x, b.constant(np.array([0])), half, axes)
    second = b.add("Slice", x, half, b.add("Mul", half, b.constant(np.array([2]))), axes)
    return head(b, b.add("Concat", b.conv(first, 4, 3), b.conv(second, 4, 3), axis=1), 6)


@graph
def flatten_to_a_computed_number() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    batch = b.add("Gather", b.add("Shape", x), b.constant(np.array([0])), axis=0)
    x = b.add("Reshape", x, b.add("Concat", batch, b.constant(np.array([512])), axis=0))
    return b.finish(b.gemm(x, 512, 5))


@graph
def number_of_channels_in_arithmetic() -> onnx.ModelProto:
    """A scale from the number of channels stays what it was."""
    b = image()
    x = b.conv("x", 3, 8)
    count = b.add("Gather", b.add("Shape", x), b.constant(np.array([1])), axis=0)
    scale = b.add("Sqrt", b.add("Cast", count, to=1))
    return head(b, b.add("Relu", b.add("Div", x, scale)), 8)


@graph
def expand_to_the_shape_of_another() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    gate = b.add("Expand", b.add("Sigmoid", b.add("ReduceMean", "x", axes=[1, 2, 3])), b.add("Shape", x))
    return head(b, b.conv(b.add("Mul", x, gate), 8, 4), 4)


@graph
def tile_channels() -> onnx.ModelProto:
    b = image()
    x = b.add("Tile", b.add("Relu", b.conv("x", 3, 4)), b.constant(np.array([1, 2, 1, 1])))
    return head(b, b.conv(x, 8, 4), 4)


@graph
def resize_to_computed_sizes() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    leading = b.add("Slice", b.add("Shape", x), b.constant(np.array([0])), b.constant(np.array([2])))
    sizes = b.add("Concat", leading, b.constant(np.array([12, 12])), axis=0)
    return head(b, b.conv(b.add("Resize", x, "", "", sizes, mode="nearest"), 8, 4), 4, 144)


@graph
def window_partition() -> onnx.ModelProto:
    b = image()
    x = b.add("Transpose", b.add("Relu", b.conv("x", 3, 8)), perm=[0, 2, 3, 1])
    x = b.add("Reshape", x, b.constant(np.array([-1, 2, 4, 2, 4, 8])))
    x = b.add("Reshape", b.add("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), b.constant(np.array([-1, 16, 8])))
    x = b.add("Relu", b.add("MatMul", x, b.weight(8, 6)))
    x = b.add("Reshape", x, b.constant(np.array([-1, 2, 2, 4, 4, 6])))
    x = b.add("Reshape", b.add("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), b.constant(np.array([-1, 384])))
    return b.finish(b.gemm(x, 384, 5))


@graph
def pixel_shuffle() -> onnx.ModelProto:
    b = image()
    x = b.add("DepthToSpace", b.add("Relu", b.conv("x", 3, 16)), blocksize=2, mode="CRD")
    return head(b, b.conv(x, 4, 3), 3, 256)


@graph
def space_to_depth() -> onnx.ModelProto:
    b = image()
    x = b.add("SpaceToDepth", b.add("Relu", b.conv("x", 3, 4)), blocksize=2)
    return head(b, b.conv(x, 16, 3), 3, 16)


@graph
def where_mask() -> onnx.ModelProto:
    b = image()
    x, y = b.conv("x", 3, 8), b.conv("x", 3, 8)
    return head(b, b.conv(b.add("Where", b.add("Greater", x, y), x, b.add("Mul", y, y)), 8, 4), 4)


@graph
def embedding_of_tokens() -> onnx.ModelProto:
    """The table's width is an axis like any other; its rows stay."""
    b = Builder(["N", 7])
    tokens = b.add("Cast", b.add("Abs", b.add("Mul", "x", b.constant(np.float32(3)))), to=7)
    tokens = b.add("Mod", tokens, b.constant(np.array(11)))
    x = b.add("Add", b.add("Gather", b.weight(11, 12), tokens), b.weight(7, 12))
    x = b.add("Relu", b.add("MatMul", x, b.weight(12, 8)))
    return b.finish(b.add("MatMul", x, b.weight(8, 5)))
