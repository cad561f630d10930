"""Tensors of one sample as affine expressions of the program's variables."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.channels import FIXED
from oamip_onnx.formulation.network import Affine, Layer, MaxPool, Network, Relu, Shift
from oamip_onnx.formulation.program import FloatArray, IntArray, SparseMatrix

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Expression:
    """The cells of a tensor as ``matrix · x + constant``; shapes (cells, variables) and (cells,)."""

    matrix: SparseMatrix
    constant: FloatArray

    @staticmethod
    def of_constant(values: FloatArray, width: int) -> "Expression":
        """Return the expression of fixed values."""
        return Expression(sparse.csr_array((values.size, width)), values)

    def pick(self, cells: IntArray) -> "Expression":
        """Return the expression of the chosen cells."""
        return Expression(self.matrix[cells], self.constant[cells])

    def plus(self, cells: IntArray, columns: IntArray, coefficients: FloatArray) -> "Expression":
        """Return the expression with ``coefficients · x[columns]`` added to the cells."""
        return Expression(
            sparse.csr_array(self.matrix + entries(cells, columns, coefficients, self.matrix.shape)), self.constant
        )

    def minus(self, other: "Expression") -> "Expression":
        """Return the difference, cell by cell."""
        return Expression(sparse.csr_array(self.matrix - other.matrix), self.constant - other.constant)


def entries(cells: IntArray, columns: IntArray, values: FloatArray, shape: tuple[int, int]) -> SparseMatrix:
    """Return a sparse matrix with the given entries."""
    return sparse.csr_array(sparse.coo_array((values, (cells, columns)), shape=shape))


def affine_expression(layer: Affine, inputs: list[Expression], first_score: int) -> Expression:
    """Return what an affine layer makes of its inputs; a scored bias b becomes b·s."""
    constant = layer.bias.copy()
    matrix: SparseMatrix = sparse.csr_array((layer.size, inputs[0].matrix.shape[1]))
    for source, weights in zip(inputs, layer.matrices, strict=True):
        matrix = sparse.csr_array(matrix + weights @ source.matrix)
        constant += np.asarray(weights @ source.constant)
    result = Expression(matrix, constant)
    if layer.bias_units is None:
        return result
    cells = np.flatnonzero(layer.bias_units != FIXED)
    constant[cells] -= layer.bias[cells]
    return result.plus(cells, layer.bias_units[cells] + first_score, layer.bias[cells])


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
