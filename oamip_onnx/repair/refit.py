"""Refitting the consumers of removed channels in closed form, in network order.

For one contraction let X be the features that now reach it, with a column of ones behind them, and Y what the original
model computed there. The refit is

    W = argmin ‖X·W − Y‖² + ρ·m·‖W − W₀‖²  =  (XᵀX + ρ·m·D)⁻¹ (XᵀY + ρ·m·D·W₀),                               (1)

with W₀ the weights as cut, m the mean diagonal of XᵀX, and D the identity without the ones column, which is not
pulled. ρ is the one with the smallest error on held-out samples; W is then solved on all of them.

Where the output enters a sum, Y is the original's sum less what is added to it now, so that the refit makes up for the
changes of a residual stream too; two contractions that are added are refit as one.

Where a ReLU or a Clip follows, only what it lets through counts: ‖r(X·W) − r(Y)‖² is minimised in turns over W, by
equation 1, and over targets Z in place of Y that r maps to the same values, those nearest to X·W (Zhang et al. 2015,
"Accelerating very deep convolutional networks for classification and detection", section 3.2, with the penalty at its
limit). A few turns are kept if they lower that error on held-out samples.

The bias repair changes the last row alone, b += mean(Y − X·W₀), the least-squares optimal bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from oamip_onnx.calibration import moments
from oamip_onnx.model import Array, with_initializers
from oamip_onnx.repair.context import (
    RepairContext,
    Repaired,
    RepairStep,
    initializer_array,
)
from oamip_onnx.repair.fits import Fit, find_fits
from oamip_onnx.repair.rows import Rows, RowSource, few_samples_note, memory_finding

FloatArray = npt.NDArray[np.float64]

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# The search for the ridge starts here and goes on while the error falls.
_FIRST_RIDGE = 2

# Turns between weights and targets behind an activation at most; they end when one lowers the error by less than this
# share.
_TURNS, _LEAST_GAIN = 5, 0.002


def repair_least_squares(context: RepairContext) -> Repaired:
    """Return the model with every consumer's weights and bias refit to what the original computed there."""
    return _repair(context, RIDGES)


def repair_bias(context: RepairContext) -> Repaired:
    """Return the model with every consumer's bias shifted by the mean of what it lost."""
    return _repair(context, ())


def _repair(context: RepairContext, ridges: Sequence[float]) -> Repaired:
    found, steps = find_fits(context)
    fits = []
    for fit in found:
        reason = memory_finding(context, fit)
        if reason:
            steps.append(RepairStep(context.model.node_name(fit.parts[-1].index), skipped=f"Left as it is: {reason}."))
        else:
            fits.append(fit)
    source = RowSource(context, fits)
    updates: dict[str, Array] = {}
    proto = context.cut
    for fit in fits:
        step, changed = _Refit(context, fit, proto, source.of(fit, proto)).best(ridges)
        steps.append(step)
        if changed:
            updates |= changed
            proto = with_initializers(proto, changed)
    return Repaired(proto, updates, tuple(steps), few_samples_note(context, fits) if ridges else ())


@dataclass(frozen=True)
class _Candidate:
    """Weights of a fit, by group, (groups, features + 1, outputs), and how they came about."""

    matrix: FloatArray
    error: float
    ridge: float | None = None
    turns: int = 0


@dataclass(frozen=True)
class _Factor:
    """The Cholesky factor of the normal equations of one group, and what pulls each feature to its old weights."""

    triangle: tuple[FloatArray, bool]
    pull: FloatArray


