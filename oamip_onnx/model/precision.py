"""Float32 copies of models in types that an execution provider may have no kernels for."""

import onnx
from onnx import TensorProto, numpy_helper

from oamip_onnx.model.model import Array

# ONNX Runtime's CPU provider has few kernels for these: no bfloat16 at all, no convolution in double.
RARE_TYPES = frozenset({TensorProto.BFLOAT16, TensorProto.DOUBLE})

# Attributes that name an element type.
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type"}


def has_rare_types(proto: onnx.ModelProto) -> bool:
    """Return whether weights or inputs of the main graph have a type with few kernels."""
    inputs = (value.type.tensor_type.elem_type for value in proto.graph.input)
    return any(kind in RARE_TYPES for kind in [*inputs, *(t.data_type for t in proto.graph.initializer)])


def as_float32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model that computes in float32 what the original computes in bfloat16 or double."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    _convert_graph(copy.graph)
    return copy


def _convert_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _convert_tensor(tensor)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type in RARE_TYPES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in RARE_TYPES:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                _convert_tensor(attribute.t)
            for body in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                _convert_graph(body)


def _convert_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in RARE_TYPES:
        values: Array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype("float32"), tensor.name))
