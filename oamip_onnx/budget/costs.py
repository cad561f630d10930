"""What the model would cost with some units gone, counted without cutting it."""

from collections.abc import Mapping

from oamip_onnx.channels import BoolArray, ChannelAnalysis, kept_shape, living_nodes, vanished_consumers
from oamip_onnx.model import Costs, Model, TensorType, captured_names, count_costs


def costs_of(model: Model, analysis: ChannelAnalysis, kept: BoolArray) -> Costs:
    """Return MACs and parameters of the model with only the kept units.

    Parameters
    ----------
    model, analysis
        The original and its channels.
    kept
        Whether each unit stays, shape (units,).
    """
    types = dict(analysis.types)
    for name, labels in analysis.labels.items():
        if labels.factors:
            types[name] = TensorType(kept_shape(labels, kept), types[name].element_type)
    costs = count_costs(model, types)
    consumers = vanished_consumers(analysis, kept)
    return _without_branches(model, types, costs, consumers) if consumers else costs


def _without_branches(model: Model, types: Mapping[str, TensorType], costs: Costs, consumers: set[int]) -> Costs:
    """Return costs less what vanishes: dead nodes, weights that nothing else reads; a constant a channel stays."""
    alive = living_nodes(model, consumers)
    nodes = model.graph.node
    read = {name for i in alive for name in [*nodes[i].input, *captured_names(nodes[i])]} | set(model.output_names)
    parameters = {name: count for name, count in costs.parameters_by_tensor.items() if name in read}
    for index in consumers:
        out = nodes[index].output[0]
        readers = {nodes[use.node].op_type for use in model.uses.get(out, ()) if use.node in alive}
        has_bias = len(nodes[index].input) > 2 and bool(nodes[index].input[2])
        if readers and (has_bias or readers != {"Add"}):  # zeros that are added leave nothing
            parameters[out] = types[out].shape[-1 if nodes[index].op_type == "MatMul" else 1]
    return Costs({i: count for i, count in costs.macs_by_node.items() if i in alive}, parameters)
