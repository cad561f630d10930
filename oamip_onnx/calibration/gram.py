"""Gram matrices of a contraction's features, accumulated in a stream.

With features X (one row an output position, a column of ones behind the others) and targets Y, a least-squares refit
needs only XᵀX, XᵀY and the diagonal of YᵀY. Rows beyond a budget are subsampled evenly over the samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gram:
    """Second moments of features and targets.

    Attributes
    ----------
    features
        XᵀX, shape (features + 1, features + 1), float64; the last row and column belong to the ones.
    cross
        XᵀY, shape (features + 1, outputs), float64.
    energy
        Σ Y² per output, shape (outputs,), float64.
    rows
        Number of rows summed.
    """

    features: FloatArray
    cross: FloatArray
    energy: FloatArray
    rows: int

    def __add__(self, other: "Gram") -> "Gram":
        return Gram(
            self.features + other.features,
            self.cross + other.cross,
            self.energy + other.energy,
            self.rows + other.rows,
        )

    def error(self, matrix: FloatArray) -> float:
        """Return ‖X·matrix − Y‖² per row, for a matrix of shape (features + 1, outputs)."""
        squares = np.einsum("fo,fg,go->o", matrix, self.features, matrix, optimize=True)
        total = squares - 2 * (matrix * self.cross).sum(axis=0) + self.energy
        return float(max(total.sum(), 0.0) / max(self.rows, 1))


def accumulate_gram(pairs: Iterable[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]) -> Gram:
    """Return the Gram matrices over batches of (feature rows, target rows).

    Parameters
    ----------
    pairs
        Batches; features of shape (rows, features), targets of shape (rows, outputs).

    Raises
    ------
    ValueError
        If there is no batch.
    """
    total: Gram | None = None
    for features, targets in pairs:
        x = np.empty((len(features), features.shape[1] + 1), dtype=np.float64)
        x[:, :-1], x[:, -1] = features, 1.0
        y = targets.astype(np.float64)
        part = Gram(x.T @ x, x.T @ y, (y * y).sum(axis=0), len(features))
        total = part if total is None else total + part
    if total is None:
        raise ValueError("There are no samples to accumulate.")
    return total


def draw_rows(count: int, limit: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return at most `limit` of `count` row numbers, drawn without replacement, in ascending order."""
    if count <= limit:
        return np.arange(count, dtype=np.int64)
    return np.sort(generator.choice(count, limit, replace=False)).astype(np.int64)
