"""Solving a program as a task: packed into arrays, so that a worker process or a cache can take it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.formulation.program import (
    LinearRows,
    LogSumExpTerms,
    Program,
    SparseMatrix,
    SquaredTerms,
    VariableBlock,
)
from oamip_onnx.progress import Progress
from oamip_onnx.solvers.options import SolverOptions
from oamip_onnx.solvers.protocol import Solution
from oamip_onnx.solvers.result import SolverResult, SolverStatus, TracePoint
from oamip_onnx.solvers.select import solve
from oamip_onnx.solvers.watching import Watch, watching
from oamip_onnx.tasks import TaskData, TaskOptions, run_tasks

# Part of what a cached solution is found by: raised when the same program would be solved to another solution, or its
# record has other fields.
_FORMAT = 2


def solve_all(
    programs: Sequence[Program],
    options: SolverOptions | None = None,
    tasks: TaskOptions | None = None,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> list[Solution]:
    """Return the solutions of independent programs, in order, solved side by side where there are several.

    Parameters
    ----------
    programs
        The programs.
    options
        Engine and limits.
    tasks
        Where they are solved, and whether solutions are kept.
    watch
        Follows searches that run in this process.
    progress
        Called with how many programs are solved, where there are several.

    Raises
    ------
    SolverError, UsageError, WorkerError
        As the engine or the workers do.
    """
    settings = asdict(options or SolverOptions())
    inputs = [pack(program, settings) for program in programs]
    with watching(watch):
        results = run_tasks(solve_packed, inputs, tasks, progress if len(inputs) > 1 else None, "programs")
    return [Solution(np.array(r.arrays["x"]), _result(r.settings)) for r in results]


def _result(settings: Mapping[str, Any]) -> SolverResult:
    """Return the record of a solve from its JSON values."""
    trace = tuple(TracePoint(**point) for point in settings["trace"])
    return SolverResult(**{**settings, "status": SolverStatus(settings["status"]), "trace": trace})


def solve_packed(data: TaskData) -> TaskData:
    """Solve what `pack` has packed; the task function."""
    solution = solve(unpack(data), SolverOptions(**data.settings["solver"]))
    return TaskData({"x": solution.x}, {**asdict(solution.result), "status": str(solution.result.status)})


def pack(program: Program, settings: dict[str, Any]) -> TaskData:
    """Return a program and the engine's settings as arrays and JSON values."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "cost": program.cost,
        "lower": program.lower,
        "upper": program.upper,
        "binary": program.binary,
    }
    for number, rows in enumerate(program.rows):
        arrays |= {f"rows {number} lower": rows.lower, f"rows {number} upper": rows.upper}
        arrays |= _matrix(f"rows {number}", rows.matrix)
    if program.exponentials is not None:
        arrays |= {"epigraph": program.exponentials.epigraph, "logits": program.exponentials.logits}
    if program.squared is not None:
        arrays |= {"target": program.squared.target, **_matrix("squared", program.squared.matrix)}
    if program.start is not None:
        arrays["start"] = program.start
    described = {
        "task": program.task,
        "blocks": [[b.name, b.start, b.size] for b in program.blocks],
        "families": [r.family for r in program.rows],
        "constant": program.constant,
        "notes": list(program.notes),
        "solver": settings,
        "format": _FORMAT,
    }
    return TaskData(arrays, described)


def unpack(data: TaskData) -> Program:
    """Return the program that `pack` has packed."""
    arrays, settings = data.arrays, data.settings
    blocks = []
    for name, start, size in settings["blocks"]:
        part = slice(start, start + size)
        blocks.append(VariableBlock(name, start, arrays["lower"][part], arrays["upper"][part], arrays["binary"][part]))
    rows = [
        LinearRows(family, _unpacked(data, f"rows {k}"), arrays[f"rows {k} lower"], arrays[f"rows {k} upper"])
        for k, family in enumerate(settings["families"])
    ]
    exponentials = LogSumExpTerms(arrays["epigraph"], arrays["logits"]) if "epigraph" in arrays else None
    squared = SquaredTerms(_unpacked(data, "squared"), arrays["target"]) if "target" in arrays else None
    return Program(
        settings["task"],
        tuple(blocks),
        tuple(rows),
        arrays["cost"],
        settings["constant"],
        exponentials,
        squared,
        arrays.get("start"),
        tuple(settings["notes"]),
    )


def _matrix(name: str, matrix: SparseMatrix) -> dict[str, npt.NDArray[Any]]:
    parts: dict[str, npt.NDArray[Any]] = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
    return {**{f"{name} {k}": v for k, v in parts.items()}, f"{name} shape": np.array(matrix.shape)}


def _unpacked(data: TaskData, name: str) -> SparseMatrix:
    parts = (data.arrays[f"{name} {k}"] for k in ("data", "indices", "indptr"))
    rows, columns = (int(n) for n in data.arrays[f"{name} shape"])
    return sparse.csr_array(tuple(parts), shape=(rows, columns), copy=True)