class _Refit:
    """One fit: its rows, and the weights that it may take."""

    def __init__(self, context: RepairContext, fit: Fit, proto: onnx.ModelProto, rows: tuple[Rows, Rows]) -> None:
        self._fit, self._rows = fit, rows
        self._name = context.model.node_name(fit.parts[-1].index)
        self._weights = [initializer_array(proto, part.weight) for part in fit.parts]
        self._biases = [None if p.bias is None else initializer_array(proto, p.bias) for p in fit.parts]
        groups = fit.layout.groups
        parts = [_grouped(p.layout.matrix(w), groups) for p, w in zip(fit.parts, self._weights, strict=True)]
        constant = np.zeros((groups, 1, parts[0].shape[2]))
        for part, bias in zip(fit.parts, self._biases, strict=True):
            # What an Add behind the contraction adds stays out of the target: the last row is what joins it.
            if bias is not None and part.adds_bias:
                constant += bias.astype(np.float64).reshape(constant.shape)
        self._old = np.concatenate([*parts, constant], axis=1)
        self._has_bias = self._biases[0] is not None

    def best(self, ridges: Sequence[float]) -> tuple[RepairStep, dict[str, Array]]:
        """Return the best of the candidates on held-out samples, the old weights among them, and what it changes."""
        fit, held_out = self._rows
        old = _Candidate(self._old, _error(held_out, self._old))
        candidates = [old]
        features, cross = moments(fit.features), moments(fit.features, fit.targets)
        if self._has_bias:
            shifted = self._shifted(features, cross)
            candidates.append(_Candidate(shifted, _error(held_out, shifted)))
        if ridges:
            linear = self._search(features, cross, ridges)
            candidates += linear
            if linear and fit.bounds is not None:
                candidates += self._turned([fit], features, min(linear, key=lambda c: c.error))
        best = min(candidates, key=lambda c: c.error)
        energy = _energy(held_out)
        if best is old:
            reason = "Left as it is: no refit was better on held-out samples."
            return RepairStep(self._name, old.error / energy, old.error / energy, None, reason), {}
        # The choice is made; the solution itself may use all samples.
        features, cross = features + moments(held_out.features), cross + moments(held_out.features, held_out.targets)
        matrix = self._shifted(features, cross) if best.ridge is None else self._solved(features, cross, best.ridge)
        final = best if matrix is None else _Candidate(matrix, best.error, best.ridge)
        if matrix is not None and best.turns:
            final = self._turned([fit, held_out], features, final, best.turns)[-1]
        return RepairStep(self._name, old.error / energy, best.error / energy, best.ridge), self._changes(final)

    def _search(self, features: FloatArray, cross: FloatArray, ridges: Sequence[float]) -> list[_Candidate]:
        """Return the solutions with the ridges from the first towards the one with the smallest held-out error."""
        known: dict[int, _Candidate | None] = {}

        def at(position: int) -> float:
            if not 0 <= position < len(ridges):
                return np.inf
            if position not in known:
                matrix = self._solved(features, cross, ridges[position])
                known[position] = (
                    None if matrix is None else _Candidate(matrix, _error(self._rows[1], matrix), ridges[position])
                )
            found = known[position]
            return np.inf if found is None else found.error

        place = min(_FIRST_RIDGE, len(ridges) - 1)
        while True:
            better = min((place - 1, place + 1), key=at)
            if at(better) >= at(place):
                break
            place = better
        return [candidate for candidate in known.values() if candidate is not None]

    def _turned(
        self, rows: Sequence[Rows], features: FloatArray, start: _Candidate, turns: int = _TURNS
    ) -> list[_Candidate]:
        """Return what turns between weights and targets make of a solution."""
        found = []
        current = start
        factors = self._factors(features, start.ridge or 0.0)
        for turn in range(1, turns + 1):
            cross = sum((moments(r.features, _reachable(r, current.matrix)) for r in rows), np.zeros(()))
            matrix = None if factors is None else self._solution(factors, cross)
            if matrix is None:
                break
            current = _Candidate(matrix, _error(self._rows[1], matrix), start.ridge, turn)
            found.append(current)
            before = found[-2].error if turn > 1 else start.error
            if turns == _TURNS and current.error > (1 - _LEAST_GAIN) * before:
                break
        return found or [start]

    def _shifted(self, features: FloatArray, cross: FloatArray) -> FloatArray:
        # The last row of XᵀX and XᵀY holds sums over rows: their difference under the old weights is the lost mean.
        shifted = self._old.copy()
        rows = max(float(features[0, -1, -1]), 1.0)
        shifted[:, -1] += (cross[:, -1] - np.einsum("gf,gfo->go", features[:, -1], self._old)) / rows
        return shifted

    def _solved(self, features: FloatArray, cross: FloatArray, ridge: float) -> FloatArray | None:
        """Return equation 1, or None where the normal equations are singular."""
        factors = self._factors(features, ridge)
        return None if factors is None else self._solution(factors, cross)

    def _factors(self, features: FloatArray, ridge: float) -> list[_Factor] | None:
        """Return the factorised normal equations of each group, or None where one of them is singular."""
        size = self._old.shape[1] - (not self._has_bias)
        found = []
        for group in features:
            diagonal = np.diag(group)[:-1]
            pull = np.zeros(size)
            pull[: len(diagonal)] = ridge * max(float(diagonal.mean()), np.finfo(np.float64).tiny)
            try:
                found.append(_Factor(cho_factor(group[:size, :size] + np.diag(pull)), pull))
            except LinAlgError:
                return None
        return found

    def _solution(self, factors: Sequence[_Factor], cross: FloatArray) -> FloatArray | None:
        """Return the solution of factorised normal equations, or None where it is not finite."""
        result = self._old.copy()
        for group, factor in enumerate(factors):
            size = len(factor.pull)
            right = cross[group, :size] + factor.pull[:, None] * self._old[group, :size]
            result[group, :size] = cho_solve(factor.triangle, right)
        return result if bool(np.isfinite(result).all()) else None

    def _changes(self, chosen: _Candidate) -> dict[str, Array]:
        """Return the new values of the initializers."""
        changed: dict[str, Array] = {}
        start = 0
        for part, weight in zip(self._fit.parts, self._weights, strict=True):
            size = part.layout.matrix(weight).shape[0]
            if chosen.ridge is not None:
                own = chosen.matrix[:, start : start + size]
                changed[part.weight] = part.layout.weight(np.concatenate(list(own), axis=1), weight)
            start += size
        first, bias = self._fit.parts[0], self._biases[0]
        if first.bias is not None and bias is not None:
            # The first part takes up the change of the sum of all constants.
            change = (chosen.matrix[:, -1] - self._old[:, -1]).reshape(bias.shape)
            changed[first.bias] = (bias + change).astype(bias.dtype)
        return changed


