"""The model in memory: a canonical ONNX graph with an index over tensors."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Use:
    """One place where a tensor enters a node: the node's position in the graph and the input's position in the node."""

    node: int
    operand: int


@dataclass(frozen=True)
class Model:
    """A canonical ONNX model; nobody modifies `proto` after it was made.

    Attributes
    ----------
    proto
        The graph: constants lifted to initializers, local functions inlined, initializers no longer inputs.
    size_bytes
        Size of the file or message it came from, external data included.
    external_data
        Whether its weights came in files of their own.
    path
        The file it came from, if any.
    notes
        Sentences on what the canonical form changed that a user can notice.
    sha256
        SHA-256 digest, in hexadecimal digits, of the file or message it came from, with its external data behind it;
        empty for a message beyond the 2 GiB that can be serialised.
    """

    proto: onnx.ModelProto
    size_bytes: int
    external_data: bool = False
    path: Path | None = None
    notes: tuple[str, ...] = field(default=())
    sha256: str = ""

    @property
    def graph(self) -> onnx.GraphProto:
        """The main graph."""
        return self.proto.graph

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes in topological order."""
        return list(self.proto.graph.node)

    @cached_property
    def initializers(self) -> Mapping[str, onnx.TensorProto]:
        """The initializers by name."""
        return {t.name: t for t in self.graph.initializer}

    @cached_property
    def producers(self) -> Mapping[str, int]:
        """The position of the node that makes each tensor."""
        return {name: i for i, node in enumerate(self.graph.node) for name in node.output if name}

    @cached_property
    def uses(self) -> Mapping[str, tuple[Use, ...]]:
        """Where each tensor enters a node of the main graph, in graph order."""
        uses: dict[str, list[Use]] = defaultdict(list)
        for i, node in enumerate(self.graph.node):
            for k, name in enumerate(node.input):
                if name:
                    uses[name].append(Use(i, k))
        return {name: tuple(found) for name, found in uses.items()}

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """The graph inputs that a user feeds."""
        return tuple(i.name for i in self.graph.input)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """The graph outputs."""
        return tuple(o.name for o in self.graph.output)

    @cached_property
    def opsets(self) -> Mapping[str, int]:
        """The opset version of each operator domain; the standard domain is the empty string."""
        return {("" if o.domain == "ai.onnx" else o.domain): o.version for o in self.proto.opset_import}

    def array(self, name: str) -> Array:
        """Return the values of an initializer; float8, int4 and bfloat16 come as ml_dtypes arrays."""
        return numpy_helper.to_array(self.initializers[name])

    def is_constant(self, name: str) -> bool:
        """Return whether a tensor is an initializer."""
        return name in self.initializers

    def node_name(self, index: int) -> str:
        """Return a name for people: the node's own, or its operator and first output when it has none."""
        node = self.graph.node[index]
        return node.name or f"{node.op_type} → {next((o for o in node.output if o), '?')}"


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """Return the value of a node's attribute as Python knows it, or `default` where the node does not carry it."""
    for found in node.attribute:
        if found.name == name:
            value = onnx.helper.get_attribute_value(found)
            return value.decode() if isinstance(value, bytes) else value
    return default


def int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute, or `default`."""
    value = attribute(node, name, default)
    return int(value) if isinstance(value, int | float) else default


def ints_attribute(node: onnx.NodeProto, name: str) -> list[int] | None:
    """Return an attribute that holds a list of integers, or None where the node does not carry it."""
    value = attribute(node, name)
    return None if value is None else [int(v) for v in list(value)]  # type: ignore[call-overload]


def batch_norm_affine(
    node: onnx.NodeProto, scale: FloatArray, shift: FloatArray, mean: FloatArray, variance: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return slope and offset of a BatchNormalization with the statistics of inference, one number a channel."""
    epsilon = attribute(node, "epsilon", 1e-5)
    slope = scale / np.sqrt(variance + epsilon)  # type: ignore[operator]
    return slope, shift - slope * mean
