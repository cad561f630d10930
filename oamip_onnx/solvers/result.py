"""What every solver reports, whatever it solved."""

from dataclasses import dataclass
from enum import StrEnum


class SolverStatus(StrEnum):
    """How a solve ended."""

    OPTIMAL = "optimal"
    INACCURATE = "optimal_inaccurate"
    LIMIT = "limit"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    FAILED = "failed"


@dataclass(frozen=True)
class TracePoint:
    """Where a search stood: after this many seconds, with this best value and this proven bound (None: none yet)."""

    seconds: float
    incumbent: float | None
    bound: float | None


@dataclass(frozen=True)
class SolverResult:
    """Outcome of one program.

    Attributes
    ----------
    task
        What was solved, such as ``response round 2``.
    engine
        Solver and version, such as ``CLARABEL 0.11``.
    status
        How it ended.
    objective
        Value of the solution found; None without one.
    bound
        Proven lower bound of a minimum; None where the engine gives none.
    gap
        Relative gap between objective and bound; None where either is missing.
    nodes
        Branch-and-bound nodes; 0 for a convex program.
    seconds
        Wall-clock time of the solve.
    advice
        What the user can do when the status is not optimal; empty otherwise.
    trace
        How incumbent and bound came together, for engines that search; empty elsewhere.
    """

    task: str
    engine: str
    status: SolverStatus
    objective: float | None
    bound: float | None
    gap: float | None
    nodes: int
    seconds: float
    advice: str = ""
    trace: tuple[TracePoint, ...] = ()
