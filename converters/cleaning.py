"""What all converters share: a graph in inference mode, in a common opset, folded, with batch norms in the weights."""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import numpy_helper

from oamip_onnx.errors import first_line
from oamip_onnx.model import (
    Array,
    Model,
    attribute,
    batch_norm_affine,
    int_attribute,
    load_model,
    only_reader,
    replace_nodes,
)

from .base import DEFAULT_OPSET, InputSpec
from .common import quiet
from .inference import drop_unneeded, for_inference

# ONNX Runtime takes these from version 1.20 on.
_OLDEST_IR, _NEWEST_IR = 8, 10

# Above this size a message cannot be handed to ONNX's converter, nor to onnxslim.
_LARGEST_BYTES = 2**31 - 1

_STANDARD = frozenset({"", "ai.onnx"})


@dataclass(frozen=True)
class Cleaned:
    """A graph that was cleaned up, and sentences on what a reader should know."""

    model: onnx.ModelProto
    notes: tuple[str, ...]


def clean(model: onnx.ModelProto, opset: int | None, inputs: Sequence[InputSpec]) -> Cleaned:
    """Return a model ready to be pruned; metadata of the model stay, those of nodes and tensors go.

    Parameters
    ----------
    model
        The model, which is changed.
    opset
        The opset to bring it to; None lifts what is older than 18.
    inputs
        Its inputs, whose sizes are fixed as far as they are not None.

    Raises
    ------
    ModelError
        If the result is no valid model.
    """
    metadata = [(entry.key, entry.value) for entry in model.metadata_props]
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    notes = for_inference(model)
    _fix_inputs(model, inputs)
    model, said = _in_opset(model, opset)
    model, more = _slimmed(model)
    model.ir_version = min(max(model.ir_version, _OLDEST_IR), _NEWEST_IR)
    folded = load_model(model)
    result = fuse_batch_norms(folded)
    _drop_remarks(result)
    _drop_unused_domains(result)
    for key, value in metadata:
        if key not in {entry.key for entry in result.metadata_props}:
            result.metadata_props.add(key=key, value=value)
    return Cleaned(result, tuple(dict.fromkeys([*notes, *said, *more])))


def _fix_inputs(model: onnx.ModelProto, inputs: Iterable[InputSpec]) -> None:
    """Write the sizes that are known into the inputs; the other sizes follow from them."""
    known = {spec.name: spec for spec in inputs}
    changed = False
    for value in model.graph.input:
        spec = known.get(value.name)
        dimensions = value.type.tensor_type.shape.dim
        if spec is None or len(dimensions) != len(spec.shape):
            continue
        for dimension, size in zip(dimensions, spec.shape, strict=True):
            if size is not None and dimension.dim_value != size:
                dimension.dim_value = size
                changed = True
    if not changed:
        return
    # Declared sizes of what follows may contradict them.
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.dim_value:
                dimension.ClearField("dim_param")
    inferred = onnx.shape_inference.infer_shapes(model) if model.ByteSize() < _LARGEST_BYTES else model
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(found)


def _in_opset(model: onnx.ModelProto, opset: int | None) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model in an opset, or as it is, with the reason."""
    now = next((one.version for one in model.opset_import if one.domain in _STANDARD), DEFAULT_OPSET)
    wanted = max(now, DEFAULT_OPSET) if opset is None else opset
    if now == wanted:
        return model, []
    try:
        with quiet():
            return onnx.version_converter.convert_version(model, wanted), []
    except Exception as error:  # noqa: BLE001 - the converter raises unrelated classes for what it does not know
        return model, [f"The opset stays {now}, because ONNX's converter cannot bring it to {wanted}: {_short(error)}"]


def _slimmed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model as onnxslim simplifies it, or as it is, with the reason."""
    if model.ByteSize() >= _LARGEST_BYTES:
        return model, ["The model is too large for onnxslim, so the graph was simplified less."]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with quiet():
            slim = importlib.import_module("onnxslim").slim(copy)
        onnx.checker.check_model(slim)
    except Exception as error:  # noqa: BLE001 - it raises whatever its graph code stumbles over
        return model, [f"onnxslim cannot simplify the graph, so it was simplified less: {_short(error)}"]
    same_ends = all(
        [value.name for value in getattr(slim.graph, kind)] == [value.name for value in getattr(model.graph, kind)]
        for kind in ("input", "output")
    )
    if not same_ends:
        return model, ["onnxslim changed inputs or outputs, so its graph was not taken."]
    for kind in ("input", "output"):
        for value, declared in zip(getattr(slim.graph, kind), getattr(model.graph, kind), strict=True):
            value.CopyFrom(declared)
    return slim, []


