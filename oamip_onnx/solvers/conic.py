"""Convex programs: cvxpy with CLARABEL, an interior-point method for exponential and quadratic cones."""

import math
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.errors import SolverError, UsageError, closest, first_line
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

# A dual objective may lie above the primal one by this much, relative to it.
_DUAL_TOLERANCE = 1e-4

# An inaccurate solution may violate rows by this much, relative to the size of what they bound.
_LARGEST_RESIDUAL = 1e-2


@dataclass(frozen=True)
class ConicSolver:
    """cvxpy with CLARABEL, and SCS where CLARABEL fails, which the result then says; or any solver that cvxpy finds.

    Binaries are relaxed to [0, 1], which the result's advice says, unless `integer` is set and the engine takes them.

    Attributes
    ----------
    threads
        Threads of the solver.
    seconds
        Time limit; infinite by default, since a limit makes results depend on the machine.
    engine
        Name of a solver, in any case; None for CLARABEL with SCS behind it.
    integer
        Whether binaries are kept, where the engine takes mixed-integer programs.
    tolerance
        Relative gap at which CLARABEL stops, for points that need not be optimal; None for its own.
    """

    threads: int = 1
    seconds: float = math.inf
    engine: str | None = None
    integer: bool = False
    tolerance: float | None = None

    @property
    def capabilities(self) -> Capability:
        """Convex programs; binaries with an engine that takes them."""
        return Capability.CONVEX | Capability.BINARIES if self._takes_binaries else Capability.CONVEX

    @property
    def _takes_binaries(self) -> bool:
        if not self.integer or self.engine is None:
            return False
        from cvxpy.reductions.solvers.defines import MI_SOLVERS  # noqa: PLC0415 - takes 0.9 s to import

        return self.engine.upper() in MI_SOLVERS

    def solve(self, program: Program) -> Solution:
        """Return the optimum of the convex relaxation, or of the program itself where binaries are kept.

        Raises
        ------
        SolverError
            If the program is infeasible or unbounded, holds NaN, or the engines fail.
        UsageError
            If the named engine is not installed.
        """
        check_numbers(program)
        failures: list[str] = []
        keeps_binaries = self._takes_binaries and program.binary_count > 0
        for engine, settings in self._engines(program):
            began = time.perf_counter()
            answer = _solve(program, engine, settings, integer=keeps_binaries)
            status, x = answer.status, answer.x
            seconds = time.perf_counter() - began
            name = _engine_name(engine)
            if status in {"infeasible", "unbounded", "infeasible_inaccurate", "unbounded_inaccurate"}:
                raise no_solution(program, name, status, "relax the budget or the anchor, or take other samples")
            residual = "" if x is None else _residual_too_large(program, x)
            if status in _USABLE and x is not None and not residual:
                # cvxpy hands no bound of a search over.
                bound = None if keeps_binaries else answer.bound
                relaxed = 0 if keeps_binaries else program.binary_count
                result = _record(program, name, _USABLE[status], x, bound, seconds, failures, relaxed)
                return Solution(x, result)
            failures.append(f"{name} ended with the status {status!r}{residual}")
        raise SolverError(
            f"No solver found a solution of the program {program.task!r}: {'; '.join(failures)}. Use "
            f"{'another solver' if self.engine else 'fewer samples or another form'}."
        )

    def _engines(self, program: Program) -> list[tuple[str, dict[str, Any]]]:
        clarabel: dict[str, Any] = {"max_threads": self.threads, **_INACCURATE}
        if self.tolerance is not None:
            clarabel |= {"tol_gap_abs": self.tolerance, "tol_gap_rel": self.tolerance, "tol_feas": self.tolerance}
        scs: dict[str, Any] = {
            "eps_abs": 1e-5,
            "eps_rel": 1e-5,
            "max_iters": 10_000,
        }
        if math.isfinite(self.seconds):
            clarabel["time_limit"] = self.seconds
            scs["time_limit_secs"] = self.seconds
        own = {"CLARABEL": clarabel, "SCS": scs}
        if self.engine is not None:
            name = installed_engine(self.engine)
            return [(name, own.get(name, {}))]
        # Shorter steps stay further from the boundary, which helps where the feasible region is thin.
        attempts = [("CLARABEL", clarabel), ("CLARABEL", {**clarabel, "max_step_fraction": 0.95})]
        return [*attempts, ("SCS", scs)] if program.nonzero_count <= _LARGEST_FOR_SCS else attempts


