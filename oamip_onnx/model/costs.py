"""What a model costs: multiply-accumulate operations and parameters, per node and in all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from oamip_onnx.model.model import Model, int_attribute
from oamip_onnx.model.shapes import TensorType

# Integer tensors of these types hold indices, axes and sizes; quantised weights are narrower.
_INDEX_TYPES = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}


CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply and accumulate: where channels end and begin."""


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulate operations per sample by node position, and parameters by initializer name."""

    macs_by_node: Mapping[int, int]
    parameters_by_tensor: Mapping[str, int]

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of one run at the shapes given."""
        return sum(self.macs_by_node.values())

    @property
    def parameters(self) -> int:
        """Number of weights; indices, axes and sizes do not count."""
        return sum(self.parameters_by_tensor.values())


def count_costs(model: Model, types: Mapping[str, TensorType]) -> Costs:
    """Return MACs and parameters at the shapes in `types`; MACs count contractions only."""
    macs = {}
    for index, node in enumerate(model.graph.node):
        count = node_macs(node, types)
        if count:
            macs[index] = count
    parameters = {
        t.name: math.prod(types[t.name].shape if t.name in types else t.dims)
        for t in model.graph.initializer
        if t.data_type not in _INDEX_TYPES
    }
    return Costs(macs, parameters)


def node_macs(node: onnx.NodeProto, types: Mapping[str, TensorType]) -> int:
    """Return the multiply-accumulate operations of one contraction; 0 for every other operator."""
    if node.op_type == "Conv":
        weight, out = types[node.input[1]].shape, types[node.output[0]].shape
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        weight, data = types[node.input[1]].shape, types[node.input[0]].shape
        return math.prod(data) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        data, out = types[node.input[0]].shape, types[node.output[0]].shape
        return math.prod(out) * data[0 if int_attribute(node, "transA", 0) else 1]
    if node.op_type == "MatMul":
        return math.prod(types[node.output[0]].shape) * types[node.input[0]].shape[-1]
    return 0
