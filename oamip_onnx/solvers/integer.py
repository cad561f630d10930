"""Programs with binaries: SCIP, with the log-sum-exp terms as tangent cuts.

Tangents at the optimum of the convex relaxation and at the start make the root bound as strong as the conic program's;
a lazy constraint handler adds more wherever the search finds a solution that violates a term.
"""

import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from oamip_onnx.errors import SolverError
from oamip_onnx.formulation.program import FloatArray, Program
from oamip_onnx.solvers.conic import ConicSolver
from oamip_onnx.solvers.diagnosis import check_numbers, no_solution
from oamip_onnx.solvers.protocol import Capability, Solution
from oamip_onnx.solvers.result import SolverResult, SolverStatus
from oamip_onnx.solvers.tangents import TangentCuts, include_handler
from oamip_onnx.solvers.watching import Trace, include_trace, trace_point

# SCIP may end with these although it has found points.
_WITHOUT_OPTIMUM = {"unbounded", "inforunbd"}

# A tangent holds wherever it touches, so that the relaxation need not be solved to the end.
_TANGENT_TOLERANCE = 1e-4

# With no more binaries than this SCIP's own dives find solutions as good as a further convex solve.
_FEW = 32


@dataclass(frozen=True)
class IntegerSolver:
    """SCIP through PySCIPOpt.

    Attributes
    ----------
    nodes
        Most branch-and-bound nodes; the limit that makes results repeat.
    seconds
        The fuse; a solve that it ends says so.
    gap
        Relative gap at which to stop.
    seed
        SCIP's seed.
    threads
        Threads of the LP solver.
    relaxed
        Whether binaries are relaxed to [0, 1], which the result's advice says.
    """

    nodes: int = 10_000
    seconds: float = 300.0
    gap: float = 1e-4
    seed: int = 0
    threads: int = 1
    relaxed: bool = False

    @property
    def capabilities(self) -> Capability:
        """Convex programs and binaries, from a warm start."""
        return Capability.CONVEX | Capability.BINARIES | Capability.WARM_START

    def solve(self, program: Program) -> Solution:
        """Return the best solution found, with its proven bound.

        Raises
        ------
        SolverError
            If the program is infeasible or unbounded, holds NaN, or the limits end the search without a solution.
        """
        check_numbers(program)
        began = time.perf_counter()
        engine = f"SCIP {version('pyscipopt')} (PySCIPOpt)"
        notes: list[str] = []
        start = _improved(program)
        points = _tangent_points(program, start, notes)
        model, variables, residuals = self._model(program)
        if program.exponentials is not None:
            cuts = TangentCuts(model, variables, program.exponentials)
            cuts.seed(points)
            include_handler(cuts)
        if program.start is not None and start is not None:
            _add_start(model, variables, residuals, program, program.start)
            if start is not program.start:
                _add_start(model, variables, residuals, program, start)
        trace = include_trace(model, self.nodes)
        model.optimize()
        trace.add(trace_point(model))
        status = str(model.getStatus())
        if status == "userinterrupt":  # SCIP catches the signal itself
            raise KeyboardInterrupt
        seconds = time.perf_counter() - began
        if model.getNSols() == 0 or status in _WITHOUT_OPTIMUM:
            advice = "raise the node or time limit, or relax the budget"
            raise no_solution(program, engine, status, advice)
        best = model.getBestSol()
        x = program.with_tight_losses(np.array([model.getSolVal(best, v) for v in variables]))
        if self.relaxed and program.binary_count:
            notes.append(f"{program.binary_count} binaries were relaxed.")
        return Solution(x, _record(program, engine, model, x, seconds=seconds, notes=notes, trace=trace))

    def _model(self, program: Program) -> tuple[Any, list[Any], list[Any]]:
        """Return SCIP's model, its variables in the program's order, and those of the squared term."""
        from pyscipopt import SCIP_PARAMSETTING, Model, quicksum  # noqa: PLC0415 - loads SCIP's shared library
        from pyscipopt.scip import Expr, Term  # noqa: PLC0415 - as above

        model = Model(program.task)
        model.hideOutput()
        model.setParam("limits/nodes", self.nodes)
        model.setParam("limits/time", self.seconds)
        model.setParam("limits/gap", self.gap)
        model.setParam("randomization/randomseedshift", self.seed)
        model.setParam("lp/threads", self.threads)
        if program.exponentials is not None:
            # The tangents are the cuts that count; SCIP's own take most of the time and move the bound little.
            model.setSeparating(SCIP_PARAMSETTING.OFF)
            model.setHeuristics(SCIP_PARAMSETTING.FAST)
        lower, upper, binary = program.lower, program.upper, program.binary
        variables = [
            model.addVar(
                vtype="B" if binary[j] and not self.relaxed else "C",
                lb=None if np.isneginf(lower[j]) else lower[j],
                ub=None if np.isposinf(upper[j]) else upper[j],
                # Costs are set here rather than by setObjective, which builds a Python expression of all variables.
                obj=program.cost[j],
            )
            for j in range(program.variable_count)
        ]
        model.addObjoffset(program.constant)
        terms = [Term(variable) for variable in variables]
        for rows in program.rows:
            matrix = rows.matrix
            for i in range(matrix.shape[0]):
                part = slice(matrix.indptr[i], matrix.indptr[i + 1])
                # Written down as PySCIPOpt stores it: summing products makes an object for each of them.
                value = Expr({terms[j]: float(c) for c, j in zip(matrix.data[part], matrix.indices[part], strict=True)})
                _add_row(model, value, rows.lower[i], rows.upper[i])
        residuals = [] if program.squared is None else _add_squares(model, variables, program, quicksum)
        return model, variables, residuals


