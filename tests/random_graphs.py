"""Random small graphs for property-based tests.

`random_graphs()` draws a whole model: a stem, a few blocks of the table `BLOCKS`, an end, sometimes a second output.
What is carried from block to block is either an image, N × channels × size × size, or tokens, N × size × channels.
Structure comes from draws, so that a failing graph shrinks; weights come from one drawn seed, or from the next ones
until every output depends on the input; a structure that never gets there, about one in a thousand, is not drawn. A
block is a function and a row of the table.

Two things are left out on purpose. Operators that jump (Floor, Round, Sign, thresholds) would turn a rounding
difference into a wrong answer. Statistics whose average is constant (a normalised plane, averaged over the plane) would
make an output that no longer depends on the input: an activation stands behind each of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from graphs import Builder
from hypothesis import reject
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.channels.rules import Family

Kind = Literal["image", "tokens"]
Value = TypeVar("Value")
Draw = Callable[[st.SearchStrategy[Any]], Any]

OPSETS = (17, 13, 18, 11, 20, 9)
NARROWEST, WIDEST = 3, 12
MOST_BLOCKS = 12
DEEPEST = 2
CLASSES = 5
SAMPLES = 4

# The smallest relative difference between outputs for different inputs, and how many weights are tried to reach it.
ALIVE = 1e-2
MOST_WEIGHTS = 8

# Larger planes and longer sequences only cost time.
LARGEST_SIDE = 8
MOST_TOKENS = 16


@dataclass(frozen=True)
class Stream:
    """What is carried from block to block: an image of `size` × `size`, or `size` tokens."""

    name: str
    kind: Kind
    channels: int
    size: int

    @property
    def axis(self) -> int:
        """The axis of the channels."""
        return 1 if self.kind == "image" else 2

    @property
    def rank(self) -> int:
        """The number of axes."""
        return 4 if self.kind == "image" else 3

    @property
    def plane(self) -> list[int]:
        """The axes beside batch and channels."""
        return [2, 3] if self.kind == "image" else [1]

    def becomes(self, name: str, channels: int | None = None, size: int | None = None) -> "Stream":
        """Return the stream behind a node."""
        return Stream(name, self.kind, channels or self.channels, size or self.size)

    def spread(self, values: Any) -> Any:
        """Return a vector over the channels in the shape in which it broadcasts to the stream."""
        return values.reshape(-1, 1, 1) if self.kind == "image" else values

    @property
    def dims(self) -> list[int]:
        """The shape without the batch."""
        plane = [self.size] * len(self.plane)
        return [self.channels, *plane] if self.kind == "image" else [*plane, self.channels]


class Sketch:
    """A graph under construction: a builder, the draws, and the spelling of operators that differs between opsets."""

    def __init__(self, draw: Draw, b: Builder, source: Stream) -> None:
        self.draw = draw
        self.b = b
        self.source = source
        self.depth = 0
        self.used: list[str] = []

    @property
    def opset(self) -> int:
        """The opset of the graph."""
        return self.b.opset

    def pick(self, *values: Value) -> Value:
        """Draw one of the values; the first is the simplest."""
        return self.draw(st.sampled_from(values))

    def number(self, low: int, high: int) -> int:
        """Draw an integer, the bounds included."""
        return self.draw(st.integers(low, high))

    def flag(self) -> bool:
        """Draw yes or no."""
        return self.draw(st.booleans())

    def width(self, multiple: int = 1) -> int:
        """Draw a number of channels."""
        return multiple * self.number(-(-NARROWEST // multiple), WIDEST // multiple)

    def ints(self, *values: int) -> str:
        """Add a constant of integers."""
        return self.b.constant(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """Add a constant number."""
        return self.b.constant(np.float32(value))

    def vector(self, x: Stream) -> str:
        """Add random numbers around one, one a channel, that broadcast to the stream."""
        return self.b.constant(x.spread(self.b.random.uniform(0.5, 1.5, x.channels).astype(np.float32)))

    def shift(self, x: Stream) -> str:
        """Add random numbers around zero, one a channel, that broadcast to the stream."""
        return self.b.constant(x.spread(self.b.random.normal(0, 0.3, x.channels).astype(np.float32)))

    def matrix(self, inputs: int, outputs: int) -> str:
        """Add the weight of a MatMul."""
        return self.b.weight(inputs, outputs, scale=1 / np.sqrt(inputs))

    def outputs(self) -> list[str]:
        """Return the outputs of the node added last."""
        return list(self.b.nodes[-1].output)

    def conv(self, x: Stream, width: int, kernel: int = 1, *, bias: bool = True, **attributes: Any) -> Stream:
        """Add a convolution; only its stride changes the plane's size."""
        shape = [width, x.channels // attributes.get("group", 1), kernel, kernel]
        operands = [x.name, self.b.weight(*shape)]
        if bias:
            operands.append(self.b.weight(width, scale=0.3))
        if "auto_pad" not in attributes:
            attributes.setdefault("pads", [kernel // 2] * 4)
        size = -(-x.size // attributes.get("strides", [1])[0])
        return x.becomes(self.b.add("Conv", *operands, **attributes), width, size)

    def linear(self, x: Stream, width: int, *, bias: bool = True) -> Stream:
        """Add a fully connected layer over the last axis of tokens."""
        y = self.b.add("MatMul", x.name, self.matrix(x.channels, width))
        if bias:
            operands = [y, self.b.weight(width, scale=0.3)]
            y = self.b.add("Add", *(operands if self.flag() else operands[::-1]))
        return x.becomes(y, width)

    def project(self, x: Stream, width: int) -> Stream:
        """Change the number of channels by the simplest contraction."""
        return self.conv(x, width) if x.kind == "image" else self.linear(x, width)

    def fitted(self, x: Stream, multiple: int, least: int = 0) -> Stream:
        """Return the stream if its channels are such a multiple, else project it to one that is."""
        if x.channels % multiple == 0 and least <= x.channels <= WIDEST:
            return x
        return self.project(x, max(self.width(multiple), -(-least // multiple) * multiple))

    def activation(self, name: str) -> str:
        """Add a drawn pointwise function without jumps."""
        op_type = self.pick(*[op for op, since in ACTIVATIONS.items() if since <= self.opset])
        return COMPOSED[op_type](self, name) if op_type in COMPOSED else self.b.add(op_type, name)

    def curved(self, name: str) -> str:
        """Add a function whose average over a normalised plane is not constant."""
        return self.b.add(self.pick("Relu", "Abs", "Elu"), name)

    def split(self, name: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Split in one of the forms that the opset knows."""
        even = len(set(sizes)) == 1
        implicit = even and self.flag()
        if self.opset < 13:
            self.b.add("Split", name, outputs=len(sizes), axis=axis, **({} if implicit else {"split": list(sizes)}))
        elif not implicit:
            self.b.add("Split", name, self.ints(*sizes), outputs=len(sizes), axis=axis)
        else:
            count = {"num_outputs": len(sizes)} if self.opset >= 18 else {}
            self.b.add("Split", name, outputs=len(sizes), axis=axis, **count)
        return self.outputs()

    def slice(self, name: str, start: int, end: int, axis: int, step: int = 1) -> str:
        """Slice along one axis."""
        if self.opset < 10:
            return self.b.add("Slice", name, starts=[start], ends=[end], axes=[axis])
        return self.b.add("Slice", name, *(self.ints(v) for v in (start, end, axis, step)))

    def pad(self, name: str, pads: Sequence[int]) -> str:
        """Pad with zeros."""
        if self.opset < 11:
            return self.b.add("Pad", name, pads=list(pads))
        return self.b.add("Pad", name, self.ints(*pads))

    def reduce(self, op_type: str, name: str, axes: Sequence[int], *, keepdims: int = 1) -> str:
        """Reduce over axes."""
        if self.opset < (13 if op_type == "ReduceSum" else 18):
            return self.b.add(op_type, name, axes=list(axes), keepdims=keepdims)
        return self.b.add(op_type, name, self.ints(*axes), keepdims=keepdims)

    def rank_change(self, op_type: str, name: str, axes: Sequence[int]) -> str:
        """Squeeze or Unsqueeze."""
        if self.opset < 13:
            return self.b.add(op_type, name, axes=list(axes))
        return self.b.add(op_type, name, self.ints(*axes))

    def batch_of(self, name: str) -> str:
        """Add nodes that compute the batch size of a tensor, as a vector of one."""
        shape = self.b.add("Shape", name)
        if self.flag():
            return self.slice(shape, 0, 1, 0)
        return self.rank_change("Unsqueeze", self.b.add("Gather", shape, self.b.constant(np.array(0)), axis=0), [0])

    def reshape(self, name: str, dims: Sequence[int]) -> str:
        """Reshape to a batch of `dims`, in one of the ways in which exporters name a dynamic batch."""
        form = self.pick("copied", "inferred", "computed", "computed with a free size")
        if form == "copied":
            return self.b.add("Reshape", name, self.ints(0, *dims))
        if form == "inferred":
            return self.b.add("Reshape", name, self.ints(-1, *dims))
        rest = list(dims)
        if form != "computed":
            rest[self.number(0, len(rest) - 1)] = -1
        target = self.b.add("Concat", self.batch_of(name), self.ints(*rest), axis=0)
        return self.b.add("Reshape", name, target)

    def branch(self, x: Stream, most: int = 2) -> Stream:
        """Apply drawn blocks that keep kind and size."""
        self.depth += 1
        while most and self.flag():
            x = self.block(x, inside=True)
            most -= 1
        self.depth -= 1
        return x

    def block(self, x: Stream, *, inside: bool = False) -> Stream:
        """Apply a drawn block."""
        names = [name for name, block in BLOCKS.items() if self.allows(block, x, inside=inside)]
        name = self.pick(*names)
        self.used.append(name)
        return BLOCKS[name].build(self, x)

    def allows(self, block: "Block", x: Stream, *, inside: bool) -> bool:
        """Return whether a block fits here."""
        kind = block.kind in {x.kind, "both"}
        depth = self.depth < DEEPEST or not block.nests
        return kind and depth and block.since <= self.opset and (block.keeps or not inside) and block.fits(x)


# Pointwise functions without jumps, and the opset that brings each.
ACTIVATIONS = {
    "Relu": 7, "LeakyRelu": 7, "Sigmoid": 7, "Tanh": 7, "Elu": 7, "Selu": 7, "Softplus": 7, "Softsign": 7, "Abs": 7,
    "reflected": 7, "HardSigmoid": 7, "Erf": 9, "Sin": 7, "Cos": 7, "Atan": 7, "Asinh": 9, "Celu": 12, "HardSwish": 14,
    "Mish": 18, "Gelu": 20, "swish": 7, "gelu": 9, "clip": 7, "root": 7, "exponential": 7, "reciprocal": 7, "square": 7,
    "cast": 7, "dropout": 13,
}  # fmt: skip


def _swish(s: Sketch, x: str) -> str:
    return s.b.add("Mul", x, s.b.add("Sigmoid", x))


def _gelu(s: Sketch, x: str) -> str:
    inner = s.b.add("Add", s.b.add("Erf", s.b.add("Div", x, s.scalar(np.sqrt(2)))), s.scalar(1))
    return s.b.add("Mul", s.b.add("Mul", x, inner), s.scalar(0.5))


def _clip(s: Sketch, x: str) -> str:
    if s.opset < 11:
        return s.b.add("Clip", x, min=-0.5, max=1.0)
    return s.b.add("Clip", x, s.scalar(-0.5), s.scalar(1))


def _root(s: Sketch, x: str) -> str:
    return s.b.add("Sqrt", s.b.add("Add", s.b.add("Abs", x), s.scalar(0.5)))


def _reflected(s: Sketch, x: str) -> str:
    # Shifted, so that a Relu on either side leaves something.
    return s.b.add("Add", s.b.add("Neg", x), s.scalar(1))


def _exponential(s: Sketch, x: str) -> str:
    return s.b.add("Exp", s.b.add("Tanh", x))


def _reciprocal(s: Sketch, x: str) -> str:
    return s.b.add("Reciprocal", s.b.add("Add", s.b.add("Sigmoid", x), s.scalar(0.5)))


def _square(s: Sketch, x: str) -> str:
    return s.b.add("Pow", s.b.add("Tanh", x), s.scalar(2))


def _cast(s: Sketch, x: str) -> str:
    return s.b.add("Relu", s.b.add("Cast", s.b.add("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT))


def _dropout(s: Sketch, x: str) -> str:
    return s.b.add("Dropout", s.b.add("Identity", x))


COMPOSED: dict[str, Callable[[Sketch, str], str]] = {
    "swish": _swish,
    "gelu": _gelu,
    "clip": _clip,
    "root": _root,
    "reflected": _reflected,
    "exponential": _exponential,
    "reciprocal": _reciprocal,
    "square": _square,
    "cast": _cast,
    "dropout": _dropout,
}


# Contractions of images


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


# Contractions of tokens


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
    return _joined(s, x, s.linear(Stream(joined, "tokens", inner, x.size), x.channels))


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
    return _joined(s, x, s.linear(inner, x.channels))


def _joined(s: Sketch, x: Stream, y: Stream) -> Stream:
    return y.becomes(s.b.add("Add", x.name, y.name)) if s.flag() else y


# Broadcasts


def activation(s: Sketch, x: Stream) -> Stream:
    """A pointwise function."""
    return x.becomes(s.activation(x.name))


def batch_normalisation(s: Sketch, x: Stream) -> Stream:
    """Batch normalisation over axis 1, between transposes for tokens."""
    c = x.channels
    data = x.name if x.kind == "image" else s.b.add("Transpose", x.name, perm=[0, 2, 1])
    parameters = [s.b.positive(c), s.b.weight(c, scale=0.3), s.b.weight(c, scale=0.3), s.b.positive(c)]
    y = s.b.add("BatchNormalization", data, *parameters)
    return x.becomes(y if x.kind == "image" else s.b.add("Transpose", y, perm=[0, 2, 1]))


def arithmetic(s: Sketch, x: Stream) -> Stream:
    """Scale and shift, by channel or by a number, constants on either side."""
    op_type = s.pick("Mul", "Div", "Add", "Sub", "Max", "Min")
    # Not every constant leaves something: after a Tanh, the maximum with one is one.
    near_zero = op_type in {"Add", "Sub", "Max"}
    values = s.shift if near_zero else s.vector
    constant = values(x) if s.flag() else s.scalar(0.1 if near_zero else 0.75)
    operands = [x.name, constant]
    return x.becomes(s.b.add(op_type, *(operands if op_type == "Div" or s.flag() else operands[::-1])))


def parametric_relu(s: Sketch, x: Stream) -> Stream:
    """One slope a channel, or one for all."""
    return x.becomes(s.b.add("PRelu", x.name, s.vector(x) if s.flag() else s.b.positive(1)))


def residual(s: Sketch, x: Stream) -> Stream:
    """Add a branch to its input, projected where the channels differ, or always."""
    inner = s.branch(x)
    inner = s.project(inner, inner.channels if s.flag() else x.channels)
    around = x if inner.channels == x.channels and s.flag() else s.project(x, inner.channels)
    operands = [inner.name, around.name]
    return inner.becomes(s.b.add("Add", *(operands if s.flag() else operands[::-1])))


def branches(s: Sketch, x: Stream) -> Stream:
    """Combine two or three branches of equal width."""
    width, count = s.width(), s.number(2, 3)
    names = [s.project(s.branch(x, 1), width).name for _ in range(count)]
    op_type = s.pick("Sum", "Mul", "Max", "Mean", "Min", "Sub")
    return x.becomes(s.b.add(op_type, *(names if op_type in {"Sum", "Max", "Mean", "Min"} else names[:2])), width)


def squeeze_and_excite(s: Sketch, x: Stream) -> Stream:
    """A gate from the plane's average through two layers, as convolutions or fully connected."""
    narrow = s.number(2, 4)
    if s.flag():
        gate = x.becomes(s.b.add("GlobalAveragePool", x.name), size=1)
        gate = s.conv(gate, narrow)
        gate = s.conv(gate.becomes(s.activation(gate.name)), x.channels).name
    else:
        mean = s.reduce("ReduceMean", x.name, [2, 3], keepdims=0)
        gate = s.b.gemm(s.b.add("Relu", s.b.gemm(mean, x.channels, narrow)), narrow, x.channels)
        gate = s.rank_change("Unsqueeze", gate, [2, 3]) if s.flag() else s.reshape(gate, [x.channels, 1, 1])
    operands = [s.b.add(s.pick("Sigmoid", "HardSigmoid"), gate), x.name]
    return x.becomes(s.b.add("Mul", *(operands if s.flag() else operands[::-1])))


def selection(s: Sketch, x: Stream) -> Stream:
    """Where, by the sign of the data or by a constant mask over the channels."""
    other = s.b.add("Mul", x.name, s.scalar(0.1)) if s.flag() else s.project(x, x.channels).name
    if s.flag():
        mask = x.spread(s.b.random.random(x.channels) < 0.5)
        return x.becomes(s.b.add("Where", s.b.constant(mask), x.name, other))
    return x.becomes(s.b.add("Where", s.b.add("Greater", x.name, other), x.name, other))


# Movements


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


# Reductions


def pooling(s: Sketch, x: Stream) -> Stream:
    """The maximum or the average of windows, with stride or without."""
    op_type = s.pick("MaxPool", "AveragePool")
    if x.size % 2 == 0 and x.size > 2 and s.flag():
        y = s.b.add(op_type, x.name, kernel_shape=[2, 2], strides=[2, 2])
        return x.becomes(y, size=x.size // 2)
    return x.becomes(s.b.add(op_type, x.name, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4))


def pooled_sum(s: Sketch, x: Stream) -> Stream:
    """Add the plane's average and maximum to each pixel."""
    pooled = s.b.add("Add", s.b.add("GlobalAveragePool", x.name), s.b.add("GlobalMaxPool", x.name))
    return x.becomes(s.b.add("Add", x.name, pooled))


def mean_over_the_rest(s: Sketch, x: Stream) -> Stream:
    """Add to each pixel or token a statistic over all of them."""
    op_type = s.pick("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSum")
    statistic = s.reduce(op_type, x.name, x.plane)
    return x.becomes(s.b.add("Add", x.name, s.b.add("Tanh", statistic)))


def mean_over_channels(s: Sketch, x: Stream) -> Stream:
    """A gate from a statistic over the channels."""
    statistic = s.reduce(s.pick("ReduceMean", "ReduceMax"), x.name, [x.axis])
    return x.becomes(s.b.add("Mul", x.name, s.b.add("Sigmoid", statistic)))


def softmax_gate(s: Sketch, x: Stream) -> Stream:
    """Add to the data their product with a softmax over channels or along the plane."""
    gated = s.b.add("Mul", x.name, s.b.add("Softmax", x.name, axis=s.number(1, x.rank - 1)))
    return x.becomes(s.b.add("Add", x.name, gated))


def layer_normalisation(s: Sketch, x: Stream) -> Stream:
    """Over the channels, as one operator or written out, then an activation."""
    data = x.name if x.kind == "tokens" else s.b.add("Transpose", x.name, perm=[0, 2, 3, 1])
    scale, shift = s.b.positive(x.channels), s.b.weight(x.channels, scale=0.3)
    if s.opset >= 17 and s.flag():
        y = s.b.add("LayerNormalization", data, scale, shift, axis=-1, epsilon=1e-2)
    else:
        last = 2 if x.kind == "tokens" else 3
        centred = s.b.add("Sub", data, s.reduce("ReduceMean", data, [last]))
        variance = s.reduce("ReduceMean", s.b.add("Pow", centred, s.scalar(2)), [last])
        spread = s.b.add("Sqrt", s.b.add("Add", variance, s.scalar(1e-2)))
        y = s.b.add("Add", s.b.add("Mul", s.b.add("Div", centred, spread), scale), shift)
    y = s.curved(y)
    return x.becomes(y if x.kind == "tokens" else s.b.add("Transpose", y, perm=[0, 3, 1, 2]))


def instance_normalisation(s: Sketch, x: Stream) -> Stream:
    """Over each channel's plane, then an activation."""
    parameters = [s.b.positive(x.channels), s.b.weight(x.channels, scale=0.3)]
    y = s.b.add("InstanceNormalization", x.name, *parameters, epsilon=1e-2)
    return x.becomes(s.curved(y))


def plane_normalisation(s: Sketch, x: Stream) -> Stream:
    """Subtract the mean over all pixels or tokens and divide by the deviation, then an activation."""
    centred = s.b.add("Sub", x.name, s.reduce("ReduceMean", x.name, x.plane))
    variance = s.reduce("ReduceMean", s.b.add("Mul", centred, centred), x.plane)
    y = s.b.add("Div", centred, s.b.add("Sqrt", s.b.add("Add", variance, s.scalar(1e-2))))
    y = s.b.add("Add", s.b.add("Mul", y, s.vector(x)), s.shift(x))
    return x.becomes(s.curved(y))


def group_normalisation(s: Sketch, x: Stream) -> Stream:
    """Written out as exporters do: reshape, instance normalisation, reshape, scale and shift, then an activation."""
    groups = s.pick(2, 3)
    x = s.fitted(x, groups, 2 * groups)
    if s.flag():
        y = s.b.add("Reshape", x.name, s.ints(0, groups, -1))
    else:
        y = s.reshape(x.name, [groups, x.channels // groups * x.size**2])
    ones, zeros = (s.b.constant(np.full(groups, v, np.float32)) for v in (1, 0))
    y = s.b.add("InstanceNormalization", y, ones, zeros, epsilon=1e-2)
    y = s.b.add("Reshape", y, s.b.add("Shape", x.name)) if s.flag() else s.reshape(y, x.dims)
    y = s.b.add("Add", s.b.add("Mul", y, s.vector(x)), s.shift(x))
    return x.becomes(s.curved(y))


@dataclass(frozen=True)
class Block:
    """A row of the table.

    Attributes
    ----------
    build
        Adds the block behind a stream.
    family
        The family of operators that the block is there for.
    kind
        What it works on.
    keeps
        Whether kind and size stay, so that it fits into a branch.
    nests
        Whether it draws blocks inside.
    since
        The first opset that has its operators.
    pins
        Whether all channels that it takes must stay.
    fits
        Whether it fits behind a stream.
    """

    build: Callable[[Sketch, Stream], Stream]
    family: Family
    kind: Kind | Literal["both"] = "both"
    keeps: bool = True
    nests: bool = False
    since: int = 7
    pins: bool = False
    fits: Callable[[Stream], bool] = field(default=lambda _: True)


def _some(x: Stream) -> bool:
    return x.channels >= NARROWEST


def _normalisable(x: Stream) -> bool:
    # A deviation over one or two values is nothing or a jump.
    return x.channels >= NARROWEST and x.size > 2


def _even(x: Stream) -> bool:
    return x.size % 2 == 0


def _is_square(x: Stream) -> bool:
    return int(np.sqrt(x.size)) ** 2 == x.size and x.size > 1


def _small(x: Stream) -> bool:
    return x.size**2 <= MOST_TOKENS and x.size > 1


def _not_long(x: Stream) -> bool:
    return x.size < MOST_TOKENS + 2


BLOCKS: dict[str, Block] = {
    "activation": Block(activation, Family.BROADCAST),
    "convolution": Block(convolution, Family.CONTRACTION, "image", keeps=False),
    "fully_connected": Block(fully_connected, Family.CONTRACTION, "tokens"),
    "depthwise": Block(depthwise, Family.CONTRACTION, "image"),
    "grouped_convolution": Block(grouped_convolution, Family.CONTRACTION, "image"),
    "transposed_convolution": Block(transposed_convolution, Family.CONTRACTION, "image", keeps=False),
    "shared_weight": Block(shared_weight, Family.CONTRACTION),
    "shared_bias": Block(shared_bias, Family.CONTRACTION, "image"),
    "weight_through_nodes": Block(weight_through_nodes, Family.CONTRACTION),
    "mixed_tokens": Block(mixed_tokens, Family.CONTRACTION, "tokens", keeps=False),
    "convolved_tokens": Block(convolved_tokens, Family.CONTRACTION, "tokens"),
    "attention": Block(attention, Family.CONTRACTION, "tokens"),
    "feed_forward": Block(feed_forward, Family.CONTRACTION, "tokens"),
    "batch_normalisation": Block(batch_normalisation, Family.BROADCAST),
    "arithmetic": Block(arithmetic, Family.BROADCAST),
    "parametric_relu": Block(parametric_relu, Family.BROADCAST),
    "residual": Block(residual, Family.BROADCAST, nests=True),
    "branches": Block(branches, Family.BROADCAST, nests=True),
    "squeeze_and_excite": Block(squeeze_and_excite, Family.BROADCAST, "image"),
    "selection": Block(selection, Family.BROADCAST, since=9),
    "concatenation": Block(concatenation, Family.MOVEMENT, nests=True),
    "split": Block(split, Family.MOVEMENT, fits=_some),
    "slice_of_channels": Block(slice_of_channels, Family.MOVEMENT, fits=_some),
    "gather_of_channels": Block(gather_of_channels, Family.MOVEMENT, fits=_some),
    "gather_in_rows": Block(gather_in_rows, Family.MOVEMENT, pins=True, fits=_some),
    "channel_shuffle": Block(channel_shuffle, Family.MOVEMENT),
    "shuffle_unit": Block(shuffle_unit, Family.MOVEMENT, "image", nests=True),
    "padding": Block(padding, Family.MOVEMENT),
    "depth_to_space": Block(depth_to_space, Family.MOVEMENT, "image"),
    "space_to_depth": Block(space_to_depth, Family.MOVEMENT, "image", keeps=False, fits=_even),
    "channels_last": Block(channels_last, Family.MOVEMENT, "image"),
    "reshape_round_trip": Block(reshape_round_trip, Family.MOVEMENT),
    "reshape_to_computed": Block(reshape_to_computed, Family.MOVEMENT),
    "resize": Block(resize, Family.MOVEMENT, "image"),
    "spread_gate": Block(spread_gate, Family.MOVEMENT, "image", since=8),
    "tiled_channels": Block(tiled_channels, Family.MOVEMENT),
    "squeezed": Block(squeezed, Family.MOVEMENT),
    "patches": Block(patches, Family.MOVEMENT, "image", keeps=False, fits=_small),
    "pixels": Block(pixels, Family.MOVEMENT, "tokens", keeps=False, fits=_is_square),
    "class_token": Block(class_token, Family.MOVEMENT, "tokens", keeps=False, since=8, fits=_not_long),
    "pooling": Block(pooling, Family.REDUCTION, "image", keeps=False),
    "pooled_sum": Block(pooled_sum, Family.REDUCTION, "image"),
    "mean_over_the_rest": Block(mean_over_the_rest, Family.REDUCTION),
    "mean_over_channels": Block(mean_over_channels, Family.REDUCTION, pins=True),
    "softmax_gate": Block(softmax_gate, Family.REDUCTION),
    "layer_normalisation": Block(layer_normalisation, Family.REDUCTION, pins=True, fits=_normalisable),
    "instance_normalisation": Block(instance_normalisation, Family.REDUCTION, "image", fits=_normalisable),
    "plane_normalisation": Block(plane_normalisation, Family.REDUCTION, fits=_normalisable),
    "group_normalisation": Block(group_normalisation, Family.REDUCTION, "image", fits=_normalisable),
}


# Ends: from a stream to an output and its dimensions

End = tuple[str, list[int]]


def _classified(s: Sketch, vector: str, inputs: int) -> End:
    """Add the last layer in one of the layouts of Gemm, or as a MatMul."""
    form = s.pick("transposed", "plain", "scaled", "matmul")
    if form == "transposed":
        return s.b.gemm(vector, inputs, CLASSES), [CLASSES]
    weight = s.matrix(inputs, CLASSES)
    if form == "matmul":
        y = s.b.add("Add", s.b.add("MatMul", vector, weight), s.b.weight(CLASSES, scale=0.3))
    elif form == "plain":
        y = s.b.add("Gemm", vector, weight, s.b.weight(1, CLASSES, scale=0.3))
    else:
        y = s.b.add("Gemm", vector, weight, s.scalar(0.2), alpha=1.5, beta=0.5)
    return y, [CLASSES]


def _flat_end(s: Sketch, x: Stream) -> End:
    count = int(np.prod(x.dims))
    flat = s.b.add("Flatten", x.name) if s.flag() else s.reshape(x.name, [count])
    return _classified(s, flat, count)


def _pooled_end(s: Sketch, x: Stream) -> End:
    if x.kind == "image" and s.flag():
        pooled = s.b.add("Flatten", s.b.add("GlobalAveragePool", x.name))
    else:
        pooled = s.reduce("ReduceMean", x.name, x.plane, keepdims=0)
    return _classified(s, pooled, x.channels)


def _first_token_end(s: Sketch, x: Stream) -> End:
    if x.kind == "image":
        return s.b.add("GlobalAveragePool", s.conv(x, CLASSES).name), [CLASSES, 1, 1]
    return _classified(s, s.b.add("Gather", x.name, s.b.constant(np.array(0)), axis=1), x.channels)


def _bare_end(s: Sketch, x: Stream) -> End:
    y = s.project(x, CLASSES)
    return y.name, y.dims


def _end(s: Sketch, x: Stream) -> End:
    return s.pick(_flat_end, _pooled_end, _first_token_end, _bare_end)(s, x)


@dataclass(frozen=True)
class RandomGraph:
    """A drawn model, with the names of its blocks in the order in which they were drawn."""

    model: onnx.ModelProto
    blocks: tuple[str, ...]

    def __repr__(self) -> str:
        title = f"opset {self.model.opset_import[0].version}: {', '.join(self.blocks)}"
        return f"{title}\n{onnx.printer.to_text(_without_weights(self.model))}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: FBT001
        """Let hypothesis print it so."""
        del cycle
        printer.text(repr(self))


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for tensor in copy.graph.initializer:
        if tensor.data_type != TensorProto.INT64:
            tensor.ClearField("raw_data")
    return copy


@st.composite
def random_graphs(draw: st.DrawFn, steps: int = 7, only: Sequence[str] = ()) -> RandomGraph:
    """Draw a model.

    Parameters
    ----------
    draw
        Given by hypothesis.
    steps
        The mean number of blocks, about.
    only
        Instead of drawn blocks, these, one behind the other.
    """
    kind: Kind = draw(st.sampled_from(("image", "tokens")))
    blocks = [BLOCKS[name] for name in only]
    if only and blocks[0].kind != "both":
        kind = blocks[0].kind
    opset = draw(st.sampled_from([o for o in OPSETS if all(block.since <= o for block in blocks)]))
    channels = draw(st.integers(NARROWEST, WIDEST))
    starts = [Stream("x", kind, channels, size) for size in (4, 6, 8)]
    x = draw(st.sampled_from([x for x in starts if all(block.fits(x) for block in blocks)]))
    seed = draw(st.integers(0, 2**32 - 1))
    drawn: list[Any] = []

    def record(strategy: st.SearchStrategy[Any]) -> Any:
        drawn.append(draw(strategy))
        return drawn[-1]

    graph = _sketched(record, x, opset, seed, steps, only)
    for attempt in range(1, MOST_WEIGHTS):
        if is_alive(graph.model):
            return graph
        # The same structure with other weights: a narrow layer may be dead behind its activation.
        again = iter(list(drawn))
        graph = _sketched(lambda _, again=again: next(again), x, opset, seed + attempt, steps, only)
    # A structure that is always dead (the maximum of a Tanh and one) shows nothing.
    return reject()


def _sketched(draw: Draw, x: Stream, opset: int, seed: int, steps: int, only: Sequence[str]) -> RandomGraph:
    """Return the graph of these draws, with the weights of this seed."""
    s = Sketch(draw, Builder(["N", *x.dims], seed=seed, opset=opset), x)
    # A contraction in front, so that there is something to remove.
    x = s.project(x, s.width())
    seconds: list[End] = []
    for name in only:
        s.used.append(name)
        x = BLOCKS[name].build(s, x)
    # One draw a step, not a number of steps: any step can be left out when an example shrinks.
    while not only and len(s.used) < MOST_BLOCKS and s.number(0, steps):
        x = s.block(x)
        if not seconds and s.number(0, 2 * steps) == 2 * steps:
            seconds.append(_end(s, x))
    ends = [_end(s, x), *seconds]
    if s.number(0, 7) == 7:
        s.b.weight(3, 4)  # Exporters leave initializers behind that nothing reads.
    return RandomGraph(_finish(s, ends), tuple(s.used))


def _finish(s: Sketch, ends: Sequence[End]) -> onnx.ModelProto:
    """Return the model, with the shapes of its outputs: inference does not see through every computed target."""
    outputs = [
        helper.make_tensor_value_info(f"y{k}" if k else "y", TensorProto.FLOAT, ["N", *dims])
        for k, (_, dims) in enumerate(ends)
    ]
    for (name, _), output in zip(ends[1:], outputs[1:], strict=True):
        s.b.nodes.append(helper.make_node("Identity", [name], [output.name], f"out_{output.name}"))
    model = s.b.finish(ends[0][0])
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model


def samples(model: onnx.ModelProto, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return a batch for the input: noise around values of their own for each sample and channel.

    Samples differ by more than noise, which an average over the plane would remove.
    """
    generator = np.random.default_rng(seed)
    (value,) = model.graph.input
    dims = [SAMPLES, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
    offsets = [SAMPLES, dims[1], 1, 1] if len(dims) == 4 else [SAMPLES, 1, dims[2]]
    return {value.name: (generator.normal(size=dims) + 2 * generator.normal(size=offsets)).astype(np.float32)}


def dependence(values: npt.NDArray[np.generic]) -> float:
    """Return the largest difference between the samples of a batch, relative to the largest value."""
    exact = values.astype(np.float64)
    return float(np.abs(exact[1:] - exact[:-1]).max() / max(np.abs(exact).max(), np.finfo(np.float32).tiny))


def is_alive(model: onnx.ModelProto) -> bool:
    """Return whether every output depends on the input."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings)
    return all(dependence(values) > ALIVE for values in session.run(None, samples(model, 0)))
