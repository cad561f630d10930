"""Solving the program of the response form for what was measured."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oamip_onnx.formulation import Program, response_program
from oamip_onnx.importance.decoupling import by_class, combined, mean_expected_loss
from oamip_onnx.importance.logits import Loss
from oamip_onnx.importance.measuring import Measured, Responses
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.solvers import SolverResult

# Differences of scores below this are the solver's tolerance.
_TIE = 1e-3


def scored(
    context: ImportanceContext,
    responses: Responses,
    measured: Measured,
    widths: Sequence[int] | None,
    task: str,
    solves: list[SolverResult],
    exchange: float | None = None,
) -> tuple[FloatArray, float | None]:
    """Solve, by class where asked for.

    Returns
    -------
    scores
        A score for every unit of the model, 0 for those not measured.
    expected_loss
        The loss that the programs expect, less the original's, where no widths are planned; else None.
    """
    loss = responses.loss
    parts = by_class(loss.likeliest, context.oamip.by_class)
    weight = 1.0 if widths is not None else context.oamip.loss_weight
    programs = [_program(task, measured, loss, rows, widths, exchange, weight) for rows in parts]
    found, solutions = [], context.solve(programs)
    for rows, solution in zip(parts, solutions, strict=True):
        solves.append(solution.result)
        found.append(_read(measured, loss, rows, np.clip(solution.x[: len(measured.units)], 0.0, 1.0)))
    scores = np.zeros(context.analysis.unit_count)
    scores[measured.units] = combined(found, context.oamip.by_class)
    return scores, mean_expected_loss(programs, solutions, weight)


def _program(
    task: str,
    measured: Measured,
    loss: Loss,
    rows: npt.NDArray[np.intp],
    widths: Sequence[int] | None,
    exchange: float | None,
    loss_weight: float,
) -> Program:
    return response_program(
        task,
        measured.base[rows],
        _of_rows(measured, rows),
        loss.targets[rows],
        measured.owner,
        classifies=loss.classifies,
        widths=widths,
        gone=measured.gone,
        exchange=exchange,
        loss_weight=loss_weight,
    )


def _of_rows(measured: Measured, rows: npt.NDArray[np.intp]) -> FloatArray:
    """Return the changes of some samples, shape (units, rows · classes)."""
    changes = measured.changes.reshape(len(measured.units), *measured.base.shape)[:, rows]
    return changes.reshape(len(measured.units), -1)


def _read(measured: Measured, loss: Loss, rows: npt.NDArray[np.intp], s: FloatArray) -> FloatArray:
    """Return a program's scores with ties broken by what a unit is worth at the optimum."""
    changes = _of_rows(measured, rows)
    moved = np.where(measured.gone, s, 1.0 - s)
    q = (measured.base[rows].ravel() + moved @ changes).reshape(len(rows), -1)
    slope = loss.slope_of(q, loss.targets[rows]).ravel()
    # −∂loss/∂s: a unit that is alive adds −Δ as its score rises, one that is gone adds Δ.
    benefit = np.where(measured.gone, -1.0, 1.0) * (changes @ slope)
    return _ties_broken(s, benefit, measured.owner)


def _ties_broken(s: FloatArray, benefit: FloatArray, group_of_unit: npt.NDArray[np.int64]) -> FloatArray:
    """Return scores in [0, 1] that agree with s up to `_TIE`, and among equal ones rank by what a unit is worth.

    `benefit` is −∂loss/∂s_g at the optimum, shape (units,). It is what all units between 0 and 1 of a group share;
    units at 1 are worth more and units at 0 less.
    """
    low, high = np.full(group_of_unit.max() + 1, np.inf), np.full(group_of_unit.max() + 1, -np.inf)
    np.minimum.at(low, group_of_unit, benefit)
    np.maximum.at(high, group_of_unit, benefit)
    spread = np.maximum(high - low, np.finfo(np.float64).tiny)[group_of_unit]
    return np.asarray((s + _TIE * (benefit - low[group_of_unit]) / spread) / (1 + _TIE))
