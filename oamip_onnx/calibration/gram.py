"""Second moments of a contraction's features, accumulated in double precision.

With features X (one row an output position, a column of ones behind the others) and targets Y, a least-squares refit
needs only XᵀX and XᵀY. A grouped convolution has one pair of them for each of its groups.
"""

import numpy as np
import numpy.typing as npt

from oamip_onnx.model import Array

FloatArray = npt.NDArray[np.float64]

# Rows that are converted to double precision at a time.
_CHUNK_ROWS = 4096


def with_ones(rows: Array, groups: int = 1) -> npt.NDArray[np.float32]:
    """Return feature rows by group with a column of ones behind them.

    Parameters
    ----------
    rows
        Shape (rows, groups · features), the features of one group side by side.
    groups
        Number of groups.

    Returns
    -------
    array
        Shape (groups, rows, features + 1), float32.
    """
    count, width = len(rows), rows.shape[1] // groups
    result = np.ones((groups, count, width + 1), dtype=np.float32)
    result[:, :, :-1] = rows.reshape(count, groups, width).swapaxes(0, 1)
    return result


def moments(left: Array, right: Array | None = None) -> FloatArray:
    """Return leftᵀ·right of every group, the products of each few thousand rows summed in double precision.

    Parameters
    ----------
    left
        Shape (groups, rows, m).
    right
        Shape (groups, rows, n); `left` itself by default.

    Returns
    -------
    array
        Shape (groups, m, n), float64.
    """
    other = left if right is None else right
    total = np.zeros((left.shape[0], left.shape[2], other.shape[2]))
    for start in range(0, left.shape[1], _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        for group in range(len(left)):
            if right is None:
                # NumPy computes a matrix with its own transpose in half the time.
                own = left[group, part].astype(np.float64)
                total[group] += own.T @ own
            else:
                # Nothing is inverted here: single precision within a chunk is as exact as the targets.
                a, b = (values[group, part].astype(np.float32, copy=False) for values in (left, right))
                total[group] += a.T @ b
    return total


def draw_rows(count: int, limit: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return at most `limit` of `count` row numbers, drawn without replacement, in ascending order."""
    if count <= limit:
        return np.arange(count, dtype=np.int64)
    return np.sort(generator.choice(count, limit, replace=False)).astype(np.int64)
