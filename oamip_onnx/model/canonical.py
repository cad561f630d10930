"""The canonical form: weights are initializers, initializers are not inputs, local functions inlined, sizes folded.

Exporters hand over weights in many ways: in Constant nodes, through Identity or Transpose, as inputs with defaults.
The stages behind this one see one way.
"""

import math
from collections import Counter

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from oamip_onnx.model.graph import captured_names, remove_initializers, replace_nodes
from oamip_onnx.model.known import as_tensor, run_node, standard_opset
from oamip_onnx.model.sizes import fold_sizes

# Values below this size are folded even where the source is used elsewhere: copies of shape constants cost nothing.
_SMALL_BYTES = 1 << 16

# Inputs may have initializers as defaults up to IR 3, and must, for every initializer.
_FIRST_IR_WITH_FREE_INITIALIZERS = 4

_FOLDABLE = {
    "Identity",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Slice",
    "Gather",
    "Shape",
    "ConstantOfShape",
}


def canonicalise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the canonical form of a model, which is changed in place, and sentences on what a user can notice."""
    notes: list[str] = []
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
        notes.append("Local functions were inlined.")
    if model.ir_version < _FIRST_IR_WITH_FREE_INITIALIZERS:
        notes.append(f"The IR version was raised from {model.ir_version} to {_FIRST_IR_WITH_FREE_INITIALIZERS}.")
        model.ir_version = _FIRST_IR_WITH_FREE_INITIALIZERS
    if _initializers_leave_the_inputs(model.graph):
        notes.append("Initializers that were also inputs are constants now.")
    _lift_constants(model.graph)
    _fold(model)
    _remove_unread_initializers(model.graph)
    folded = fold_sizes(model)
    if folded:
        notes.append(f"{folded} nodes that compute sizes which never change were folded into constants.")
    return model, tuple(notes)


def _initializers_leave_the_inputs(graph: onnx.GraphProto) -> bool:
    names = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in names]
    if len(inputs) == len(graph.input):
        return False
    del graph.input[:]
    graph.input.extend(inputs)
    return True


def _remove_unread_initializers(graph: onnx.GraphProto) -> None:
    """Remove weights that nothing reads: they would count as parameters until surgery drops them."""
    read = {name for node in graph.node for name in [*node.input, *captured_names(node)]}
    read |= {output.name for output in graph.output}
    remove_initializers(graph, {t.name for t in graph.initializer} - read)


def _lift_constants(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        tensor = _constant_tensor(node) if node.op_type == "Constant" and not node.domain else None
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    replace_nodes(graph, kept)


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    (value,) = [a for a in node.attribute if a.name.startswith(("value", "sparse"))]
    tensor = onnx.TensorProto()
    if value.name == "value":
        tensor.CopyFrom(value.t)
    elif value.name == "value_float":
        tensor.CopyFrom(numpy_helper.from_array(np.array(value.f, np.float32)))
    elif value.name == "value_floats":
        tensor.CopyFrom(numpy_helper.from_array(np.array(value.floats, np.float32)))
    elif value.name == "value_int":
        tensor.CopyFrom(numpy_helper.from_array(np.array(value.i, np.int64)))
    elif value.name == "value_ints":
        tensor.CopyFrom(numpy_helper.from_array(np.array(value.ints, np.int64)))
    else:
        return None  # strings and sparse tensors are never weights of a contraction
    return tensor


def _fold(model: onnx.ModelProto) -> None:
    """Evaluate nodes that only rearrange constants, one after the other in graph order."""
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    outputs = {o.name for o in graph.output}
    used = Counter(name for node in graph.node for name in node.input)
    captured = {name for node in graph.node for name in captured_names(node)}
    opset = standard_opset(model)
    kept, folded = [], False
    for node in graph.node:
        inputs = [name for name in node.input if name]
        foldable = (
            node.op_type in _FOLDABLE
            and not node.domain
            and inputs
            and all(name in constants for name in inputs)
            and not outputs.intersection(node.output)
        )
        results = None
        if foldable and (
            node.op_type in {"Shape", "ConstantOfShape"} or _is_cheap(constants[inputs[0]], used[inputs[0]])
        ):
            operands = [numpy_helper.to_array(constants[name]) if name else None for name in node.input]
            results = run_node(node, operands, opset)
        if results is None:
            kept.append(node)
        else:
            constants[node.output[0]] = as_tensor(results[0], node.output[0])
            folded = True
    if not folded:
        return
    replace_nodes(graph, kept)
    needed = {name for node in kept for name in node.input} | captured | outputs
    known = {t.name for t in graph.initializer}
    graph.initializer.extend(t for name, t in constants.items() if name in needed and name not in known)
    remove_initializers(graph, {name for name in constants if name not in needed})


def _is_cheap(tensor: onnx.TensorProto, uses: int) -> bool:
    # Folding a large tensor that is used elsewhere (tied embeddings) would store it twice.
    return uses == 1 or math.prod(tensor.dims) * 8 <= _SMALL_BYTES