def _add_row(model: Any, value: Any, lower: float, upper: float) -> None:
    if lower == upper:
        model.addCons(value == lower)
        return
    if np.isfinite(lower):
        model.addCons(value >= lower)
    if np.isfinite(upper):
        model.addCons(value <= upper)


def _add_squares(model: Any, variables: list[Any], program: Program, quicksum: Any) -> list[Any]:
    """Add ``t ≥ Σ r²``, ``r = matrix · x - target``, with t in the objective; return the variables r and t."""
    assert program.squared is not None  # noqa: S101 - the caller has looked
    matrix, target = program.squared.matrix, program.squared.target
    residuals = []
    for i in range(matrix.shape[0]):
        part = slice(matrix.indptr[i], matrix.indptr[i + 1])
        residual = model.addVar(lb=None, ub=None)
        terms = zip(matrix.data[part], matrix.indices[part], strict=True)
        model.addCons(residual == quicksum(c * variables[j] for c, j in terms) - target[i])
        residuals.append(residual)
    total = model.addVar(lb=0.0, ub=None, obj=1.0)
    model.addCons(quicksum(r * r for r in residuals) <= total)
    return [*residuals, total]


def _improved(program: Program) -> FloatArray | None:
    """Return the start, or, with many binaries and where it is better, the convex optimum at its binaries."""
    if program.start is None or program.binary_count <= _FEW:
        return program.start
    blocks = []
    for block in program.blocks:
        value = np.round(program.start[block.columns])
        lower, upper = np.where(block.binary, value, block.lower), np.where(block.binary, value, block.upper)
        blocks.append(replace(block, lower=lower, upper=upper, binary=np.zeros_like(block.binary)))
    try:
        found = ConicSolver().solve(replace(program, blocks=tuple(blocks), start=None))
    except SolverError:
        # The start itself is a solution; this was to make it better.
        return program.start
    x = program.with_tight_losses(np.where(program.binary, np.round(found.x), found.x))
    return x if program.objective(x) < program.objective(program.start) else program.start


def _tangent_points(program: Program, start: FloatArray | None, notes: list[str]) -> list[FloatArray]:
    """Return the points to put tangents at: the start and the optimum of the convex relaxation."""
    points = [] if start is None else [start]
    if program.exponentials is None:
        return points
    try:
        points.append(ConicSolver(tolerance=_TANGENT_TOLERANCE).solve(program).x)
    except SolverError as error:
        # Cuts alone still lead to the optimum, and an infeasible program is named by SCIP's own end below.
        notes.append(f"The relaxation gave no tangents ({error})")
    return points


def _add_start(model: Any, variables: list[Any], residuals: list[Any], program: Program, start: FloatArray) -> None:
    values = start
    if program.squared is not None:
        own = program.squared.matrix @ values - program.squared.target
        values = np.concatenate([values, own, [float(own @ own)]])
    solution = model.createSol()
    for variable, value in zip([*variables, *residuals], values, strict=True):
        model.setSolVal(solution, variable, float(value))
    model.addSol(solution)


def _record(
    program: Program,
    engine: str,
    model: Any,
    x: FloatArray,
    *,
    seconds: float,
    notes: list[str],
    trace: Trace,
) -> SolverResult:
    value, found = program.objective(x), float(model.getDualbound())
    # A search that ends before its first relaxation is solved has proven nothing.
    bound = None if abs(found) >= float(model.infinity()) else found
    gap = None if bound is None else max(value - bound, 0.0) / max(abs(value), 1e-9)
    ended = str(model.getStatus())
    optimal = ended in {"optimal", "gaplimit"}
    advice = list(notes)
    if not optimal:
        what = {"nodelimit": "the node limit", "timelimit": "the time limit"}.get(ended, f"the status {ended!r}")
        proven = "without a bound" if gap is None else f"with a gap of {gap:.1%}"
        advice.append(f"The search ended at {what} {proven}; raise it, or relax the states.")
    status = SolverStatus.OPTIMAL if optimal else SolverStatus.LIMIT
    return SolverResult(
        program.task,
        engine,
        status,
        value,
        bound,
        gap,
        int(model.getNTotalNodes()),
        seconds,
        " ".join(advice),
        trace.points,
    )
