"""Convex programs: cvxpy with CLARABEL, an interior-point method for exponential and quadratic cones."""

import math
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.errors import SolverError
from oamip_onnx.formulation.program import LOGITS, Program, largest_violation
from oamip_onnx.solvers.diagnosis import check_numbers, no_solution
from oamip_onnx.solvers.protocol import Capability, Solution
from oamip_onnx.solvers.result import SolverResult, SolverStatus

_USABLE = {"optimal": SolverStatus.OPTIMAL, "optimal_inaccurate": SolverStatus.INACCURATE}

# Where CLARABEL gets no further, it may stop with these tolerances, and the status says so. The shift form needs them:
# a ReLU that hardly fires leaves its rows a sliver of feasible scores.
_INACCURATE = {"reduced_tol_gap_abs": 1e-3, "reduced_tol_gap_rel": 1e-3, "reduced_tol_ktratio": 1e-2}

# Above this number of coefficients SCS takes minutes where CLARABEL has failed, and rarely ends with a solution.
_LARGEST_FOR_SCS = 1_000_000

# An inaccurate solution may violate rows by this much, relative to the size of what they bound.
_LARGEST_RESIDUAL = 1e-2


@dataclass(frozen=True)
class ConicSolver:
    """cvxpy with CLARABEL, and SCS where CLARABEL fails, which the result then says.

    Binaries are relaxed to [0, 1], which the result's advice says.

    Attributes
    ----------
    threads
        Threads of the solver.
    seconds
        Time limit; infinite by default, since a limit makes results depend on the machine.
    """

    threads: int = 1
    seconds: float = math.inf

    @property
    def capabilities(self) -> Capability:
        """Convex programs only."""
        return Capability.CONVEX

    def solve(self, program: Program) -> Solution:
        """Return the optimum of the convex relaxation.

        Raises
        ------
        SolverError
            If the program is infeasible or unbounded, holds NaN, or both engines fail.
        """
        check_numbers(program)
        failures: list[str] = []
        for engine, settings in self._engines(program):
            began = time.perf_counter()
            status, x = _solve(program, engine, settings)
            seconds = time.perf_counter() - began
            name = f"{engine} {version(engine.lower())}"
            if status in {"infeasible", "unbounded", "infeasible_inaccurate", "unbounded_inaccurate"}:
                raise no_solution(program, name, status, "relax the budget or the anchor, or take other samples")
            residual = "" if x is None else _residual_too_large(program, x)
            if status in _USABLE and x is not None and not residual:
                return Solution(x, _record(program, name, _USABLE[status], x, seconds=seconds, failures=failures))
            failures.append(f"{name} ended with the status {status!r}{residual}")
        raise SolverError(
            f"No solver found a solution of the program {program.task!r}: {'; '.join(failures)}. Use fewer samples or "
            "another form."
        )

    def _engines(self, program: Program) -> list[tuple[str, dict[str, Any]]]:
        clarabel: dict[str, Any] = {"max_threads": self.threads, **_INACCURATE}
        scs: dict[str, Any] = {
            "eps_abs": 1e-5,
            "eps_rel": 1e-5,
            "max_iters": 10_000,
        }
        if math.isfinite(self.seconds):
            clarabel["time_limit"] = self.seconds
            scs["time_limit_secs"] = self.seconds
        # Shorter steps stay further from the boundary, which helps where the feasible region is thin.
        attempts = [("CLARABEL", clarabel), ("CLARABEL", {**clarabel, "max_step_fraction": 0.95})]
        return [*attempts, ("SCS", scs)] if program.nonzero_count <= _LARGEST_FOR_SCS else attempts


