"""What every importance criterion returns."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from oamip_onnx.solvers.result import SolverResult

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Importance of every unit of a model.

    Attributes
    ----------
    values
        One score per unit; higher means keep. Comparable within a group. Shape (units,), float64, finite.
    criterion
        ``oamip``, ``magnitude`` or ``random``.
    form
        For ``oamip``, the form of the program: ``response``, ``shift`` or ``layerwise``; empty otherwise.
    solver
        The programs solved, in order.
    notes
        Sentences for the report: which form was chosen and why, what was relaxed.
    """

    values: FloatArray
    criterion: str
    form: str = ""
    solver: tuple[SolverResult, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
