"""Blocks that move, split and join channels."""

from collections.abc import Sequence

import numpy as np

from random_graphs.contractions import attention
from random_graphs.sketch import WIDEST, Sketch, Stream


def selection(s: Sketch, x: Stream) -> Stream:
    """Where, by the sign of the data or by a constant mask over the channels."""
    other = s.b.add("Mul", x.name, s.scalar(0.1)) if s.flag() else s.project(x, x.channels).name
    if s.flag():
        mask = x.spread(s.b.random.random(x.channels) < 0.5)
        return x.becomes(s.b.add("Where", s.b.constant(mask), x.name, other))
    return x.becomes(s.b.add("Where", s.b.add("Greater", x.name, other), x.name, other))


def concatenation(s: Sketch, x: Stream) -> Stream:
    """Put branches beside each other: blocks, the input itself, the graph's input, the same tensor twice."""
    parts = [s.project(s.branch(x, 1), s.number(2, 5))]
    for _ in range(s.number(1, 2)):
        form = s.pick("branch", "input", "again", "source")
        if form == "input":
            parts.append(x)
        elif form == "again":
            parts.append(parts[0])
        elif form == "source" and s.source.kind == x.kind and s.source.size == x.size:
            parts.append(s.source)
        else:
            parts.append(s.project(x, s.number(2, 5)))
    return _concat(s, x, parts)


def _concat(s: Sketch, x: Stream, parts: Sequence[Stream]) -> Stream:
    total = sum(p.channels for p in parts)
    y = x.becomes(s.b.add("Concat", *(p.name for p in parts), axis=x.axis), total)
    return y if total <= WIDEST else s.project(y, s.width())