def _grouped(matrix: Array, groups: int) -> FloatArray:
    """Return (features, groups · outputs) as (groups, features, outputs)."""
    return matrix.astype(np.float64).reshape(len(matrix), groups, -1).swapaxes(0, 1)


def _error(rows: Rows, matrix: FloatArray) -> float:
    """Return the squared error per row behind the activation."""
    return _per_row(_through(rows, rows.features @ matrix.astype(np.float32)) - _through(rows, rows.targets))


def _energy(rows: Rows) -> float:
    """Return the energy per row of what the activation lets through of the targets."""
    return max(_per_row(_through(rows, rows.targets)), float(np.finfo(np.float64).tiny))


def _per_row(values: npt.NDArray[np.float32]) -> float:
    """Return the sum of squares by row of values of shape (groups, rows, outputs)."""
    return float(np.square(values).sum(dtype=np.float64)) / max(int(values.shape[1]), 1)


def _through(rows: Rows, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return values if rows.bounds is None else np.clip(values, *rows.bounds)


def _reachable(rows: Rows, matrix: FloatArray) -> npt.NDArray[np.float32]:
    """Return the values nearest to those that the weights give among those that the activation maps to its targets."""
    if rows.bounds is None:
        return rows.targets
    lower, upper = rows.bounds
    values = rows.features @ matrix.astype(np.float32)
    below = np.where(rows.targets <= lower, np.minimum(values, lower), rows.targets)
    return np.where(rows.targets >= upper, np.maximum(values, upper), below)
