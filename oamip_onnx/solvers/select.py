"""The engine that fits a program."""

from oamip_onnx.formulation.program import Program
from oamip_onnx.solvers.conic import ConicSolver
from oamip_onnx.solvers.integer import IntegerSolver
from oamip_onnx.solvers.options import SolverOptions
from oamip_onnx.solvers.protocol import Solution, Solver


def solver_for(program: Program, options: SolverOptions | None = None) -> Solver:
    """Return the engine for a program.

    Parameters
    ----------
    program
        The program.
    options
        The engine's name and limits.

    Raises
    ------
    UsageError
        If the named engine is unknown or not installed.
    """
    options = options or SolverOptions()
    searches = 0 < program.binary_count <= options.largest_binary
    name = (options.name or "").lower()
    if name == "scip" or (not name and searches):
        return IntegerSolver(
            nodes=options.nodes,
            seconds=options.seconds,
            gap=options.gap,
            seed=options.seed,
            threads=options.threads,
            relaxed=not searches,
        )
    return ConicSolver(threads=options.threads, engine=options.name, integer=searches)


def solve(program: Program, options: SolverOptions | None = None) -> Solution:
    """Return the solution by the engine that fits; see `solver_for`.

    Raises
    ------
    SolverError
        If there is no solution to be had.
    UsageError
        If the named engine is unknown or not installed.
    """
    return solver_for(program, options).solve(program)
