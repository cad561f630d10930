"""Decoupling by class: one program a class, and what becomes of their scores."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oamip_onnx.formulation import Program
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.solvers import Solution


def by_class(classes: npt.NDArray[np.integer], combine: str) -> list[npt.NDArray[np.intp]]:
    """Return the rows of each program: all in one for ``none``, else those of each class that is there.

    Parameters
    ----------
    classes
        Class of each sample, shape (samples,).
    combine
        ``none``, ``mean`` or ``max``.
    """
    if combine == "none":
        return [np.arange(len(classes))]
    return [np.flatnonzero(classes == value) for value in np.unique(classes)]


def combined(scores: Sequence[FloatArray], combine: str) -> FloatArray:
    """Return one score a unit from those of each program: their mean (the paper's choice), or the largest."""
    return np.asarray(np.max(scores, axis=0) if combine == "max" else np.mean(scores, axis=0), np.float64)


def mean_expected_loss(programs: Sequence[Program], solutions: Sequence[Solution], loss_weight: float) -> float | None:
    """Return the mean over programs of the loss at their solutions, less the original's; None without starts."""
    found = [
        program.expected_loss(solution.x, loss_weight) for program, solution in zip(programs, solutions, strict=True)
    ]
    losses = [loss for loss in found if loss is not None]
    return float(np.mean(losses)) if losses and len(losses) == len(found) else None
