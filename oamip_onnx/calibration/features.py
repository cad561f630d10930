"""A contraction as a matrix product: features of each output position, and the weight as a matrix.

For a Conv the features of a position are the patch under the kernel, padding zeros included, ordered as
(in channel, kernel positions); for a ConvTranspose they are the patch under the mirrored kernel of the input with
strides of zeros between its cells; for a Gemm or a MatMul they are the row itself. The output there is
features · matrix + bias. With several groups, the features of one group stand side by side, as its outputs do, and
the matrix holds for each output the weights of its own group's features.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.model import Array, attribute, int_attribute, ints_attribute

IntArray = npt.NDArray[np.int64]


class Layout(Protocol):
    """How one contraction reads its operand and its weight."""

    @property
    def groups(self) -> int:
        """Number of groups."""

    @property
    def channel_axis(self) -> int:
        """The axis of operand and output that holds channels."""

    def rows(self, data: Array, chosen: IntArray | None = None) -> Array:
        """Return the features, one row an output position, or a chosen one; shape (positions, groups · features)."""

    def count(self, data: Array) -> int:
        """Return the number of output positions."""

    def targets(self, out: Array) -> Array:
        """Return the output, one row a position in the same order; shape (positions, outputs)."""

    def matrix(self, weight: Array) -> Array:
        """Return the weight as a matrix, shape (features of a group, outputs)."""

    def weight(self, matrix: Array, like: Array) -> Array:
        """Return the weight in its own layout, with the dtype of `like`."""


@dataclass(frozen=True)
class ConvolutionLayout:
    """A Conv of any number of spatial axes and groups."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None = None
    auto_pad: str = "NOTSET"
    groups: int = 1
    channel_axis: ClassVar[int] = 1

    def _padding(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        axes = len(sizes)
        if self.auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
            result = []
            for size, kernel, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
                total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
                small, large = total // 2, total - total // 2
                result.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
            return result
        if self.pads is None or self.auto_pad == "VALID":
            return [(0, 0)] * axes
        return list(zip(self.pads[:axes], self.pads[axes:], strict=True))

    def _windows(self, data: Array) -> Array:
        """Return a view of the patches, shape (samples, channels, positions…, kernel…)."""
        axes = len(self.kernel)
        padded = np.pad(data, [(0, 0), (0, 0), *self._padding(data.shape[2:])])
        extent = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, 2 + axes)))
        steps = (slice(None), slice(None), *(slice(None, None, s) for s in self.strides))
        return windows[(*steps, *(slice(None, None, d) for d in self.dilations))]

    def count(self, data: Array) -> int:
        """Return samples · positions."""
        sizes = data.shape[2:]
        positions = len(data)
        for size, (before, behind), kernel, stride, dilation in zip(
            sizes, self._padding(sizes), self.kernel, self.strides, self.dilations, strict=True
        ):
            positions *= (size + before + behind - (kernel - 1) * dilation - 1) // stride + 1
        return positions

    def rows(self, data: Array, chosen: IntArray | None = None) -> Array:
        """Return the patches under the kernel, shape (samples · positions, channels · kernel).

        Only the chosen positions are copied; all of them take the kernel's size times the memory of the data.
        """
        axes = len(self.kernel)
        windows = self._windows(data)
        # samples, channels, positions…, kernel… → samples, positions…, channels, kernel…
        order = [0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes)]
        features = data.shape[1] * int(np.prod(self.kernel))
        patches = windows.transpose(order)
        if chosen is not None:
            patches = patches[np.unravel_index(chosen, patches.shape[: 1 + axes])]
        return patches.reshape(-1, features)

    def targets(self, out: Array) -> Array:
        """Return the output with channels last, shape (samples · positions, outputs)."""
        return np.moveaxis(out, 1, -1).reshape(-1, out.shape[1])

    def matrix(self, weight: Array) -> Array:
        """Return the kernels as columns."""
        return weight.reshape(weight.shape[0], -1).T

    def weight(self, matrix: Array, like: Array) -> Array:
        """Return columns as kernels."""
        return np.ascontiguousarray(matrix.T.reshape(like.shape).astype(like.dtype))


@dataclass(frozen=True)
class TransposedLayout:
    """A ConvTranspose, as the Conv with the mirrored kernel over its input with zeros between the cells.

    Attributes
    ----------
    strides
        Cells between two of the input.
    convolution
        What reads the stretched input, with strides of 1.
    """

    strides: tuple[int, ...]
    convolution: ConvolutionLayout
    channel_axis: ClassVar[int] = 1

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.convolution.groups

    def _stretched(self, data: Array) -> Array:
        sizes = [(size - 1) * stride + 1 for size, stride in zip(data.shape[2:], self.strides, strict=True)]
        wide = np.zeros((*data.shape[:2], *sizes), dtype=data.dtype)
        wide[(slice(None), slice(None), *(slice(None, None, stride) for stride in self.strides))] = data
        return wide

    def rows(self, data: Array, chosen: IntArray | None = None) -> Array:
        """Return the patches under the mirrored kernel, shape (samples · positions, channels · kernel)."""
        return self.convolution.rows(self._stretched(data), chosen)

    def count(self, data: Array) -> int:
        """Return samples · positions of the output."""
        return self.convolution.count(self._stretched(data))

    def targets(self, out: Array) -> Array:
        """Return the output with channels last, shape (samples · positions, outputs)."""
        return self.convolution.targets(out)

    def matrix(self, weight: Array) -> Array:
        """Return the mirrored kernels as columns."""
        return self.convolution.matrix(_exchanged(weight, self.groups))

    def weight(self, matrix: Array, like: Array) -> Array:
        """Return columns as kernels."""
        turned = self.convolution.weight(matrix, _exchanged(like, self.groups))
        inner = turned.reshape(self.groups, -1, *turned.shape[1:])
        back = _mirrored(inner.swapaxes(1, 2)).reshape(like.shape)
        return np.ascontiguousarray(back)


