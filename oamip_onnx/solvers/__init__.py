"""cvxpy (conic) and SCIP (integer) behind one small protocol."""

from oamip_onnx.solvers.conic import ConicSolver
from oamip_onnx.solvers.integer import IntegerSolver
from oamip_onnx.solvers.protocol import Capability, Solution, Solver
from oamip_onnx.solvers.result import SolverResult, SolverStatus

__all__ = ["Capability", "ConicSolver", "IntegerSolver", "Solution", "Solver", "SolverResult", "SolverStatus"]
