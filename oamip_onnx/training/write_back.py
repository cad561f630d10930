"""Trained weights back into the graph they came from, by name; nothing else changes."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from oamip_onnx.model import Array, with_metadata

# Fields of a tensor that hold its values; name, type, shape and documentation are others.
_VALUES = ("float_data", "int32_data", "double_data", "raw_data", "external_data", "data_location")


def write_back(proto: onnx.ModelProto, values: Mapping[str, Array], metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Return a copy of a model with new values for some weights, and entries of metadata.

    Parameters
    ----------
    proto
        The model; not modified.
    values
        New values by initializer, or by the output of a Constant node, in the type and shape that it has.
    metadata
        Entries to set; others stay.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            _set(tensor, values[tensor.name])
    for node in copy.graph.node:
        if node.op_type == "Constant" and node.output[0] in values:
            _set_constant(node, values[node.output[0]])
    entries = with_metadata(copy.metadata_props, metadata)
    del copy.metadata_props[:]
    copy.metadata_props.extend(entries)
    return copy


def _set(tensor: onnx.TensorProto, values: Array) -> None:
    for name in _VALUES:
        tensor.ClearField(name)
    tensor.raw_data = numpy_helper.from_array(np.ascontiguousarray(values)).raw_data


def _set_constant(node: onnx.NodeProto, values: Array) -> None:
    (attribute,) = [a for a in node.attribute if a.name.startswith("value")]
    if attribute.name == "value":
        _set(attribute.t, values)
    elif attribute.name == "value_float":
        attribute.f = float(values)
    else:
        attribute.floats[:] = [float(value) for value in values]
