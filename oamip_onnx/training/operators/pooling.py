"""Pools over windows of the plane, and over all of it."""

import math

import torch
from torch.nn import functional

from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.training.operators.contraction import plane_padding, same_pads
from oamip_onnx.training.operators.table import Function, Operation, Tensor, operator

_MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEANS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}

# What a norm is at least, so that its root has a gradient where all is zero.
_TINY = 1e-30


class _Window:
    """The window of a pool: its size, steps and pads."""

    def __init__(self, operation: Operation) -> None:
        self.kernel = list(operation.get("kernel_shape"))
        rank = len(self.kernel)
        self.strides = list(operation.get("strides") or [1] * rank)
        self.dilations = list(operation.get("dilations") or [1] * rank)
        self.ceil = bool(operation.get("ceil_mode", 0))
        self._auto_pad = operation.get("auto_pad", "NOTSET")
        self._pads = list(operation.get("pads") or [0] * (2 * rank))

    def pads(self, x: Tensor) -> list[int]:
        """Return the begins and ends for a plane."""
        if self._auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
            return same_pads(list(x.shape[2:]), self.kernel, self.strides, self.dilations, self._auto_pad)
        return [0] * len(self._pads) if self._auto_pad == "VALID" else self._pads

    def fits(self, pads: list[int]) -> bool:
        """Return whether PyTorch's pools take these pads: alike on both sides, at most half of the window."""
        rank = len(self.kernel)
        begins = pads[:rank]
        return begins == pads[rank:] and all(2 * p <= k for p, k in zip(begins, self.kernel, strict=True))


@operator("MaxPool")
def max_pool(operation: Operation) -> Function:
    """MaxPool, without the positions of the maxima."""
    operation.only_output()
    window = _Window(operation)
    rank = len(window.kernel)

    def run(x: Tensor) -> Tensor:
        pads = window.pads(x)
        padding = pads[:rank]
        if not window.fits(pads):
            x, padding = functional.pad(x, plane_padding(pads), value=-math.inf), [0] * rank
        return _MAXIMA[rank](x, window.kernel, window.strides, padding, window.dilations, window.ceil)

    return run


@operator("AveragePool")
def average_pool(operation: Operation) -> Function:
    """AveragePool; where the sides differ, the means are weighted by how many elements are inside."""
    window = _Window(operation)
    rank, counts_pads = len(window.kernel), bool(operation.get("count_include_pad", 0))
    if any(dilation != 1 for dilation in window.dilations):
        raise UnsupportedOperatorError("AveragePool with dilations")

    def run(x: Tensor) -> Tensor:
        pads, pool = window.pads(x), _MEANS[rank]
        if window.fits(pads):
            return pool(x, window.kernel, window.strides, pads[:rank], window.ceil, counts_pads)
        sides = plane_padding(pads)
        y = pool(functional.pad(x, sides), window.kernel, window.strides, 0, window.ceil)
        if counts_pads:
            return y
        inside = functional.pad(torch.ones_like(x[:1, :1]), sides)
        return y / pool(inside, window.kernel, window.strides, 0, window.ceil)

    return run


@operator("LpPool")
def lp_pool(operation: Operation) -> Function:
    """LpPool: the norm of each window."""
    window, order = _Window(operation), operation.get("p", 2)
    rank, cells = len(window.kernel), math.prod(window.kernel)
    if any(dilation != 1 for dilation in window.dilations):
        raise UnsupportedOperatorError("LpPool with dilations")

    def run(x: Tensor) -> Tensor:
        powers = functional.pad(x.abs() ** order, plane_padding(window.pads(x)))
        means = _MEANS[rank](powers, window.kernel, window.strides, 0, window.ceil)
        return (means * cells).clamp_min(_TINY) ** (1 / order)

    return run


def _plane(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


@operator("GlobalAveragePool")
def global_average_pool(_operation: Operation) -> Function:
    """GlobalAveragePool."""
    return lambda x: x.mean(_plane(x), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_operation: Operation) -> Function:
    """GlobalMaxPool."""
    return lambda x: x.amax(_plane(x), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(operation: Operation) -> Function:
    """GlobalLpPool."""
    order = operation.get("p", 2)
    return lambda x: torch.linalg.vector_norm(x, order, _plane(x), keepdim=True)
