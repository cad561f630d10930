"""What every importance criterion returns."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from oamip_onnx.importance.certificates import Certificate
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
        Its name, such as ``oamip``, ``reconstruction`` or ``magnitude``.
    form
        For ``oamip``, the form of the program: ``response``, ``layerwise``, ``shift`` or ``gate``; empty otherwise.
    solver
        The programs solved, in order.
    expected_loss
        Loss that the programs expect at their scores, less the original's, the mean over programs; None where widths
        are planned and for other criteria.
    certificates
        How far the chosen subset is from what is proven possible.
    notes
        Sentences for the report: which form was chosen and why, what was relaxed.
    """

    values: FloatArray
    criterion: str
    form: str = ""
    solver: tuple[SolverResult, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    certificates: tuple[Certificate, ...] = field(default=())
    expected_loss: float | None = None
