"""Giving contractions a bias to repair with."""

from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from oamip_onnx.model import Model


def with_biases(model: Model) -> Model:
    """Return the model with a zero bias at every Conv and Gemm that has none; its values do not change."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    taken = {t.name for t in proto.graph.initializer} | set(model.producers) | set(model.input_names)
    changed = False
    for node in proto.graph.node:
        has_bias = len(node.input) > 2 and bool(node.input[2])
        if node.op_type not in {"Conv", "Gemm"} or has_bias or not model.is_constant(node.input[1]):
            continue
        weight = model.initializers[node.input[1]]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        outputs = weight.dims[0] if node.op_type == "Conv" or transposed else weight.dims[1]
        name = f"{node.output[0]}.oamip_bias"
        while name in taken:
            name += "_"
        taken.add(name)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(outputs, dtype), name))
        del node.input[2:]
        node.input.append(name)
        changed = True
    return replace(model, proto=proto) if changed else model
