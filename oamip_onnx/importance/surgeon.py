"""One layer while units that it reads go, and come back: optimal brain surgery on blocks of its weights.

The layer computes Y = X·W, with features X (one row an output position, a column of ones behind the others) and
H = XᵀX + ρ·m·I, m the mean diagonal. If the rows G of W are removed and the others refit, the squared error rises by

    tr(W_Gᵀ [(H⁻¹)_GG]⁻¹ W_G)                                                                                  (1)

and weights and inverse become, for those that stay,

    W ← W − (H⁻¹)_:G [(H⁻¹)_GG]⁻¹ W_G,    H⁻¹ ← H⁻¹ − (H⁻¹)_:G [(H⁻¹)_GG]⁻¹ (H⁻¹)_G:                            (2)

(Hassibi and Stork 1993, "Second order derivatives for network pruning: optimal brain surgeon", equations 5 and 6; for
blocks, Kurtic et al. 2022, "The optimal BERT surgeon", equations 5 and 6).
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from oamip_onnx.calibration import Layout
from oamip_onnx.channels import ChannelGroup

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Ridge ρ: enough to invert the moments of features that always go together.
_RIDGE = 1e-4

# Share of an output's second moment below which what is left about the mean is rounding.
_CONSTANT = 1e-9


@dataclass(frozen=True)
class Reader:
    """A layer that reads units of one group or several.

    Attributes
    ----------
    node
        Position of the layer in the graph.
    tensor
        What it reads.
    layout
        How its features are unfolded.
    matrix
        Its weight, shape (features + 1, outputs); zeros behind, for the bias, which no removal touches.
    unit_of
        The unit of each feature, FIXED where it never goes; shape (features,).
    """

    node: int
    tensor: str
    layout: Layout
    matrix: FloatArray
    unit_of: IntArray


class LayerState:
    """Weights and inverse moments of one layer while units go, and come back; rows of what is gone are zero.

    Parameters
    ----------
    reader
        The layer.
    moments
        XᵀX, shape (features + 1, features + 1); the ridge is added to them.
    """

    def __init__(self, reader: Reader, moments: FloatArray) -> None:
        self.reader = reader
        self.unit_of = reader.unit_of
        self.original = reader.matrix
        self.weights = self.original.copy()
        raw = float(np.vdot(self.original, moments @ self.original))
        means = moments[-1] @ self.original
        energy = raw - float(means @ means) / max(float(moments[-1, -1]), 1.0)
        # An output that never changes has nothing to reconstruct: a bias gives it.
        self.energy = energy if energy > _CONSTANT * raw else np.inf
        self.moments = moments
        scale = float(np.diag(moments)[:-1].mean()) or 1.0  # features that are always zero
        features = np.arange(len(moments) - 1)  # the ones are not pulled
        self.moments[features, features] += _RIDGE * scale
        self.inverse = _inverted(self.moments)

    def reads(self, group: ChannelGroup) -> bool:
        """Return whether a group's units reach this layer."""
        return bool(((self.unit_of >= group.first_unit) & (self.unit_of < group.first_unit + group.width)).any())

    def copy(self) -> "LayerState":
        """Return a state that changes apart from this one."""
        twin = copy(self)
        twin.weights, twin.inverse = self.weights.copy(), self.inverse.copy()
        return twin

    def by_size(self, of: Callable[["LayerState", list[int]], FloatArray], units: Sequence[int]) -> FloatArray:
        """Return what a method finds for units that may hold different numbers of features; 0 for those without."""
        counts = np.bincount(self.unit_of[self.unit_of >= 0], minlength=max(units, default=0) + 1)[list(units)]
        found = np.zeros(len(units))
        for size in np.unique(counts[counts > 0]).tolist():
            places = np.flatnonzero(counts == size)
            found[places] = of(self, [units[int(p)] for p in places])
        return found

    def features_of(self, units: Sequence[int]) -> IntArray:
        """Return the features of some units that hold equally many, shape (units, features a unit)."""
        return np.array([np.flatnonzero(self.unit_of == unit) for unit in units], dtype=np.int64).reshape(
            len(units), -1
        )

    def costs(self, units: Sequence[int]) -> FloatArray:
        """Return equation 1 for units that are there, shape (units,)."""
        rows = self.features_of(units)
        blocks = self.inverse[rows[:, :, None], rows[:, None, :]]
        weights = self.weights[rows]
        rises = np.einsum("uko,uko->u", weights, np.linalg.solve(blocks, weights))
        return np.asarray(rises / self.energy, np.float64)

    def remove(self, units: Sequence[int]) -> float:
        """Take units away by equation 2, and return equation 1 for all of them together."""
        rows = np.flatnonzero(np.isin(self.unit_of, units))
        columns = self.inverse[:, rows]
        solved = np.linalg.solve(columns[rows], np.hstack([columns.T, self.weights[rows]]))
        rise = float(np.vdot(self.weights[rows], solved[:, len(self.inverse) :])) / self.energy
        self.weights -= columns @ solved[:, len(self.inverse) :]
        self.inverse -= columns @ solved[:, : len(self.inverse)]
        self.weights[rows] = 0.0
        self.inverse[rows] = 0.0
        self.inverse[:, rows] = 0.0
        return rise

    def gains(self, units: Sequence[int]) -> FloatArray:
        """Return by how much the error falls when units that are gone come back, each alone, shape (units,)."""
        rows = self.features_of(units)
        flat = rows.ravel()
        reach = self.inverse @ self.moments[:, flat]
        left = self.moments[np.ix_(flat, flat)] - self.moments[flat] @ reach
        missing = self.moments[flat] @ (self.original - self.weights)
        size = rows.shape[1]
        places = np.arange(len(flat)).reshape(rows.shape)
        blocks = left[places[:, :, None], places[:, None, :]]
        parts = missing.reshape(len(units), size, -1)
        falls = np.einsum("uko,uko->u", parts, np.linalg.solve(blocks, parts))
        return np.asarray(falls / self.energy, np.float64)

    def restore(self, unit: int) -> None:
        """Bring a unit back, which undoes equation 2."""
        rows = self.features_of([unit]).ravel()
        reach = self.inverse @ self.moments[:, rows]
        left = self.moments[np.ix_(rows, rows)] - self.moments[rows] @ reach
        missing = self.moments[rows] @ (self.original - self.weights)
        reach[rows] = -np.eye(len(rows))
        solved = np.linalg.solve(left, np.hstack([reach.T, missing]))
        self.inverse += reach @ solved[:, : len(self.inverse)]
        self.weights -= reach @ solved[:, len(self.inverse) :]


def _inverted(matrix: FloatArray) -> FloatArray:
    return np.asarray(cho_solve(cho_factor(matrix), np.eye(len(matrix))))
