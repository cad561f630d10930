"""How far a chosen subset is from what is proven possible."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.formulation.program import FloatArray, Program, ProgramBuilder
from oamip_onnx.solvers.result import SolverResult

# Engines meet rows and close gaps to about this much.
_TOLERANCE = 1e-4

# Groups of more units than this are not certified: SCIP proves little about more binaries in a dense quadratic form.
LARGEST_QUADRATIC = 64


@dataclass(frozen=True)
class Certificate:
    """An objective that a choice reaches, and a bound that no choice can go below.

    Attributes
    ----------
    task
        What was chosen.
    statement
        What the bound says, in a sentence.
    objective, bound
        Value of the choice, and the proven bound of the minimum; None where the engine proves none.
    gap
        (objective - bound) / |objective|; None without a bound.
    engine
        What has proven it.
    """

    task: str
    statement: str
    objective: float
    bound: float | None
    gap: float | None
    engine: str


def certificate(task: str, statement: str, objective: float, solve: SolverResult, offset: float = 0.0) -> Certificate:
    """Return the certificate of a choice against the bound of a program.

    Parameters
    ----------
    task, statement
        See `Certificate`.
    objective
        Value of the choice.
    solve
        The solve whose bound holds.
    offset
        What is subtracted from the bound to bring it to the objective's terms.
    """
    if solve.bound is None:
        return Certificate(task, statement, objective, None, None, solve.engine)
    bound = solve.bound - offset
    if bound > objective + _TOLERANCE * max(1.0, abs(objective)):
        # A bound above what a feasible choice reaches would prove nothing but an error.
        return Certificate(task, statement, objective, None, None, solve.engine)
    bound = min(bound, objective)
    gap = (objective - bound) / max(abs(objective), 1e-9)
    return Certificate(task, statement, objective, bound, gap, solve.engine)


def quadratic_program(task: str, changes: FloatArray, probabilities: FloatArray, removed: int) -> Program:
    """Return the program ``min dᵀQd, Σ d = removed, d ∈ {0, 1}`` of one group.

    dᵀQd is the second-order term of the loss around the original, where its gradient vanishes:

        Q = 1/2n Σ_i Δ_iᵀ (diag p_i - p_i p_iᵀ) Δ_i

    with Δ_i the changes of sample i's logits and p_i its probabilities; as a sum of squares,
    Σ_c p_c δ_c² - (Σ_c p_c δ_c)² = Σ_c p_c (δ_c - Σ_k p_k δ_k)².

    Parameters
    ----------
    task
        Name for reports.
    changes
        Δ, shape (units, samples, classes).
    probabilities
        p, shape (samples, classes).
    removed
        Number of units that go.
    """
    builder = ProgramBuilder(task)
    block = builder.variables("removed", len(changes), 0.0, 1.0, binary=True)
    builder.rows("removed units", sparse.csr_array(np.ones((1, block.size))), float(removed), float(removed))
    builder.squares(sparse.csr_array(quadratic_factor(changes, probabilities)), np.zeros(probabilities.size))
    return builder.build()


def quadratic_factor(changes: FloatArray, probabilities: FloatArray) -> FloatArray:
    """Return A with ``‖A d‖² = dᵀQd`` of `quadratic_program`, shape (samples · classes, units)."""
    centred = changes - (changes * probabilities).sum(axis=2, keepdims=True)
    scale = np.sqrt(probabilities / (2 * len(probabilities)))
    return np.asarray((centred * scale).reshape(len(changes), -1).T)


def quadratic_value(changes: FloatArray, probabilities: FloatArray, removed: npt.NDArray[np.bool_]) -> float:
    """Return dᵀQd of a choice, (units,)."""
    moved = quadratic_factor(changes, probabilities) @ removed.astype(np.float64)
    return float(moved @ moved)
