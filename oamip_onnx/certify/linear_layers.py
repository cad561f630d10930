"""Finding pairs of linear layers around a ReLU in a graph, and writing linear layers.

A linear layer is y = W x + b at every position: a Gemm, a MatMul with the Add of its bias, or a Conv.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from oamip_onnx.formulation.program import FloatArray
from oamip_onnx.model import Array, TensorType, attribute, captured_names, int_attribute, ints_attribute

# Operators that hand a tensor on where its shape stays the same.
_HANDING_ON = frozenset({"Dropout", "Flatten", "Identity", "Reshape"})


@dataclass(frozen=True)
class LinearLayer:
    """``output = weight · data + bias`` at every position.

    Attributes
    ----------
    node
        The Gemm, MatMul or Conv.
    nodes
        Positions of its nodes in the graph: that node, and the Add of its bias where there is one.
    data, output
        Names of the tensors.
    weight
        Shape (out, in), or (out, in, *kernel) for a convolution.
    bias
        Shape (out,).
    dtype
        Type of the weights in the file.
    """

    node: onnx.NodeProto
    nodes: tuple[int, ...]
    data: str
    output: str
    weight: FloatArray
    bias: FloatArray
    dtype: np.dtype[np.generic]

    @property
    def is_convolution(self) -> bool:
        """Whether it is a Conv."""
        return bool(self.node.op_type == "Conv")

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations at one position."""
        return int(self.weight.size)


@dataclass(frozen=True)
class Pair:
    """Two linear layers with a ReLU between them, whose hidden tensors nothing else reads.

    Attributes
    ----------
    first, second
        The layers.
    relu
        Position of the ReLU.
    hidden
        Name of the ReLU's output.
    between
        Positions of the ReLU and of what hands its output on.
    positions
        Number of positions a sample that the layers are applied at.
    """

    first: LinearLayer
    second: LinearLayer
    relu: int
    hidden: str
    between: tuple[int, ...]
    positions: int


