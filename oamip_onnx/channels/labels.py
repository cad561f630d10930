"""Labels: which removable thing each cell of a tensor belongs to.

A tensor carries a few *factors*. A factor is an integer array of the tensor's rank whose every dimension is 1 (the
label does not depend on this axis) or the full size. A feature map N×C×H×W has one factor of shape 1×C×1×1; a
convolution's weight has one over its output axis and one over its input axis; C split into heads × width gives one
factor of shape 1×1×heads×width. A cell is gone as soon as one of its factors' labels is gone.

The label `FIXED` marks a cell that never goes. While a graph is traced, labels are atoms, numbered from 0, which
joins tie together; afterwards they are units: what lives and dies together, numbered over the whole model from 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

FIXED = -1
NOTHING: IntArray = np.array(FIXED, dtype=np.int64)
"""Labels of an operand in which nothing can go, for joins."""


@dataclass(frozen=True)
class Labels:
    """The factors of one tensor.

    Attributes
    ----------
    shape
        The tensor's concrete shape.
    factors
        Integer arrays of the tensor's rank; each dimension is 1 or the tensor's. No factor means that nothing in the
        tensor can go.
    """

    shape: tuple[int, ...]
    factors: tuple[IntArray, ...] = ()

    def __post_init__(self) -> None:
        for factor in self.factors:
            fits = factor.ndim == len(self.shape) and all(
                f in (1, s) for f, s in zip(factor.shape, self.shape, strict=True)
            )
            if not fits:
                raise ValueError(f"A factor of shape {factor.shape} does not fit a tensor of shape {self.shape}.")

    def factor_over(self, axis: int) -> IntArray | None:
        """Return the factor that depends on an axis, or None if nothing along this axis can go."""
        for factor in self.factors:
            if factor.shape[axis] > 1:
                return factor
        return None

    def alive(self, kept: BoolArray) -> BoolArray:
        """Return which cells stay, as an array that broadcasts to the tensor's shape.

        Parameters
        ----------
        kept
            For each unit of the model, whether it stays; shape (units,).
        """
        result = np.ones((1,) * len(self.shape), dtype=np.bool_)
        for factor in self.factors:
            result = result & lookup(kept, factor)
        return result


def axes_of(factor: IntArray) -> set[int]:
    """Return the axes that a factor's labels depend on."""
    return {axis for axis, size in enumerate(factor.shape) if size > 1}


def lookup(kept: BoolArray, units: IntArray) -> BoolArray:
    """Return whether each cell's unit stays; fixed cells always do."""
    extended = np.append(kept, np.True_)  # FIXED is -1, the last entry
    return np.asarray(extended[units], dtype=np.bool_)


def collapse(array: IntArray) -> IntArray:
    """Return the array with every axis along which it is constant reduced to size 1."""
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            first = np.take(array, [0], axis=axis)
            if bool((array == first).all()):
                array = first
    return array


def merge_factors(shape: tuple[int, ...], factors: Iterable[IntArray]) -> Labels:
    """Return labels without the factors in which every cell is fixed."""
    return Labels(shape, tuple(f for f in factors if bool((f != FIXED).any())))
