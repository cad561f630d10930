"""Why a program has no solution: the family of rows to blame."""

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from oamip_onnx.errors import SolverError
from oamip_onnx.formulation.program import Program

# Below this the elastic program counts as feasible; solvers meet rows to about this much.
_TOLERANCE = 1e-6


def check_numbers(program: Program) -> None:
    """Raise if a coefficient of the program is no finite number.

    Raises
    ------
    SolverError
        Naming the family of rows, or the objective.
    """
    for rows in program.rows:
        bounds_are_numbers = not (np.isnan(rows.lower).any() or np.isnan(rows.upper).any())
        if not np.isfinite(rows.matrix.data).all() or not bounds_are_numbers:
            raise SolverError(
                f"The rows {rows.family!r} of the program {program.task!r} hold values that are no finite numbers; "
                "check the model's outputs on the calibration samples for NaN and infinity."
            )
    squared = program.squared
    finite = np.isfinite(program.cost).all() and np.isfinite(program.constant)
    if squared is not None:
        finite = finite and np.isfinite(squared.matrix.data).all() and np.isfinite(squared.target).all()
    if not finite:
        raise SolverError(
            f"The objective of the program {program.task!r} holds values that are no finite numbers; check the "
            "model's outputs on the calibration samples for NaN and infinity."
        )


def infeasible_family(program: Program) -> str | None:
    """Return the family that is violated most when every row may be violated at a price; None if all can be met.

    Only rows and bounds can be infeasible: a log-sum-exp epigraph has room above. The elastic program is
    ``min Σ u + Σ w`` over ``lower ≤ A x + u - w ≤ upper``, ``u, w ≥ 0``, with the binaries relaxed.
    """
    if not program.rows:
        return None
    matrix = sparse.csr_array(sparse.vstack([r.matrix for r in program.rows], format="csr"))
    lower = np.concatenate([r.lower for r in program.rows])
    upper = np.concatenate([r.upper for r in program.rows])
    rows, columns = matrix.shape
    below, above = np.flatnonzero(np.isfinite(upper)), np.flatnonzero(np.isfinite(lower))
    stacked = sparse.vstack([matrix[below], -matrix[above]], format="csr")
    owner = np.concatenate([below, above])
    slack = sparse.eye_array(owner.size)
    bounds = np.concatenate([np.stack([program.lower, program.upper], axis=1), np.tile([0.0, np.inf], (owner.size, 1))])
    outcome = linprog(  # type: ignore[call-overload]  # the stubs know no sparse matrices
        np.concatenate([np.zeros(columns), np.ones(owner.size)]),
        A_ub=sparse.hstack([stacked, -slack], format="csr"),
        b_ub=np.concatenate([upper[below], -lower[above]]),
        bounds=bounds,
        method="highs-ipm",
    )
    if outcome.x is None:
        return None
    violation = np.bincount(owner, outcome.x[columns:], rows)
    family = np.repeat(np.arange(len(program.rows)), [len(r.lower) for r in program.rows])
    totals = np.bincount(family, violation, len(program.rows))
    return program.rows[int(totals.argmax())].family if totals.max() > _TOLERANCE else None


def no_solution(program: Program, engine: str, status: str, advice: str) -> SolverError:
    """Return the error for a program without solution, naming the family of rows to blame where it can be found."""
    family = infeasible_family(program) if "infeasible" in status else None
    blame = f": the rows {family!r} contradict the others" if family else ""
    return SolverError(f"{engine} ended with the status {status!r} on the program {program.task!r}{blame}; {advice}.")
