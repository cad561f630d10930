"""Which constants of a graph are weights that can be trained, and which are part of its formulas."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from oamip_onnx.model import Array
from oamip_onnx.training.operators import TABLE
from oamip_onnx.training.operators.normalisation import STATISTICS

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})

# Weights may pass these on their way to the layer that reads them.
_CARRIERS = frozenset(
    "Cast CastLike Concat Expand Gather Identity Reshape Slice Squeeze Tile Transpose Unsqueeze".split()
)

# In these, a single number belongs to a formula: a factor of attention, an epsilon.
_FORMULAS = frozenset("Add Div Mean Mul Sub Sum".split())


@dataclass(frozen=True)
class Constants:
    """The constants of a graph by the tensor's name.

    Attributes
    ----------
    values
        All of them.
    kinds
        Their ONNX element types.
    weights
        The names of those that are trained.
    statistics
        The names of means and variances of batch normalisations.
    """

    values: Mapping[str, Array]
    kinds: Mapping[str, int]
    weights: tuple[str, ...]
    statistics: frozenset[str]


def find_constants(proto: onnx.ModelProto) -> Constants:
    """Return the constants of a graph: its initializers, and the values of its Constant nodes."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and not node.domain:
            tensor = constant_tensor(node)
            if tensor is not None:
                tensors[node.output[0]] = tensor
    wanted, statistics = _weight_positions(proto)
    values = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    weights = [
        name
        for name, tensor in tensors.items()
        if tensor.data_type in FLOATS
        and name in wanted
        and name not in statistics
        and values[name].size > (0 if wanted[name] else 1)
        and bool(np.isfinite(values[name].astype(np.float32)).all())
    ]
    kinds = {name: tensor.data_type for name, tensor in tensors.items()}
    return Constants(values, kinds, tuple(weights), frozenset(statistics & set(tensors)))


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the value of a Constant node; None for strings and sparse tensors."""
    (value,) = [a for a in node.attribute if a.name.startswith(("value", "sparse"))]
    if value.name == "value":
        return value.t
    found: Array
    if value.name == "value_float":
        found = np.array(value.f, np.float32)
    elif value.name == "value_floats":
        found = np.array(value.floats, np.float32)
    elif value.name == "value_int":
        found = np.array(value.i, np.int64)
    elif value.name == "value_ints":
        found = np.array(value.ints, np.int64)
    else:
        return None
    return numpy_helper.from_array(found)


def _weight_positions(proto: onnx.ModelProto) -> tuple[dict[str, bool], set[str]]:
    """Return the tensors that are read as weights, each with whether one number counts, and batch statistics."""
    wanted: dict[str, bool] = {}
    statistics: set[str] = set()
    # From the back: what carries a weight comes before what reads it.
    for node in reversed(proto.graph.node):
        domain = "" if node.domain == "ai.onnx" else node.domain
        entry = TABLE.get((domain, node.op_type))
        if entry is None:
            continue
        for position, name in enumerate(node.input):
            if not name:
                continue
            if position in entry.weights:
                wanted[name] = wanted.get(name, False) or node.op_type not in _FORMULAS
            if node.op_type in _CARRIERS and node.output[0] in wanted and position in _carried(node):
                wanted[name] = wanted.get(name, False) or wanted[node.output[0]]
            is_statistic = node.op_type == "BatchNormalization" and position in STATISTICS
            # Exporters store equal tensors once, and hand them on: one that is a statistic anywhere is no weight.
            if is_statistic or (node.op_type == "Identity" and node.output[0] in statistics):
                statistics.add(name)
    return wanted, statistics


def _carried(node: onnx.NodeProto) -> range:
    return range(len(node.input)) if node.op_type == "Concat" else range(1)
