"""cvxpy (conic) and SCIP (integer) behind one small protocol."""

from oamip_onnx.solvers.conic import ConicSolver
from oamip_onnx.solvers.integer import IntegerSolver
from oamip_onnx.solvers.options import LARGEST_BINARY, SolverOptions
from oamip_onnx.solvers.protocol import Capability, Solution, Solver
from oamip_onnx.solvers.result import SolverResult, SolverStatus
from oamip_onnx.solvers.select import solve, solver_for
from oamip_onnx.solvers.task import solve_all
from oamip_onnx.solvers.watching import Watch, watching

__all__ = [
    "LARGEST_BINARY",
    "Capability",
    "ConicSolver",
    "IntegerSolver",
    "Solution",
    "Solver",
    "SolverOptions",
    "SolverResult",
    "SolverStatus",
    "Watch",
    "solve",
    "solve_all",
    "solver_for",
    "watching",
]
