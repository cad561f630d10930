"""What the stages see of a solver."""

from dataclasses import dataclass
from enum import Flag, auto
from typing import Protocol

import numpy as np
import numpy.typing as npt

from oamip_onnx.formulation.program import Program
from oamip_onnx.solvers.result import SolverResult


class Capability(Flag):
    """What a solver can prove or take."""

    CONVEX = auto()
    BINARIES = auto()
    WARM_START = auto()


@dataclass(frozen=True)
class Solution:
    """A solved program: its variables, shape (variables,), and the record of the solve."""

    x: npt.NDArray[np.float64]
    result: SolverResult


class Solver(Protocol):
    """Anything that solves a `Program`."""

    @property
    def capabilities(self) -> Capability:
        """What it can do."""
        ...

    def solve(self, program: Program) -> Solution:
        """Return a solution.

        Raises
        ------
        SolverError
            If there is none to be had.
        """
        ...
