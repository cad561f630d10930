"""Tensors of one sample as affine expressions of the program's variables."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.channels import FIXED
from oamip_onnx.formulation.network import Layer, MaxPool, Network, Relu, Shift
from oamip_onnx.formulation.program import FloatArray, IntArray, SparseMatrix, widened

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Expression:
    """The cells of a tensor as ``matrix · x + constant``; shapes (cells, variables) and (cells,).

    The matrix may cover the first variables only: later ones have no coefficient.
    """

    matrix: SparseMatrix
    constant: FloatArray

    @staticmethod
    def of_constant(values: FloatArray) -> "Expression":
        """Return the expression of fixed values."""
        return Expression(sparse.csr_array((values.size, 0)), values)

    @staticmethod
    def of_columns(columns: IntArray) -> "Expression":
        """Return the expression of variables themselves."""
        rows, width = np.arange(columns.size), int(columns.max(initial=-1)) + 1
        return Expression(entries(rows, columns, np.ones(columns.size), (columns.size, width)), np.zeros(columns.size))

    @property
    def size(self) -> int:
        """Number of cells."""
        return int(self.constant.size)

    def pick(self, cells: IntArray) -> "Expression":
        """Return the expression of the chosen cells."""
        return Expression(self.matrix[cells], self.constant[cells])

    def shifted(self, offset: npt.ArrayLike) -> "Expression":
        """Return the expression with a constant added to every cell."""
        return Expression(self.matrix, self.constant + np.asarray(offset, np.float64))

    def plus(self, cells: IntArray, columns: IntArray, coefficients: npt.ArrayLike) -> "Expression":
        """Return the expression with ``coefficients · x[columns]`` added to the cells."""
        values = np.broadcast_to(np.asarray(coefficients, np.float64), columns.shape)
        width = max(self.matrix.shape[1], int(columns.max(initial=-1)) + 1)
        added = entries(cells, columns, values, (self.size, width))
        return Expression(sparse.csr_array(widened(self.matrix, width) + added), self.constant)

    def minus(self, other: "Expression") -> "Expression":
        """Return the difference, cell by cell."""
        width = max(self.matrix.shape[1], other.matrix.shape[1])
        difference = widened(self.matrix, width) - widened(other.matrix, width)
        return Expression(sparse.csr_array(difference), self.constant - other.constant)


def entries(cells: IntArray, columns: IntArray, values: FloatArray, shape: tuple[int, int]) -> SparseMatrix:
    """Return a sparse matrix with the given entries."""
    return sparse.csr_array(sparse.coo_array((values, (cells, columns)), shape=shape))


def placed(parts: list[tuple[IntArray, Expression]], size: int) -> Expression:
    """Return the expression of a tensor whose cells come from several; cells without a part are 0."""
    width = max((part.matrix.shape[1] for _, part in parts), default=0)
    matrix, constant = sparse.csr_array((size, width)), np.zeros(size)
    for cells, part in parts:
        place = entries(cells, np.arange(cells.size), np.ones(cells.size), (size, cells.size))
        matrix = sparse.csr_array(matrix + place @ widened(part.matrix, width))
        constant[cells] = part.constant
    return Expression(matrix, constant)


def depends_on_scores(network: Network) -> dict[str, BoolArray]:
    """Return for each tensor which cells depend on the scores; what does not is known exactly."""
    depends = {name: np.zeros(size, np.bool_) for name, size in network.inputs.items()}
    for layer in network.layers:
        depends[layer.output] = _depends(layer, depends)
    return depends


def _depends(layer: Layer, depends: dict[str, BoolArray]) -> BoolArray:
    if isinstance(layer, Relu | Shift):
        return np.asarray(depends[layer.input] | (layer.units != FIXED), np.bool_)
    if isinstance(layer, MaxPool):
        return np.asarray(np.append(depends[layer.input], np.False_)[layer.windows].any(axis=1), np.bool_)
    result = np.zeros(layer.size, np.bool_)
    if layer.bias_units is not None:
        result |= layer.bias_units != FIXED
    for name, matrix in zip(layer.inputs, layer.matrices, strict=True):
        reached = np.repeat(np.arange(layer.size), np.diff(matrix.indptr))[depends[name][matrix.indices]]
        result[reached] = True
    return result
