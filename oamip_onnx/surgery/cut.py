"""Dropping channels from the graph, with onnx-graphsurgeon."""

import contextlib
import io
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from oamip_onnx.channels import BoolArray, ChannelAnalysis, slice_array
from oamip_onnx.errors import ModelError
from oamip_onnx.model import Array, Model
from oamip_onnx.surgery.constants import rewrite, touches


def cut(
    model: Model, analysis: ChannelAnalysis, kept: BoolArray, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Return the physically narrower model.

    Parameters
    ----------
    model, analysis
        The original and its channels.
    kept
        Whether each unit stays, shape (units,), bool.
    metadata
        Entries to add to the model's metadata; foreign entries are kept.

    Returns
    -------
    onnx.ModelProto
        Same inputs and outputs, opset and IR version; initializers sliced, shape constants rewritten.

    Raises
    ------
    ModelError
        If a node cannot be narrowed; the message names it.
    """
    if kept.shape != (analysis.unit_count,):
        raise ValueError(f"`kept` has shape {kept.shape}; the model has {analysis.unit_count} units.")
    with _quiet():
        graph = gs.import_onnx(model.proto)
    for name, tensor in graph.tensors().items():
        if isinstance(tensor, gs.Constant) and touches(analysis, [name], kept):
            tensor.values = slice_array(model.array(name), analysis.labels[name], kept)
        elif isinstance(tensor, gs.Variable) and name not in {*model.input_names, *model.output_names}:
            # Stale shapes make ONNX Runtime refuse the file; it infers them anew.
            tensor.shape, tensor.dtype = None, None
    for index, node in enumerate(model.graph.node):
        if touches(analysis, [*node.input, *node.output], kept):
            _narrow(model, analysis, kept, graph, index)
    with _quiet():
        proto = gs.export_onnx(graph, do_type_check=False)
    return _restore(proto, model.proto, metadata or {})


def _narrow(model: Model, analysis: ChannelAnalysis, kept: BoolArray, graph: gs.Graph, index: int) -> None:
    node = graph.nodes[index]
    try:
        changes = rewrite(model, analysis, kept, model.graph.node[index])
    except ValueError as error:
        raise ModelError(f"The node {model.node_name(index)!r} cannot be narrowed: {error}") from error
    for name, value in changes.attributes.items():
        node.attrs[name] = value
    for operand, values in changes.operands.items():
        constant = gs.Constant(f"oamip_{index}_{operand}", _contiguous(values))
        if operand < len(node.inputs):
            node.inputs[operand] = constant
        else:
            node.inputs.append(constant)


def _contiguous(values: Array) -> Array:
    return np.ascontiguousarray(values).reshape(np.shape(values))


def _restore(proto: onnx.ModelProto, original: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Give back what graphsurgeon loses: versions, metadata, documentation, the exact inputs and outputs."""
    proto.ir_version = original.ir_version
    del proto.opset_import[:]
    proto.opset_import.extend(original.opset_import)
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(proto, name, getattr(original, name))
    graph = proto.graph
    graph.name, graph.doc_string = original.graph.name, original.graph.doc_string
    for values, source in ((graph.input, original.graph.input), (graph.output, original.graph.output)):
        del values[:]
        values.extend(source)
    del graph.value_info[:]
    for node, source_node in zip(graph.node, original.graph.node, strict=True):
        node.name = source_node.name
        if source_node.HasField("domain"):
            node.domain = source_node.domain
        else:
            node.ClearField("domain")
        del node.metadata_props[:]
        node.metadata_props.extend(source_node.metadata_props)
    entries = {p.key: p.value for p in original.metadata_props} | dict(metadata)
    onnx.helper.set_model_props(proto, entries)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # graphsurgeon prints warnings about metadata to standard output; they are dealt with here.
    with contextlib.redirect_stdout(io.StringIO()):
        yield
