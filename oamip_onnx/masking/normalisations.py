"""Normalisations written out over the kept channels, as the narrower model computes them.

With m the 0/1 mask over n normalised cells of which k are kept, let f = m·n/k. A mean over the kept cells is then
mean(x·f) over all of them, so that for LayerNormalization

    μ = mean(x·f),   σ² = mean((x − μ)²·f),   y = (x − μ) / √(σ² + ε) · scale + bias,

for RMSNormalization σ² = mean(x²·f) and y = x / √(σ² + ε) · scale, and for Softmax the lowest number stands where
m = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from oamip_onnx.model import TensorType, attribute, int_attribute

_AXES_AS_OPERAND = 18
_EPSILON = 1e-5


@dataclass
class Writer:
    """Collects nodes and initializers with names of their own.

    Attributes
    ----------
    prefix
        Start of every name.
    opset
        Version of the standard domain.
    kind
        Type of the normalised tensor.
    """

    prefix: str
    opset: int
    kind: TensorType
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        name = f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def constant(self, values: object, dtype: np.dtype[np.generic] | None = None) -> str:
        """Add an initializer, by default of the tensor's type; return its name."""
        name = f"{self.prefix}_c{len(self.initializers)}"
        array = np.asarray(values).astype(dtype or self.kind.dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def mean(self, data: str, axes: Sequence[int]) -> str:
        """Add a mean that keeps its axes."""
        if self.opset >= _AXES_AS_OPERAND:
            operand = self.constant(np.array(axes), np.dtype(np.int64))
            return self.add("ReduceMean", data, operand, keepdims=1)
        return self.add("ReduceMean", data, axes=list(axes), keepdims=1)


def scaled_mask(writer: Writer, mask: str, axes: Sequence[int]) -> str:
    """Return the name of f = m·n/k for a 0/1 mask in the tensor's type, whose dimensions are 1 or full.

    A row without kept cells gets f = 0: what stands there is finite, and no contraction reads it.
    """
    tiny = writer.constant(np.finfo(np.float16).tiny)
    return writer.add("Div", mask, writer.add("Max", writer.mean(mask, axes), tiny))


def write_out(writer: Writer, node: onnx.NodeProto, data: str, mask: str, axes: Sequence[int]) -> None:
    """Add the nodes that replace a normalisation; the last one writes the node's output.

    Parameters
    ----------
    writer
        Receives the nodes.
    node
        The normalisation.
    data
        Name of its first operand.
    mask
        Name of the 0/1 mask, broadcasting to the operand.
    axes
        The axes of the statistic.
    """
    factor = scaled_mask(writer, mask, axes)
    if node.op_type == "ReduceMean":
        _reduce_mean(writer, node, data, factor)
    elif node.op_type == "Softmax":
        lowest = writer.constant(np.finfo(np.float16).min if writer.kind.dtype == np.float16 else -1e30)
        zero = writer.constant(0.0)
        kept = writer.add("Where", writer.add("Greater", mask, zero), data, lowest)
        writer.add("Softmax", kept, axis=int_attribute(node, "axis", -1))
    else:
        _standardise(writer, node, data, factor, axes)
    writer.nodes[-1].output[0] = node.output[0]


def _reduce_mean(writer: Writer, node: onnx.NodeProto, data: str, factor: str) -> None:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[0] = writer.add("Mul", data, factor)
    writer.nodes.append(copy)


def _standardise(writer: Writer, node: onnx.NodeProto, data: str, factor: str, axes: Sequence[int]) -> None:
    """Write LayerNormalization, RMSNormalization or InstanceNormalization."""
    rank = len(writer.kind.shape)
    if "RMS" not in node.op_type:
        data = writer.add("Sub", data, writer.mean(writer.add("Mul", data, factor), axes))
    square = writer.add("Mul", writer.add("Mul", data, data), factor)
    epsilon = attribute(node, "epsilon", _EPSILON)
    variance = writer.add("Add", writer.mean(square, axes), writer.constant(epsilon))
    result = writer.add("Div", data, writer.add("Sqrt", variance))
    for operand, op_type in ((1, "Mul"), (2, "Add")):
        if operand < len(node.input) and node.input[operand]:
            parameter = node.input[operand]
            if node.op_type == "InstanceNormalization":
                shape = writer.constant(np.array([1, -1] + [1] * (rank - 2)), np.dtype(np.int64))
                parameter = writer.add("Reshape", parameter, shape)
            result = writer.add(op_type, result, parameter)
