"""What a model costs: multiply-accumulate operations and parameters, per node and in all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from oamip_onnx.model.einsum import einsum_terms
from oamip_onnx.model.model import Model, int_attribute
from oamip_onnx.model.shapes import TensorType

# Integer tensors of these types hold indices, axes and sizes; quantised weights are narrower.
_INDEX_TYPES = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}


CONTRACTIONS = frozenset(
    "Attention Conv ConvInteger ConvTranspose Einsum FusedConv FusedMatMul GRU Gemm LSTM MatMul MatMulInteger "
    "QLinearConv QLinearMatMul RNN".split()
)
"""Operators that multiply and accumulate: where channels end and begin."""

_CONVOLUTION_WEIGHTS = {"Conv": 1, "ConvInteger": 1, "FusedConv": 1, "QLinearConv": 3}
_RECURRENT = {"GRU", "LSTM", "RNN"}


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
    kind = node.op_type
    if kind not in CONTRACTIONS or any(name and name not in types for name in [*node.input, *node.output]):
        return 0
    inputs = [types[name].shape if name else () for name in node.input]
    out = math.prod(types[node.output[0]].shape) if node.output[0] else 0
    if kind in _CONVOLUTION_WEIGHTS:
        count = out * math.prod(inputs[_CONVOLUTION_WEIGHTS[kind]][1:])
    elif kind == "ConvTranspose":
        count = math.prod(inputs[0]) * math.prod(inputs[1][1:])
    elif kind in _RECURRENT:
        # Every step multiplies the input and the states of the step before with all stacked weights.
        count = math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))
    elif kind == "Einsum":
        count = _einsum_macs(node, inputs)
    elif kind == "Attention":
        count = _attention_macs(node, *inputs[:3])
    else:
        transposed = len(inputs[0]) > 1 and int_attribute(node, "transA", 0)
        count = out * inputs[0][-2 if transposed else -1]
    return count


def _einsum_macs(node: onnx.NodeProto, shapes: list[tuple[int, ...]]) -> int:
    """Return one operation for every combination of indices."""
    terms, _ = einsum_terms(node, [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


def _attention_macs(node: onnx.NodeProto, query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> int:
    """Return the operations of scores and mixture; operands are (batch, heads, tokens, width) or lack the head axis."""
    if len(query) == 4:
        return math.prod(query[:3]) * key[2] * (query[3] + value[3])
    heads, shared = int_attribute(node, "q_num_heads", 1), int_attribute(node, "kv_num_heads", 1)
    return query[0] * query[1] * key[1] * heads * (query[2] // heads + value[2] // shared)
