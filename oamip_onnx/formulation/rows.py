"""What a constraint sees of one sample, and what it may add to the program."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oamip_onnx.errors import SolverError
from oamip_onnx.formulation.bounds import Bounds
from oamip_onnx.formulation.expressions import BoolArray, Expression
from oamip_onnx.formulation.program import FloatArray, IntArray, ProgramBuilder, VariableBlock

# Programs with more coefficients than this exceed the memory and patience of the solvers here.
LARGEST_PROGRAM = 40_000_000

ACTIVATIONS, STATES, WINNERS = "activations", "states", "winners"


@dataclass(frozen=True)
class CellVariables:
    """Variables that stand for cells of one tensor in one sample.

    Attributes
    ----------
    kind
        ``activations`` (a cell's value), ``states`` (whether it is positive), or ``winners`` (ζ of a max-pool).
    tensor, sample
        The tensor and the sample.
    cells
        The cell of each variable, shape (variables,).
    columns
        The columns of the variables, shape (variables,).
    positions
        For ``winners``, the input cell that each variable stands for, shape (variables,).
    """

    kind: str
    tensor: str
    sample: int
    cells: IntArray
    columns: IntArray
    positions: IntArray | None = None


class SampleRows:
    """One sample's view of the program under construction.

    Attributes
    ----------
    builder, scores
        The program and the block of its scores.
    sample
        Number of the sample.
    trust_region, inactive_rows
        `JointOptions.trust_radius` is given; `JointOptions.inactive_rows`.
    variables
        Every variable that constraints have made, of all samples.
    """

    def __init__(
        self,
        builder: ProgramBuilder,
        scores: VariableBlock,
        *,
        values: Mapping[str, FloatArray],
        bounds: Bounds,
        depends: Mapping[str, BoolArray],
        trust_region: bool,
        inactive_rows: bool,
    ) -> None:
        self.builder, self.scores = builder, scores
        self.trust_region, self.inactive_rows = trust_region, inactive_rows
        self.variables: list[CellVariables] = []
        self.sample = 0
        self._values, self._bounds, self._depends = values, bounds, depends
        self._coefficients = 0

    def original(self, tensor: str) -> FloatArray:
        """Return what the original network computes, shape (cells,)."""
        return np.asarray(self._values[tensor][self.sample])

    def lower(self, tensor: str) -> FloatArray:
        """Return L, shape (cells,)."""
        return np.asarray(self._bounds.lower[tensor][self.sample])

    def upper(self, tensor: str) -> FloatArray:
        """Return U, shape (cells,)."""
        return np.asarray(self._bounds.upper[tensor][self.sample])

    def depends(self, tensor: str) -> BoolArray:
        """Return which cells depend on scores; what does not is known exactly."""
        return self._depends[tensor]

    def score_columns(self, units: IntArray) -> IntArray:
        """Return the columns of the scores of units."""
        return np.asarray(units + self.scores.start, np.int64)

    def new(
        self,
        kind: str,
        tensor: str,
        cells: IntArray,
        upper: npt.ArrayLike,
        *,
        lower: npt.ArrayLike = 0.0,
        positions: IntArray | None = None,
    ) -> IntArray:
        """Add one variable a cell, states and winners as binaries; return their columns."""
        if not cells.size:
            return np.zeros(0, np.int64)
        block = self.builder.variables(kind, cells.size, lower, upper, binary=kind != ACTIVATIONS)
        columns = np.arange(block.start, block.start + block.size, dtype=np.int64)
        self.variables.append(CellVariables(kind, tensor, self.sample, cells, columns, positions))
        return columns

    def add(self, family: str, expression: Expression, lower: npt.ArrayLike, upper: npt.ArrayLike) -> None:
        """Add ``lower ≤ expression ≤ upper``, one row a cell.

        Raises
        ------
        SolverError
            If the program exceeds `LARGEST_PROGRAM` coefficients.
        """
        if not expression.constant.size:
            return
        self._coefficients += int(expression.matrix.nnz)
        if self._coefficients > LARGEST_PROGRAM:
            raise SolverError(
                f"The joint program exceeds {LARGEST_PROGRAM:,} coefficients; give it fewer samples, or use the "
                "response or the layer-wise form."
            )
        low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
        self.builder.rows(family, expression.matrix, low - expression.constant, high - expression.constant)
