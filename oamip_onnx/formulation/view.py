"""What an operator's builder sees of its node."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.formulation.network import Affine, Layer
from oamip_onnx.formulation.program import FloatArray, SparseMatrix
from oamip_onnx.model import Model, TensorType

# Larger matrices make programs that no solver here finishes; the layer-wise form has no such matrices.
LARGEST_MATRIX = 50_000_000

_REMEDY = "use the layer-wise or the response form, which encode no operator"


@dataclass(frozen=True)
class NodeView:
    """One node with its constants and per-sample shapes.

    Attributes
    ----------
    model
        The model.
    index
        Position of the node in the graph.
    types
        Concrete type of every tensor.
    batch
        Size of the sample axis in `types`.
    """

    model: Model
    index: int
    types: Mapping[str, TensorType]
    batch: int

    @property
    def node(self) -> onnx.NodeProto:
        """The node."""
        return self.model.nodes[self.index]

    @property
    def output(self) -> str:
        """Name of the first output."""
        return str(self.node.output[0])

    @property
    def data_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are not constant, in order."""
        return tuple(name for name in self.node.input if name and not self.model.is_constant(name))

    def has(self, position: int) -> bool:
        """Return whether the node has an input at that position."""
        return len(self.node.input) > position and bool(self.node.input[position])

    def is_constant(self, position: int) -> bool:
        """Return whether an input is constant."""
        return self.has(position) and self.model.is_constant(self.node.input[position])

    def constant(self, position: int) -> FloatArray:
        """Return a constant input in float64.

        Raises
        ------
        UnsupportedOperatorError
            If the input is computed from data.
        """
        if not self.is_constant(position):
            raise self.refuse(f"its input {position} is not constant")
        return np.asarray(self.model.array(self.node.input[position]), np.float64)

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Return the per-sample shape of a data input."""
        return self._per_sample(self.node.input[position])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Per-sample shape of the first output."""
        return self._per_sample(self.output)

    def refuse(self, reason: str) -> UnsupportedOperatorError:
        """Return the error that says that this node cannot be expressed, and what to do instead."""
        return UnsupportedOperatorError(
            f"The joint program cannot express the operator {self.node.op_type} of the node "
            f"{self.model.node_name(self.index)!r} (position {self.index} in the graph): {reason}",
            _REMEDY,
        )

    def affine(self, matrix: SparseMatrix, bias: FloatArray | None = None, name: str | None = None) -> Affine:
        """Return ``output = matrix · first data input + bias``."""
        offset = np.zeros(matrix.shape[0]) if bias is None else np.asarray(bias, np.float64)
        return Affine(self.output, (name or self.data_inputs[0],), (matrix,), offset)

    def check_size(self, nonzeros: int) -> None:
        """Raise if a matrix with that many coefficients would be too large.

        Raises
        ------
        UnsupportedOperatorError
            Above `LARGEST_MATRIX`.
        """
        if nonzeros > LARGEST_MATRIX:
            raise self.refuse(f"written out as a matrix it has {nonzeros:,} coefficients")

    def _per_sample(self, name: str) -> tuple[int, ...]:
        shape = self.types[name].shape
        if not shape or shape[0] != self.batch:
            raise self.refuse(f"the tensor {name!r} of shape {shape} does not keep the samples on its first axis")
        return shape[1:]


@dataclass(frozen=True)
class Same:
    """The node's output holds the cells of its first data input in the same order."""


Builder = Callable[[NodeView], Layer | Same]