def _short(error: Exception) -> str:
    text = first_line(error)
    return text if text.endswith(".") else f"{text}."


def fuse_batch_norms(model: Model) -> onnx.ModelProto:
    """Return a copy of a model whose batch norms went into the weights of the layers before them.

    A batch norm behind a Conv, ConvTranspose or Gemm that nothing else reads multiplies the output channels and adds to
    them; the weights do both as well.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(model.proto)
    new: dict[str, Array] = {}
    gone: set[int] = set()
    for index, node in enumerate(model.graph.node):
        norm = only_reader(model, node.output[0]) if node.output else None
        if norm is None or not _foldable(model, index, norm):
            continue
        arrays = [model.array(name).astype(np.float64) for name in model.graph.node[norm].input[1:5]]
        slope, offset = batch_norm_affine(model.graph.node[norm], *arrays)
        weight = model.array(node.input[1])
        bias = model.array(node.input[2]).astype(np.float64) if len(node.input) > 2 and node.input[2] else 0.0
        shape = [1] * weight.ndim
        shape[_output_axis(node)] = -1
        repeated = slope.reshape(shape)
        prefix = f"{node.output[0]}.folded"
        new[f"{prefix}.weight"] = (weight.astype(np.float64) * repeated).astype(weight.dtype)
        new[f"{prefix}.bias"] = (bias * slope + offset).astype(weight.dtype)
        layer = graph.graph.node[index]
        layer.input[:] = [node.input[0], f"{prefix}.weight", f"{prefix}.bias"]
        layer.output[0] = model.graph.node[norm].output[0]
        gone.add(norm)
    if not gone:
        return graph
    replace_nodes(graph.graph, [node for number, node in enumerate(graph.graph.node) if number not in gone])
    graph.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in new.items())
    drop_unneeded(graph.graph)
    return graph


def _foldable(model: Model, index: int, norm: int) -> bool:
    """Return whether the node at `norm` is a batch norm with constants that goes into the layer at `index`."""
    layer, node = model.graph.node[index], model.graph.node[norm]
    if node.op_type != "BatchNormalization" or node.domain or layer.domain or node.input[0] != layer.output[0]:
        return False
    if len([name for name in node.output if name]) != 1 or int_attribute(node, "training_mode", 0):
        return False
    constants = [*node.input[1:5], *[name for name in layer.input[1:3] if name]]
    if not all(model.is_constant(name) for name in constants):
        return False
    if layer.op_type == "Gemm":
        plain = attribute(layer, "alpha", 1.0) == 1.0 and attribute(layer, "beta", 1.0) == 1.0
        width = model.initializers[node.input[1]].dims[0]
        bias = model.initializers[layer.input[2]].dims if len(layer.input) > 2 and layer.input[2] else [width]
        return plain and not int_attribute(layer, "transA", 0) and list(bias) in ([width], [1, width])
    # A transposed convolution of several groups keeps its output channels on two axes.
    return layer.op_type == "Conv" or (layer.op_type == "ConvTranspose" and int_attribute(layer, "group", 1) == 1)


def _output_axis(layer: onnx.NodeProto) -> int:
    if layer.op_type == "ConvTranspose":
        return 1
    return 0 if layer.op_type == "Conv" or int_attribute(layer, "transB", 0) else 1


def _drop_remarks(model: onnx.ModelProto) -> None:
    """Remove what exporters write beside the graph: source lines with paths, declared types of inner tensors."""
    graph = model.graph
    model.doc_string = ""
    parts: list[Any] = [graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """Remove the opsets of domains of which no operator is there."""
    used = {"", *(node.domain for node in model.graph.node)}
    kept = [one for one in model.opset_import if one.domain in used or one.domain in _STANDARD]
    copies = [onnx.OperatorSetIdProto(domain=one.domain, version=one.version) for one in kept]
    del model.opset_import[:]
    model.opset_import.extend(copies)