def _exchanged(weight: Array, groups: int) -> Array:
    """Return the weight of a ConvTranspose, (in, out / groups, kernel…), as that of a Conv, (out, in / groups, …)."""
    inner = _mirrored(weight.reshape(groups, -1, *weight.shape[1:])).swapaxes(1, 2)
    return inner.reshape(-1, *inner.shape[2:])


def _mirrored(kernels: Array) -> Array:
    """Return kernels of shape (groups, …, …, kernel…) mirrored in every axis of the kernel."""
    return np.flip(kernels, axis=tuple(range(3, kernels.ndim)))


@dataclass(frozen=True)
class ProductLayout:
    """A Gemm or MatMul whose right operand is the weight, transposed or not, scaled by alpha."""

    transposed: bool = False
    scale: float = 1.0
    groups: ClassVar[int] = 1
    channel_axis: ClassVar[int] = -1

    def rows(self, data: Array, chosen: IntArray | None = None) -> Array:
        """Return the rows of the left operand, shape (rows, features)."""
        rows = data.reshape(-1, data.shape[-1])
        return rows if chosen is None else rows[chosen]

    def count(self, data: Array) -> int:
        """Return the number of rows."""
        return int(data.size // data.shape[-1])

    def targets(self, out: Array) -> Array:
        """Return the rows of the output, shape (rows, outputs)."""
        return out.reshape(-1, out.shape[-1])

    def matrix(self, weight: Array) -> Array:
        """Return the weight as (features, outputs)."""
        return np.multiply(weight.T if self.transposed else weight, self.scale)

    def weight(self, matrix: Array, like: Array) -> Array:
        """Return the weight in its own layout."""
        own = np.divide(matrix, self.scale)
        return np.ascontiguousarray((own.T if self.transposed else own).astype(like.dtype))


def layout_of(node: onnx.NodeProto, weight_shape: tuple[int, ...]) -> Layout | str:
    """Return how a contraction reads its operands, or the reason why it has no such layout here."""
    if node.op_type == "Conv":
        axes = len(weight_shape) - 2
        pads = ints_attribute(node, "pads")
        return ConvolutionLayout(
            weight_shape[2:],
            tuple(ints_attribute(node, "strides") or [1] * axes),
            tuple(ints_attribute(node, "dilations") or [1] * axes),
            None if pads is None else tuple(pads),
            str(attribute(node, "auto_pad", "NOTSET")),
            int_attribute(node, "group", 1),
        )
    if node.op_type == "ConvTranspose":
        return _transposed_layout(node, weight_shape)
    if node.op_type == "Gemm":
        return _gemm_layout(node)
    if node.op_type == "MatMul" and len(weight_shape) == 2:
        return ProductLayout()
    return f"{node.op_type} with a weight of {len(weight_shape)} axes has no closed form here"


def _transposed_layout(node: onnx.NodeProto, weight_shape: tuple[int, ...]) -> TransposedLayout | str:
    if str(attribute(node, "auto_pad", "NOTSET")) != "NOTSET" or ints_attribute(node, "output_shape"):
        return "its padding follows from the shape of its output"
    axes = len(weight_shape) - 2
    kernel = weight_shape[2:]
    dilations = tuple(ints_attribute(node, "dilations") or [1] * axes)
    pads = ints_attribute(node, "pads") or [0] * (2 * axes)
    more = ints_attribute(node, "output_padding") or [0] * axes
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    inner = [r - p for r, p in zip(reach, pads[:axes], strict=True)]
    inner += [r - p + m for r, p, m in zip(reach, pads[axes:], more, strict=True)]
    if min(inner) < 0:
        return "its padding is wider than its kernel"
    convolution = ConvolutionLayout(
        kernel, (1,) * axes, dilations, tuple(inner), groups=int_attribute(node, "group", 1)
    )
    return TransposedLayout(tuple(ints_attribute(node, "strides") or [1] * axes), convolution)


def _gemm_layout(node: onnx.NodeProto) -> ProductLayout | str:
    if int_attribute(node, "transA", 0):
        return "its data operand is transposed"
    if attribute(node, "beta", 1.0) != 1.0:
        return "its bias is scaled"
    alpha = attribute(node, "alpha", 1.0)
    return ProductLayout(bool(int_attribute(node, "transB", 0)), float(alpha))  # type: ignore[arg-type]
