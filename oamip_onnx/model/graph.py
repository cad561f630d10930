"""Small edits of a graph in place, and what the bodies of its control flow take from it."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from oamip_onnx.model.model import Array


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Return the names that the bodies of a control-flow node take from the graph around them."""
    names: set[str] = set()
    for attribute in node.attribute:
        for body in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
            inside = {t.name for t in body.initializer} | {i.name for i in body.input}
            inside.update(name for inner in body.node for name in inner.output)
            taken = {name for inner in body.node for name in [*inner.input, *captured_names(inner)] if name}
            taken.update(o.name for o in body.output)
            names |= taken - inside
    return names


def needed_nodes(graph: onnx.GraphProto, outputs: Iterable[str], constant: Container[int] = ()) -> set[int]:
    """Return the positions of the nodes that tensors need; the nodes at the positions `constant` need nothing."""
    needed, found = set(outputs), set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if index not in constant and not needed.isdisjoint(node.output):
            found.add(index)
            needed.update(name for name in node.input if name)
            needed |= captured_names(node)
    return found


def inner_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes in the bodies of a control-flow node, at any depth."""
    for attribute in node.attribute:
        for body in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
            for inner in body.node:
                yield inner
                yield from inner_nodes(inner)


def without_weights(proto: onnx.ModelProto, is_large: Callable[[onnx.TensorProto], bool]) -> onnx.ModelProto:
    """Return a copy of a model whose large initializers are inputs of the same type; nothing large is copied.

    Declared types of inner tensors, local functions and metadata are left out.
    """
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    graph = light.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    declared = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if not is_large(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Make these the nodes of the graph."""
    copies = [onnx.NodeProto() for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def remove_initializers(graph: onnx.GraphProto, names: Container[str]) -> None:
    """Remove initializers by name; the weights of the others are not copied."""
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in names:
            del graph.initializer[index]


def remove_nodes(graph: onnx.GraphProto, positions: Container[int]) -> None:
    """Remove nodes, the nodes whose every reader went with them, and initializers that nothing reads any more.

    A node that nobody read from the start stays: it is the user's business.
    """
    needed = {o.name for o in graph.output}
    read_before = {name for node in graph.node for name in [*node.input, *captured_names(node)]} | needed
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        was_read = any(name in read_before for name in node.output)
        if index in positions or (was_read and needed.isdisjoint(node.output)):
            del graph.node[index]
            continue
        needed.update(name for name in node.input if name)
        needed |= captured_names(node)
    remove_initializers(graph, {t.name for t in graph.initializer if t.name in read_before and t.name not in needed})


def with_initializers(proto: onnx.ModelProto, updates: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a copy of the model with new values for some initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name in updates:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(updates[tensor.name]), tensor.name))
    return copy
