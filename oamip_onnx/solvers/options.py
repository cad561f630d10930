"""Which engine solves a program, and within which limits."""

from dataclasses import dataclass

# About this many free binaries SCIP closes within a minute; more are relaxed unless the user raises it.
LARGEST_BINARY = 100


@dataclass(frozen=True)
class SolverOptions:
    """Settings of all engines.

    Attributes
    ----------
    name
        ``scip``, or the name of any solver that cvxpy finds (``clarabel``, ``scs``, ``highs``, ``mosek``, …); None
        for SCIP where a program has few enough binaries, and CLARABEL with SCS behind it elsewhere.
    threads
        Threads of the engine.
    nodes
        Most branch-and-bound nodes of SCIP; the limit that makes results repeat.
    seconds
        The fuse of SCIP's search; a solve that it ends says so.
    gap
        Relative gap at which SCIP stops.
    seed
        SCIP's seed.
    largest_binary
        Programs with more binaries are relaxed, which their record says.
    """

    name: str | None = None
    threads: int = 1
    nodes: int = 10_000
    seconds: float = 300.0
    gap: float = 1e-4
    seed: int = 0
    largest_binary: int = LARGEST_BINARY