class GraphView:
    """A graph with the types of its tensors, to look for pairs in.

    Parameters
    ----------
    graph
        The graph; constants are initializers.
    types
        Types of the tensors; only sizes of axes other than channels are read.
    """

    def __init__(self, graph: onnx.GraphProto, types: Mapping[str, TensorType]) -> None:
        self.graph, self.types = graph, types
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        uses: Counter[str] = Counter(output.name for output in graph.output)
        for i, node in enumerate(graph.node):
            for name in [*node.input, *captured_names(node)]:
                uses[name] += 1
                self.readers.setdefault(name, []).append(i)
        self._uses = uses

    def pair(self, relu: int) -> Pair | str:
        """Return the layers around a ReLU, or a half-sentence that says why they cannot be merged."""
        node = self.graph.node[relu]
        first = self._layer_before(node.input[0])
        if first is None:
            source = self.producers.get(node.input[0])
            what = "an input" if source is None else f"a {self.graph.node[source].op_type}"
            return f"the ReLU reads {what}, not a layer with constant weights that nothing else reads"
        between, tensor = [relu], node.output[0]
        while (reader := self._only_reader(tensor)) is not None and self._hands_on(reader):
            between.append(reader)
            tensor = self.graph.node[reader].output[0]
        if reader is None:
            return "the ReLU's output is an output of the model or read more than once"
        second = self._layer_after(reader, tensor)
        if second is None:
            kind = self.graph.node[reader].op_type
            return f"the ReLU's output is read by a {kind}, not by a layer with constant weights"
        reason = _misfit(first, second)
        if reason:
            return reason
        shape = self.types[node.output[0]].shape
        positions = math.prod(shape[2:] if first.is_convolution else shape[1:-1])
        return Pair(first, second, relu, node.output[0], tuple(between), positions)

    def _only_reader(self, tensor: str) -> int | None:
        return self.readers[tensor][0] if self._uses[tensor] == 1 and tensor in self.readers else None

    def _hands_on(self, index: int) -> bool:
        node = self.graph.node[index]
        if node.domain or node.op_type not in _HANDING_ON or any(node.output[1:]):
            return False
        if node.op_type == "Dropout" and len(node.input) > 2:
            return False  # it may be in training mode
        before, after = self.types.get(node.input[0]), self.types.get(node.output[0])
        return before is not None and after is not None and before.shape == after.shape

    def _layer_before(self, tensor: str) -> LinearLayer | None:
        """Return the layer that computes a tensor which nothing else reads."""
        index = self.producers.get(tensor)
        if index is None or self._uses[tensor] != 1:
            return None
        node = self.graph.node[index]
        if node.op_type == "Add" and not node.domain:
            moving = [name for name in node.input if name not in self.constants]
            index = self.producers.get(moving[0]) if len(moving) == 1 and self._uses[moving[0]] == 1 else None
            if index is None or self.graph.node[index].op_type != "MatMul":
                return None
        layer = self._layer(index)
        return layer if layer is not None and layer.output == tensor else None

    def _layer_after(self, index: int, tensor: str) -> LinearLayer | None:
        layer = self._layer(index)
        return layer if layer is not None and layer.data == tensor else None

    def _layer(self, index: int) -> LinearLayer | None:
        """Return the layer whose main node stands at a position, with the Add behind a MatMul."""
        node = self.graph.node[index]
        constants = [name in self.constants for name in node.input]
        if node.domain or node.op_type not in {"Gemm", "MatMul", "Conv"} or constants[0] or not all(constants[1:]):
            return None
        weight = numpy_helper.to_array(self.constants[node.input[1]])
        if node.op_type == "Gemm":
            return self._gemm(index, weight)
        if node.op_type == "Conv":
            bias = self._values(node.input[2]) if len(node.input) > 2 else np.zeros(len(weight))
            values = weight.astype(np.float64)
            return LinearLayer(node, (index,), node.input[0], node.output[0], values, bias, weight.dtype)
        if weight.ndim != 2:
            return None
        return self._with_bias(index, weight)

    def _gemm(self, index: int, weight: Array) -> LinearLayer | None:
        node = self.graph.node[index]
        alpha, beta = (float(str(attribute(node, name, 1.0))) for name in ("alpha", "beta"))
        values = weight.astype(np.float64) * alpha
        values = values if int_attribute(node, "transB", 0) else values.T
        operand = self._values(node.input[2]) * beta if len(node.input) > 2 else np.zeros(1)
        bias = _vector(operand, len(values))
        if int_attribute(node, "transA", 0) or bias is None:
            return None
        return LinearLayer(node, (index,), node.input[0], node.output[0], values, bias, weight.dtype)

    def _with_bias(self, index: int, weight: Array) -> LinearLayer:
        """Return a MatMul together with the Add of a constant vector that is its only reader."""
        node = self.graph.node[index]
        nodes: tuple[int, ...] = (index,)
        output, bias = node.output[0], np.zeros(weight.shape[1])
        reader = self._only_reader(output)
        if reader is not None and self.graph.node[reader].op_type == "Add" and not self.graph.node[reader].domain:
            add = self.graph.node[reader]
            other = add.input[1] if add.input[0] == output else add.input[0]
            vector = _vector(self._values(other), weight.shape[1]) if other in self.constants else None
            if vector is not None:
                nodes, output, bias = (index, reader), add.output[0], vector
        values = weight.astype(np.float64).T
        return LinearLayer(node, nodes, node.input[0], output, values, bias, weight.dtype)

    def _values(self, name: str) -> FloatArray:
        return numpy_helper.to_array(self.constants[name]).astype(np.float64)


def _vector(values: FloatArray, size: int) -> FloatArray | None:
    """Return a constant that differs along the last axis at most as a vector; None for any other."""
    if values.size not in (1, size) or (values.size > 1 and values.shape[-1] != size):
        return None
    return np.broadcast_to(values.reshape(-1), (size,)).astype(np.float64)


def _misfit(first: LinearLayer, second: LinearLayer) -> str:
    """Return why two layers cannot be composed; empty if they can."""
    if first.is_convolution != second.is_convolution:
        return "a convolution and a fully connected layer cannot be composed position by position"
    if not first.is_convolution:
        return ""
    if int_attribute(first.node, "group", 1) != 1 or int_attribute(second.node, "group", 1) != 1:
        return "one of the convolutions is grouped"
    if math.prod(second.weight.shape[2:]) != 1:
        return "the second convolution reads several positions, and beyond the border it reads zeros"
    strides = ints_attribute(second.node, "strides") or []
    moves = [*(ints_attribute(second.node, "pads") or []), *(stride - 1 for stride in strides)]
    if any(moves):
        return "the second convolution pads or strides"
    return ""