def split(s: Sketch, x: Stream) -> Stream:
    """Split in two or three, evenly or not; parts pass or are worked on, and come together in any order."""
    if s.flag():
        count = s.number(2, 3)
        x = s.fitted(x, count, 2 * count)
        sizes = [x.channels // count] * count
    else:
        first = s.number(1, x.channels - 1)
        sizes = [first, x.channels - first]
    parts = [x.becomes(name, size) for name, size in zip(s.split(x.name, sizes, x.axis), sizes, strict=True)]
    together = s.pick("concat", "sum", "gate")
    if together != "concat" and len(set(sizes)) == 1:
        gate = s.b.add("Sigmoid", parts[0].name) if together == "gate" else parts[0].name
        return parts[1].becomes(s.b.add("Mul" if together == "gate" else "Add", gate, parts[1].name))
    parts = [p if s.flag() else p.becomes(s.activation(p.name)) for p in parts]
    parts = [p if s.flag() else s.project(p, p.channels) for p in parts]
    return _concat(s, x, parts if s.flag() else parts[::-1])


def slice_of_channels(s: Sketch, x: Stream) -> Stream:
    """A part of the channels, forwards, backwards or every other one, alone or beside the whole."""
    step = s.pick(1, -1, 2) if s.opset >= 10 else 1
    start = s.number(0, x.channels - 3)
    end = s.number(start + 3, x.channels)
    if step > 0:
        part = s.slice(x.name, start - (x.channels if s.flag() else 0), end, x.axis, step)
    else:
        part = s.slice(x.name, end - 1, start - 1 if start else -(2**31), x.axis, step)
    y = x.becomes(part, -(-(end - start) // abs(step)))
    return _concat(s, x, [s.project(x, 3), y]) if s.flag() else y


def gather_of_channels(s: Sketch, x: Stream) -> Stream:
    """A permutation of the channels, some of them, or some of them twice; indices may count from the end."""
    order = s.b.random.permutation(x.channels)
    form = s.pick("permuted", "some", "repeated")
    if form == "some":
        order = order[: max(2, x.channels // 2)]
    elif form == "repeated":
        order = s.b.random.integers(0, x.channels, x.channels)
    if s.opset >= 11 and s.flag():
        order = order - x.channels
    return x.becomes(s.b.add("Gather", x.name, s.b.constant(order.astype(np.int64)), axis=x.axis), len(order))


def gather_in_rows(s: Sketch, x: Stream) -> Stream:
    """Pick channels by a matrix of indices, and lay them out again."""
    rows = s.b.constant(s.b.random.permutation(x.channels)[: x.channels // 2 * 2].reshape(2, -1).astype(np.int64))
    width = x.channels // 2 * 2
    y = s.b.add("Gather", x.name, rows, axis=x.axis)
    return x.becomes(s.reshape(y, x.becomes(y, width).dims), width)


def channel_shuffle(s: Sketch, x: Stream) -> Stream:
    """Reshape, transpose, reshape."""
    groups = s.pick(2, 3, 4)
    x = s.fitted(x, groups, 2 * groups)
    rest = x.channels // groups
    if x.kind == "tokens":
        y = s.reshape(x.name, [x.size, groups, rest])
        y = s.b.add("Transpose", y, perm=[0, 1, 3, 2])
    else:
        y = s.reshape(x.name, [groups, rest, x.size, x.size])
        y = s.b.add("Transpose", y, perm=[0, 2, 1, 3, 4])
    return x.becomes(s.reshape(y, x.dims))


def shuffle_unit(s: Sketch, x: Stream) -> Stream:
    """Work on half of the channels, put the halves beside each other, shuffle."""
    x = s.fitted(x, 2, 4)
    half = x.channels // 2
    left, right = (x.becomes(name, half) for name in s.split(x.name, [half] * 2, 1))
    right = s.project(s.branch(right, 1), half)
    y = x.becomes(s.b.add("Concat", left.name, s.activation(right.name), axis=1))
    y = y.becomes(s.reshape(y.name, [2, half, x.size, x.size]))
    return x.becomes(s.reshape(s.b.add("Transpose", y.name, perm=[0, 2, 1, 3, 4]), x.dims))


def padding(s: Sketch, x: Stream) -> Stream:
    """Zeros around the plane, then a convolution without padding; or zeros behind the channels."""
    if s.flag():
        before, after = s.number(0, 2), s.number(0, 2)
        pads = [0] * (2 * x.rank)
        pads[x.axis], pads[x.axis + x.rank] = before, after
        return _concat(s, x, [x.becomes(s.pad(x.name, pads), x.channels + before + after)])
    if x.kind == "tokens":
        y = s.pad(x.name, [0, 1, 0, 0, 1, 0])
        return x.becomes(s.slice(y, 1, x.size + 1, 1))
    y = s.pad(x.name, [0, 0, 1, 1, 0, 0, 1, 1])
    return s.conv(x.becomes(y), s.width(), 3, pads=[0] * 4)


def depth_to_space(s: Sketch, x: Stream) -> Stream:
    """Four channels become a square of pixels, in either order."""
    x = s.fitted(x, 4, 8)
    mode = {"mode": s.pick("DCR", "CRD")} if s.opset >= 11 else {}
    y = x.becomes(s.b.add("DepthToSpace", x.name, blocksize=2, **mode), x.channels // 4, 2 * x.size)
    return s.conv(y, s.width(), 3, strides=[2, 2])


def space_to_depth(s: Sketch, x: Stream) -> Stream:
    """A square of pixels becomes four channels."""
    y = x.becomes(s.b.add("SpaceToDepth", x.name, blocksize=2), 4 * x.channels, x.size // 2)
    return s.conv(y, s.width())


def channels_last(s: Sketch, x: Stream) -> Stream:
    """Transpose, a fully connected layer a pixel, transpose back."""
    width = s.width()
    y = s.b.add("Transpose", x.name, perm=[0, 2, 3, 1])
    y = s.b.add("MatMul", y, s.matrix(x.channels, width))
    y = s.activation(s.b.add("Add", y, s.b.weight(width, scale=0.3)))
    return x.becomes(s.b.add("Transpose", y, perm=[0, 3, 1, 2]), width)


def reshape_round_trip(s: Sketch, x: Stream) -> Stream:
    """Flatten the plane and restore it; for tokens, fold the sequence into the batch and unfold it."""
    if x.kind == "image":
        y = s.reshape(x.name, [x.channels, x.size * x.size])
        return x.becomes(s.reshape(s.activation(y), x.dims))
    width = s.width()
    y = s.b.add("Reshape", x.name, s.ints(-1, x.channels))
    return x.becomes(s.b.add("Reshape", s.b.gemm(y, x.channels, width), s.ints(-1, x.size, width)), width)


def reshape_to_computed(s: Sketch, x: Stream) -> Stream:
    """Take the whole target, the channels included, from the shape of the data."""
    shape = s.b.add("Shape", x.name)
    if x.kind == "image":
        target = s.b.add("Concat", s.slice(shape, 0, 2, 0), s.ints(-1), axis=0)
        flat = s.b.add("Reshape", x.name, target)
        return x.becomes(s.b.add("Reshape", s.activation(flat), shape))
    sizes = [s.b.add("Gather", shape, s.ints(i), axis=0) for i in range(3)]
    target = s.b.add("Concat", *sizes, axis=0)
    return x.becomes(s.b.add("Reshape", s.activation(x.name), target))


def resize(s: Sketch, x: Stream) -> Stream:
    """Twice as large by nearest neighbours or linearly, by scales or by computed sizes."""
    scales = s.b.constant(np.array([1, 1, 2, 2], dtype=np.float32))
    mode = s.pick("nearest", "linear")
    # Opset 11 asks for an empty tensor where later ones let an operand be absent.
    absent = s.b.constant(np.zeros(0, np.float32)) if s.opset == 11 else ""
    if s.opset < 10:
        y = s.b.add("Upsample", x.name, scales, mode=mode)
    elif s.opset < 11:
        y = s.b.add("Resize", x.name, scales, mode=mode)
    elif s.flag():
        y = s.b.add("Resize", x.name, absent, scales, mode=mode)
    else:
        sizes = s.b.add("Concat", s.slice(s.b.add("Shape", x.name), 0, 2, 0), s.ints(2 * x.size, 2 * x.size), axis=0)
        y = s.b.add("Resize", x.name, absent, absent, sizes, mode=mode)
    y = x.becomes(y, size=2 * x.size)
    return s.conv(y, s.width(), 3, strides=[2, 2])


def spread_gate(s: Sketch, x: Stream) -> Stream:
    """Expand or tile the plane's maximum to the whole plane, and multiply."""
    gate = s.b.add("Sigmoid", s.b.add("GlobalMaxPool", x.name))
    form = s.pick("expand", "tile", "like", "ones")
    if form == "tile":
        gate = s.b.add("Tile", gate, s.ints(1, 1, x.size, x.size))
    elif form == "expand":
        gate = s.b.add("Expand", gate, s.ints(1, x.channels, x.size, x.size))
    elif form == "like":
        gate = s.b.add("Expand", gate, s.b.add("Shape", x.name))
    else:
        gate = s.b.add("Expand", gate, s.ints(1, 1, x.size, x.size))
    return x.becomes(s.b.add("Mul", x.name, gate))


def tiled_channels(s: Sketch, x: Stream) -> Stream:
    """The same channels twice, one behind the other, then a contraction."""
    repeats = [1] * x.rank
    repeats[x.axis] = 2
    y = x.becomes(s.b.add("Tile", x.name, s.ints(*repeats)), 2 * x.channels)
    return s.project(y, s.width())


def squeezed(s: Sketch, x: Stream) -> Stream:
    """An axis of size one comes and goes around a pointwise function."""
    axis = s.number(1, x.rank)
    y = s.activation(s.rank_change("Unsqueeze", x.name, [axis]))
    return x.becomes(s.rank_change("Squeeze", y, [axis]))


def patches(s: Sketch, x: Stream) -> Stream:
    """Each pixel of the plane becomes a token."""
    count = x.size * x.size
    y = s.b.add("Transpose", s.reshape(x.name, [x.channels, count]), perm=[0, 2, 1])
    return Stream(y, "tokens", x.channels, count)


def pixels(s: Sketch, x: Stream) -> Stream:
    """Each token becomes a pixel of a square."""
    side = int(np.sqrt(x.size))
    y = s.b.add("Transpose", x.name, perm=[0, 2, 1])
    return Stream(s.reshape(y, [x.channels, side, side]), "image", x.channels, side)


def class_token(s: Sketch, x: Stream) -> Stream:
    """Put a learned token in front; attention mixes it with the others."""
    token = s.b.weight(1, 1, x.channels, scale=1)
    target = s.b.add("Concat", s.batch_of(x.name), s.ints(1, x.channels), axis=0)
    token = s.b.add("Expand", token, target)
    return attention(s, x.becomes(s.b.add("Concat", token, x.name, axis=1), size=x.size + 1))
