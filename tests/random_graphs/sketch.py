"""A graph being drawn: what is carried from block to block, and the draws that shape it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from graphs import Builder
from hypothesis import strategies as st

if TYPE_CHECKING:
    from random_graphs.table import Block


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
        from random_graphs.activations import ACTIVATIONS, COMPOSED  # their functions take sketches

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
        from random_graphs.table import BLOCKS  # its functions take sketches

        names = [name for name, block in BLOCKS.items() if self.allows(block, x, inside=inside)]
        name = self.pick(*names)
        self.used.append(name)
        return BLOCKS[name].build(self, x)

    def allows(self, block: "Block", x: Stream, *, inside: bool) -> bool:
        """Return whether a block fits here."""
        kind = block.kind in {x.kind, "both"}
        depth = self.depth < DEEPEST or not block.nests
        return kind and depth and block.since <= self.opset and (block.keeps or not inside) and block.fits(x)
