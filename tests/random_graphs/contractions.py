"""Blocks of convolutions, products and attention."""

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from random_graphs.broadcasts import added
from random_graphs.sketch import LARGEST_SIDE, WIDEST, Sketch, Stream


def convolution(s: Sketch, x: Stream) -> Stream:
    """Kernel 1 or 3, stride, dilation, padding by name or by number, with or without a bias."""
    kernel = s.pick(1, 3)
    stride = s.pick(1, 2) if x.size > 2 else 1
    dilation = s.pick(1, 2) if kernel == 3 else 1
    attributes: dict[str, Any] = {"strides": [stride] * 2, "dilations": [dilation] * 2}
    if dilation == 1 and s.flag():
        attributes["auto_pad"] = s.pick("SAME_UPPER", "SAME_LOWER")
    else:
        attributes["pads"] = [dilation * (kernel // 2)] * 4
    return s.conv(x, s.width(), kernel, bias=s.flag(), **attributes)


def depthwise(s: Sketch, x: Stream) -> Stream:
    """One filter or two a channel, then a pointwise convolution or none."""
    multiplier = s.pick(1, 2)
    y = s.conv(x, x.channels * multiplier, 3, bias=s.flag(), group=x.channels)
    return s.conv(y, s.width()) if y.channels > WIDEST or s.flag() else y


def grouped_convolution(s: Sketch, x: Stream) -> Stream:
    """Two to four groups, as wide at the end as at the start or not; or other groups of the same channels behind."""
    groups = s.pick(2, 3, 4)
    if s.number(0, 3) == 3:
        x = s.fitted(x, 12)
        x = x.becomes(s.activation(s.conv(x, 12, group=groups).name), 12)
        groups = s.pick(2, 3, 4, 6)
    x = s.fitted(x, groups, 2 * groups)
    return s.conv(x, s.width(groups), s.pick(1, 3), bias=s.flag(), group=groups)


def transposed_convolution(s: Sketch, x: Stream) -> Stream:
    """Dense, grouped or depthwise; doubles the plane while it is small."""
    double = 2 * x.size <= LARGEST_SIDE and s.flag()
    form = s.pick("dense", "depthwise", "grouped")
    if form == "grouped":
        x = s.fitted(x, 2, 4)
    group = {"dense": 1, "depthwise": x.channels, "grouped": 2}[form]
    width = x.channels if form == "depthwise" else s.width(group)
    kernel, pads, stride = (2, 0, 2) if double else (3, 1, 1)
    spread = 1 / np.sqrt(x.channels // group * (1 if double else 9))
    operands = [x.name, s.b.weight(x.channels, width // group, kernel, kernel, scale=spread)]
    if s.flag():
        operands.append(s.b.weight(width, scale=0.3))
    y = s.b.add("ConvTranspose", *operands, strides=[stride] * 2, pads=[pads] * 4, group=group)
    return x.becomes(y, width, 2 * x.size if double else x.size)


def shared_weight(s: Sketch, x: Stream) -> Stream:
    """Use one weight twice, one behind the other or side by side."""
    if x.kind == "tokens":
        weight = s.matrix(x.channels, x.channels)
        first = s.b.add("MatMul", x.name, weight)
        second = s.b.add("MatMul", s.activation(first), weight)
    else:
        weight = s.b.weight(x.channels, x.channels, 1, 1)
        first = s.b.add("Conv", x.name, weight, s.b.weight(x.channels, scale=0.3))
        second = s.b.add("Conv", s.activation(first), weight)
    return x.becomes(s.b.add("Add", first, second) if s.flag() else second)


def shared_bias(s: Sketch, x: Stream) -> Stream:
    """Use one bias in two convolutions."""
    width = s.width()
    bias = s.b.weight(width, scale=0.3)
    first = s.b.add("Conv", x.name, s.b.weight(width, x.channels, 1, 1), bias)
    second = s.b.add("Conv", s.activation(first), s.b.weight(width, width, 1, 1), bias)
    return x.becomes(second, width)


def weight_through_nodes(s: Sketch, x: Stream) -> Stream:
    """Take the weight from a Constant node, an Identity, a Transpose or a Reshape."""
    width = s.width()
    if x.kind == "tokens":
        form = s.pick("constant", "transpose", "reshape")
        values = s.b.random.normal(0, 1 / np.sqrt(x.channels), (x.channels, width)).astype(np.float32)
        turned = {"constant": values, "transpose": values.T, "reshape": values.reshape(-1)}[form]
        weight = _constant_node(s, turned) if s.flag() else s.b.constant(np.ascontiguousarray(turned))
        if form == "transpose":
            weight = s.b.add("Transpose", s.b.add("Identity", weight), perm=[1, 0])
        elif form == "reshape":
            weight = s.b.add("Reshape", weight, s.ints(x.channels, width))
        return x.becomes(s.b.add("MatMul", x.name, weight), width)
    values = s.b.random.normal(0, 1 / np.sqrt(x.channels), (width, x.channels, 1, 1)).astype(np.float32)
    weight = _constant_node(s, values)
    if s.flag():
        weight = s.b.add("Identity", weight)
    return x.becomes(s.b.add("Conv", x.name, weight, s.b.weight(width, scale=0.3)), width)


def _constant_node(s: Sketch, values: Any) -> str:
    name = f"k{len(s.b.nodes)}"
    tensor = numpy_helper.from_array(np.ascontiguousarray(values))
    s.b.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
    return name


def fully_connected(s: Sketch, x: Stream) -> Stream:
    """A MatMul over the last axis, with or without a bias."""
    return s.linear(x, s.width(), bias=s.flag())


def mixed_tokens(s: Sketch, x: Stream) -> Stream:
    """Multiply by a constant matrix from the left: channels pass."""
    length = s.number(3, 8)
    return x.becomes(s.b.add("MatMul", s.b.weight(length, x.size), x.name), size=length)


def convolved_tokens(s: Sketch, x: Stream) -> Stream:
    """A one-dimensional convolution between two transposes."""
    width, kernel = s.width(), s.pick(1, 3)
    turned = s.b.add("Transpose", x.name, perm=[0, 2, 1])
    y = s.b.add("Conv", turned, s.b.weight(width, x.channels, kernel), pads=[kernel // 2] * 2)
    return x.becomes(s.b.add("Transpose", s.activation(y), perm=[0, 2, 1]), width)


def attention(s: Sketch, x: Stream) -> Stream:
    """Queries, keys and values from one weight or three, heads, softmax, output projection, with or without a sum."""
    heads, dim = s.number(1, 3), s.number(2, 4)
    inner = heads * dim
    queries, keys, values = s.pick(_separate, _fused_split, _fused_gather, _interleaved)(s, x, heads, dim)
    if s.flag():
        queries = s.b.add("Mul", queries, s.scalar(dim**-0.5))
    keys = s.b.add("Transpose", keys, perm=[0, 1, 3, 2])
    scores = s.b.add("MatMul", queries, keys)
    if s.flag():
        scores = s.b.add("Add", scores, s.b.weight(1, s.pick(1, heads), x.size, x.size))
    mixed = s.b.add("MatMul", s.b.add("Softmax", scores, axis=3), values)
    joined = s.reshape(s.b.add("Transpose", mixed, perm=[0, 2, 1, 3]), [x.size, inner])
    return added(s, x, s.linear(Stream(joined, "tokens", inner, x.size), x.channels))


def _heads(s: Sketch, x: Stream, heads: int, dim: int) -> str:
    return s.b.add("Transpose", s.reshape(x.name, [x.size, heads, dim]), perm=[0, 2, 1, 3])


def _separate(s: Sketch, x: Stream, heads: int, dim: int) -> list[str]:
    if s.flag():
        return [_heads(s, s.linear(x, heads * dim), heads, dim) for _ in range(3)]
    # One head of keys and values for all queries.
    first = _heads(s, s.linear(x, heads * dim), heads, dim)
    return [first, *(_heads(s, s.linear(x, dim), 1, dim) for _ in range(2))]


def _fused_split(s: Sketch, x: Stream, heads: int, dim: int) -> list[str]:
    inner = heads * dim
    parts = s.split(s.linear(x, 3 * inner).name, [inner] * 3, 2)
    return [_heads(s, x.becomes(part, inner), heads, dim) for part in parts]


def _fused_gather(s: Sketch, x: Stream, heads: int, dim: int) -> list[str]:
    y = s.reshape(s.linear(x, 3 * heads * dim).name, [x.size, 3, heads, dim])
    y = s.b.add("Transpose", y, perm=[2, 0, 3, 1, 4])
    if s.flag():
        return [s.b.add("Gather", y, s.b.constant(np.array(i)), axis=0) for i in range(3)]
    return [s.rank_change("Squeeze", part, [0]) for part in s.split(y, [1] * 3, 0)]


def _interleaved(s: Sketch, x: Stream, heads: int, dim: int) -> list[str]:
    y = s.b.add("Transpose", s.reshape(s.linear(x, 3 * heads * dim).name, [x.size, heads, 3 * dim]), perm=[0, 2, 1, 3])
    return s.split(y, [dim] * 3, 3)


def feed_forward(s: Sketch, x: Stream) -> Stream:
    """Two layers with an activation between, with or without a sum."""
    inner = s.linear(x, s.width())
    inner = inner.becomes(s.activation(inner.name))
    return added(s, x, s.linear(inner, x.channels))