def _solve(program: Program, engine: str, settings: dict[str, Any]) -> tuple[str, npt.NDArray[np.float64] | None]:
    import cvxpy as cp  # noqa: PLC0415 - takes 0.9 s to import

    free, expression = _variables(cp, program)
    objective = program.cost @ expression + program.constant
    if program.squared is not None:
        objective += cp.sum_squares(program.squared.matrix @ expression - program.squared.target)
    problem = cp.Problem(cp.Minimize(objective), _constraints(cp, expression, program))
    with warnings.catch_warnings():
        # cvxpy warns of inaccurate solutions; the status says so, and the residual is shown.
        warnings.simplefilter("ignore")
        try:
            problem.solve(solver=engine, **settings)
        except cp.error.SolverError:
            return "no progress", None
    value = None if free.value is None or not np.isfinite(free.value).all() else expression.value
    return str(problem.status), None if value is None else np.asarray(value, np.float64)


def _variables(cp: Any, program: Program) -> tuple[Any, Any]:
    """Return the free variables, and all of the program's as an expression of them.

    The logits are replaced by what defines them: CLARABEL then factorises three times faster.
    """
    defined = program.defined_logits()
    if defined is None:
        x = cp.Variable(program.variable_count)
        return x, x
    block, matrix, constant = defined
    others = np.delete(np.arange(program.variable_count), block.columns)
    free = cp.Variable(others.size)
    identity = (np.ones(others.size), (others, np.arange(others.size)))
    wide = sparse.coo_array(identity, shape=(program.variable_count, others.size))
    own = sparse.csr_array(matrix[:, others]).tocoo()
    rows = own.coords[0] + block.start
    lifted = sparse.coo_array((own.data, (rows, own.coords[1])), shape=wide.shape)
    offset = np.zeros(program.variable_count)
    offset[block.columns] = constant
    return free, sparse.csr_array(wide + lifted) @ free + offset


def _constraints(cp: Any, x: Any, program: Program) -> list[Any]:
    constraints = []
    for bound, sign in ((program.lower, -1.0), (program.upper, 1.0)):
        finite = np.flatnonzero(np.isfinite(bound))
        if finite.size:
            constraints.append(sign * x[finite] <= sign * bound[finite])
    defined = program.defined_logits()
    for rows in program.rows:
        if rows.family == LOGITS and defined is not None:
            continue
        equal = rows.lower == rows.upper
        for chosen, kind in ((equal, 0), (~equal & np.isfinite(rows.upper), 1), (~equal & np.isfinite(rows.lower), -1)):
            index = np.flatnonzero(chosen)
            if not index.size:
                continue
            value = rows.matrix[index] @ x
            if kind == 0:
                constraints.append(value == rows.lower[index])
            elif kind == 1:
                constraints.append(value <= rows.upper[index])
            else:
                constraints.append(value >= rows.lower[index])
    terms = program.exponentials
    if terms is not None:
        logits = cp.reshape(x[terms.logits.reshape(-1)], terms.logits.shape, order="C")
        constraints.append(cp.log_sum_exp(logits, axis=1) <= x[terms.epigraph])
    return constraints


def _relative_violations(program: Program, x: npt.NDArray[np.float64]) -> tuple[str, float]:
    family, worst = largest_violation(program.violations(x))
    return family, worst / max(1.0, float(np.abs(x).max(initial=0.0)))


def _residual_too_large(program: Program, x: npt.NDArray[np.float64]) -> str:
    family, worst = _relative_violations(program, x)
    return f" with the rows {family!r} violated by {worst:.1e}" if worst > _LARGEST_RESIDUAL else ""


def _record(
    program: Program,
    engine: str,
    status: SolverStatus,
    x: npt.NDArray[np.float64],
    *,
    seconds: float,
    failures: list[str],
) -> SolverResult:
    advice = [f"{failure}; another attempt followed." for failure in failures]
    if status is SolverStatus.INACCURATE:
        family, worst = _relative_violations(program, x)
        advice.append(f"The largest relative residual is {worst:.1e}, in {family!r}; fewer samples are more accurate.")
    if program.binary_count:
        advice.append(f"{program.binary_count} binaries were relaxed; SCIP solves them exactly if they are few.")
    value = program.objective(x)
    # A convex optimum is its own bound; an inaccurate one proves nothing.
    proven = value if status is SolverStatus.OPTIMAL else None
    return SolverResult(
        program.task, engine, status, value, proven, None if proven is None else 0.0, 0, seconds, " ".join(advice)
    )
