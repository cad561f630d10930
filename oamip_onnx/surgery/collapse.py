"""Branches that vanish: consumers of groups without kept units give way to constants, and dead nodes are removed."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from oamip_onnx.channels import BoolArray, ChannelAnalysis, Labels, kept_shape
from oamip_onnx.model import Array, Model


def collapse(model: Model, analysis: ChannelAnalysis, kept: BoolArray, graph: gs.Graph, consumers: set[int]) -> None:
    """Put the bias of each consumer in the place of its output; remove the nodes that only led there.

    Parameters
    ----------
    model, analysis, kept
        The original, its channels, and which units stay.
    graph
        The graph with sliced initializers, one node for each of the original's, in order.
    consumers
        Positions of the consumers.
    """
    nodes = list(graph.nodes)
    for index in sorted(consumers):
        node, source = nodes[index], model.graph.node[index]
        kind = analysis.types[source.output[0]]
        labels = analysis.labels.get(source.output[0]) or Labels(kind.shape)
        axis = len(kind.shape) - 1 if source.op_type == "MatMul" else 1
        values = _constant(node, source, kept_shape(labels, kept)[axis]).astype(kind.dtype)
        shape = [-1 if a == axis else 1 for a in range(len(kind.shape))]
        constant = gs.Constant(f"oamip_{index}_constant", np.ascontiguousarray(values.reshape(shape)))
        output = node.outputs[0]
        node.outputs.clear()
        for reader in list(graph.nodes):
            if output not in reader.inputs:
                continue
            if reader.op == "Add" and not values.any():
                reader.op, reader.attrs = "Identity", {}  # zero is added: the other operand passes
                reader.inputs = [tensor for tensor in reader.inputs if tensor is not output]
            else:
                reader.inputs = [constant if tensor is output else tensor for tensor in reader.inputs]
    graph.cleanup(remove_unused_graph_inputs=False)


def _constant(node: gs.Node, source: onnx.NodeProto, channels: int) -> Array:
    """Return what a consumer of nothing computes, one value a channel."""
    if len(node.inputs) < 3 or not isinstance(node.inputs[2], gs.Constant):
        return np.zeros(channels, np.float32)
    beta = next((a.f for a in source.attribute if a.name == "beta"), 1.0)
    return np.broadcast_to(np.asarray(node.inputs[2].values).ravel() * beta, (channels,))