def installed_engine(name: str) -> str:
    """Return cvxpy's spelling of a solver's name.

    Raises
    ------
    UsageError
        If cvxpy does not know or find it.
    """
    import cvxpy as cp  # noqa: PLC0415 - takes 0.9 s to import

    found = sorted(cp.installed_solvers())
    if name.upper() not in found:
        known = [n.lower() for n in found]
        raise UsageError(
            f"The solver {name!r} is not installed{closest(name.lower(), known)}; found: {', '.join(known)}. Install "
            "it, or leave the choice to the program."
        )
    return name.upper()


def _engine_name(engine: str) -> str:
    try:
        return f"{engine} {version(engine.lower())}"
    except PackageNotFoundError:
        return engine  # its package has another name


@dataclass(frozen=True)
class _Answer:
    """What an engine has returned: cvxpy's status, the variables, and the dual objective where it tells that."""

    status: str
    x: npt.NDArray[np.float64] | None = None
    bound: float | None = None


def _solve(program: Program, engine: str, settings: dict[str, Any], *, integer: bool) -> _Answer:
    import cvxpy as cp  # noqa: PLC0415 - takes 0.9 s to import

    free, expression = _variables(cp, program)
    objective = program.cost @ expression + program.constant
    if program.squared is not None:
        objective += cp.sum_squares(program.squared.matrix @ expression - program.squared.target)
    constraints = _constraints(cp, expression, program)
    if integer:
        binary = np.flatnonzero(program.binary)
        constraints.append(expression[binary] == cp.Variable(binary.size, boolean=True))
    problem = cp.Problem(cp.Minimize(objective), constraints)
    with warnings.catch_warnings():
        # cvxpy warns of inaccurate solutions; the status says so, and the residual is shown.
        warnings.simplefilter("ignore")
        try:
            # In three steps rather than by `solve`, which keeps the engine's dual objective to itself.
            data, chain, inverse = problem.get_problem_data(engine, solver_opts=settings)
            raw = chain.solve_via_data(problem, data, solver_opts=settings)
            problem.unpack_results(raw, chain, inverse)
        except cp.error.SolverError as error:
            return _Answer(f"no progress ({first_line(error)})")
    if free.value is None or not np.isfinite(free.value).all():
        return _Answer(str(problem.status))
    return _Answer(str(problem.status), np.asarray(expression.value, np.float64), _bound(raw, problem.value))


def _bound(raw: Any, value: float) -> float | None:
    """Return the dual objective in the problem's own units, from what CLARABEL or SCS returned; else None."""
    if hasattr(raw, "obj_val_dual"):
        primal, dual = raw.obj_val, raw.obj_val_dual
    elif isinstance(raw, dict) and isinstance(raw.get("info"), dict) and "dobj" in raw["info"]:
        primal, dual = raw["info"]["pobj"], raw["info"]["dobj"]
    else:
        return None
    # cvxpy keeps constants of the objective from the engine.
    return float(value + dual - primal)


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
    bound: float | None,
    seconds: float,
    failures: list[str],
    relaxed: int,
) -> SolverResult:
    advice = [f"{failure}; another attempt followed." for failure in failures]
    if status is SolverStatus.INACCURATE:
        family, worst = _relative_violations(program, x)
        advice.append(f"The largest relative residual is {worst:.1e}, in {family!r}; fewer samples are more accurate.")
    if relaxed:
        advice.append(f"{relaxed} binaries were relaxed; SCIP solves them exactly if they are few.")
    value = program.objective(x)
    # A dual point of an inaccurate solution is hardly feasible and proves nothing; one above the value by more than the
    # engine's tolerance is none.
    proven = None
    if bound is not None and status is SolverStatus.OPTIMAL and bound <= value + _DUAL_TOLERANCE * max(1, abs(value)):
        proven = min(bound, value)
    gap = None if proven is None else (value - proven) / max(abs(value), 1e-9)
    return SolverResult(program.task, engine, status, value, proven, gap, 0, seconds, " ".join(advice))
