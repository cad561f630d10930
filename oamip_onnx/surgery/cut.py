"""Dropping channels from the graph, with onnx-graphsurgeon."""

import contextlib
import io
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from oamip_onnx.channels import (
    BoolArray,
    ChannelAnalysis,
    Labels,
    TargetElement,
    kept_shape,
    slice_array,
    vanished_consumers,
)
from oamip_onnx.errors import ModelError
from oamip_onnx.model import Array, Model, captured_names, inner_nodes, with_metadata
from oamip_onnx.surgery.collapse import collapse
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
    consumers = vanished_consumers(analysis, kept)
    for index, node in enumerate(model.graph.node):
        names = [*node.input, *node.output]
        if touches(analysis, names, kept) and not (consumers and _is_empty(analysis, names, kept)):
            _narrow(model, analysis, kept, graph.nodes[index], index)
    if consumers:
        collapse(model, analysis, kept, graph, consumers)
    _replace_elements(model, analysis, kept, graph)
    with _quiet():
        proto = gs.export_onnx(graph, do_type_check=False)
    return _restore(proto, model.proto, metadata or {})


def _is_empty(analysis: ChannelAnalysis, names: list[str], kept: BoolArray) -> bool:
    """Return whether one of these tensors keeps no cell: its branch vanishes."""
    found = (analysis.labels[name] for name in names if name in analysis.labels)
    return any(0 in kept_shape(labels, kept) for labels in found if labels.factors)


def _narrow(model: Model, analysis: ChannelAnalysis, kept: BoolArray, node: gs.Node, index: int) -> None:
    try:
        changes = rewrite(model, analysis, kept, model.graph.node[index])
    except ValueError as error:
        raise ModelError(f"The node {model.node_name(index)!r} cannot be narrowed: {error}") from error
    for name, value in changes.attributes.items():
        if value is None:
            node.attrs.pop(name, None)
        else:
            node.attrs[name] = value
    for operand, values in changes.operands.items():
        constant = gs.Constant(f"oamip_{index}_{operand}", _contiguous(values))
        if operand < len(node.inputs):
            node.inputs[operand] = constant
        else:
            node.inputs.append(constant)


def _replace_elements(model: Model, analysis: ChannelAnalysis, kept: BoolArray, graph: gs.Graph) -> None:
    """Put a Where in front of computed shape operands of which some elements no longer hold."""
    by_operand: dict[tuple[int, int], list[TargetElement]] = {}
    for target in analysis.targets:
        by_operand.setdefault((target.node, target.operand), []).append(target)
    by_output = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
    for (index, operand), targets in by_operand.items():
        source = model.graph.node[index]
        node = by_output.get(source.output[0])
        if node is None:
            continue  # its branch vanished
        before = analysis.types[source.output[0]].shape
        after = kept_shape(analysis.labels.get(source.output[0]) or Labels(before), kept)
        changed = [t for t in targets if t.counts or after[t.axis] != before[t.axis]]
        if not changed or not touches(analysis, [*source.input, *source.output], kept):
            continue
        length = analysis.types[source.input[operand]].shape[0]
        replaced, values = np.zeros(length, dtype=np.bool_), np.zeros(length, dtype=np.int64)
        for target in changed:
            replaced[target.element] = True
            values[target.element] = -1 if target.inferred else after[target.axis]
        name = f"oamip_{index}_{operand}"
        adjusted = gs.Variable(f"{name}_adjusted")
        inputs = [gs.Constant(f"{name}_replaced", replaced), gs.Constant(f"{name}_values", values)]
        where = gs.Node("Where", name, inputs=[*inputs, node.inputs[operand]], outputs=[adjusted])
        graph.nodes.insert(graph.nodes.index(node), where)
        node.inputs[operand] = adjusted


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
    sources = {tuple(node.output): node for node in original.graph.node}
    for node in graph.node:
        source_node = sources.get(tuple(node.output))
        if source_node is None:
            continue
        node.name = source_node.name
        if captured_names(source_node) or any(inner_nodes(source_node)):
            _restore_bodies(graph, node, source_node, original)
        if source_node.HasField("domain"):
            node.domain = source_node.domain
        else:
            node.ClearField("domain")
        del node.metadata_props[:]
        node.metadata_props.extend(source_node.metadata_props)
    del proto.metadata_props[:]
    proto.metadata_props.extend(with_metadata(original.metadata_props, metadata))
    return proto


def _restore_bodies(
    graph: onnx.GraphProto, node: onnx.NodeProto, source: onnx.NodeProto, original: onnx.ModelProto
) -> None:
    """Give back the bodies of a control-flow node: graphsurgeon copies the weights that they capture into each."""
    del node.attribute[:]
    node.attribute.extend(source.attribute)
    present = {tensor.name for tensor in graph.initializer}
    captured = captured_names(source) - present
    graph.initializer.extend(tensor for tensor in original.graph.initializer if tensor.name in captured)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # graphsurgeon prints warnings about metadata to standard output; they are dealt with here.
    with contextlib.redirect_stdout(io.StringIO()):
        yield
