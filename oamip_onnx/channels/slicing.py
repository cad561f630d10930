"""Cutting arrays: from labels and kept units to the narrower tensor."""

from collections.abc import Mapping

import numpy as np

from oamip_onnx.channels.labels import BoolArray, Labels, axes_of, lookup
from oamip_onnx.model import Array


def kept_shape(labels: Labels, kept: BoolArray) -> tuple[int, ...]:
    """Return the shape of a tensor after removal.

    Parameters
    ----------
    labels
        Unit labels of the tensor.
    kept
        Whether each unit stays, shape (units,).

    Raises
    ------
    ValueError
        If the kept cells do not form a tensor: some row would keep more than another.
    """
    shape = list(labels.shape)
    axes = [axes_of(factor) for factor in labels.factors]
    if all(len(own) == 1 for own in axes) and len(set().union(*axes)) == len(axes):
        # Each axis on its own, without an array of the tensor's size.
        left = {axis: int(lookup(kept, f).sum()) for f, own in zip(labels.factors, axes, strict=True) for axis in own}
        for axis, count in left.items():
            shape[axis] = count if all(left.values()) else 0
        return tuple(shape)
    alive = labels.alive(kept)
    for axis in reversed(range(len(shape))):
        if alive.shape[axis] == 1:
            continue
        counts = alive.sum(axis=axis, keepdims=True)
        sizes = np.unique(counts[counts > 0])
        if len(sizes) > 1:
            raise ValueError(f"Rows along axis {axis} of a tensor of shape {labels.shape} keep {sizes.tolist()} cells.")
        shape[axis] = int(sizes[0]) if len(sizes) else 0
        alive = counts > 0
    return tuple(shape)


def slice_array(array: Array, labels: Labels, kept: BoolArray) -> Array:
    """Return the kept cells of an array, in their old order, in the kept shape."""
    if all(sum(size > 1 for size in factor.shape) == 1 for factor in labels.factors):
        for axis, indices in kept_indices(labels, kept).items():
            array = np.take(array, indices, axis=axis)
        return np.ascontiguousarray(array)
    shape = kept_shape(labels, kept)
    return np.ascontiguousarray(array[np.broadcast_to(labels.alive(kept), labels.shape)].reshape(shape))


def kept_indices(labels: Labels, kept: BoolArray) -> Mapping[int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return the kept indices of every axis that loses some; factors over several axes count by whole rows."""
    alive = labels.alive(kept)
    result = {}
    for axis, size in enumerate(alive.shape):
        if size > 1:
            others = tuple(a for a in range(alive.ndim) if a != axis)
            along = alive.any(axis=others)
            if not bool(along.all()):
                result[axis] = np.flatnonzero(along)
    return result


def scatter_array(narrow: Array, wide: Array, labels: Labels, kept: BoolArray) -> Array:
    """Return a copy of the wide array with the narrow one's values at the kept cells."""
    result = wide.copy()
    result[np.broadcast_to(labels.alive(kept), labels.shape)] = narrow.ravel()
    return result
