"""A graph without what only training needs: dropout, statistics of the batch, losses, identities."""

import onnx

from oamip_onnx.model import captured_names, needed_nodes, remove_initializers

# Each reads scores first and labels second, and writes the loss first.
_LOSSES = frozenset({"NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"})

_STANDARD = frozenset({"", "ai.onnx"})


def for_inference(model: onnx.ModelProto) -> list[str]:
    """Change a model, in place, to what it computes in inference; return sentences on what was changed.

    Parameters
    ----------
    model
        The model; outputs keep their names, less those that are losses.

    Returns
    -------
    list of str
        What a user can notice: what the outputs were, or how the model computed before.
    """
    graph = model.graph
    notes = _without_losses(graph)
    if notes:
        _declare_outputs(model)
    notes += _without_batch_statistics(graph)
    dropped = _bypassed(graph, "Dropout")
    if dropped:
        notes.append(f"{dropped} Dropout {'nodes were' if dropped > 1 else 'node was'} removed.")
    _bypassed(graph, "Identity")
    return notes


def _is(node: onnx.NodeProto, *kinds: str) -> bool:
    return node.op_type in kinds and node.domain in _STANDARD


def _without_losses(graph: onnx.GraphProto) -> list[str]:
    """Let the scores take the place of losses that are outputs, and remove the inputs that only losses read."""
    outputs = {value.name for value in graph.output}
    losses = [node for node in graph.node if _is(node, *_LOSSES) and not outputs.isdisjoint(node.output)]
    if not losses:
        return []
    before = {value.name for value in graph.input}
    made = {name for node in losses for name in node.output}
    kept = [value for value in graph.output if value.name not in made]
    types = {value.name: value for value in (*graph.value_info, *graph.input)}
    for node in losses:
        scores = node.input[0]
        if scores not in {value.name for value in kept}:
            kept.append(types.get(scores, onnx.ValueInfoProto(name=scores)))
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del graph.output[:]
    graph.output.extend(copies)
    drop_unneeded(graph)
    gone = sorted(before - {value.name for value in graph.input})
    inputs = f", with the inputs {', '.join(map(repr, gone))}" if gone else ""
    scores = ", ".join(dict.fromkeys(repr(node.input[0]) for node in losses))
    return [f"The loss {', '.join(map(repr, sorted(made & outputs)))} was removed{inputs}; {scores} is an output."]


def _declare_outputs(model: onnx.ModelProto) -> None:
    """Write down types and shapes of outputs that were inner tensors before."""
    inferred = onnx.shape_inference.infer_shapes(model)
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(found)


def _without_batch_statistics(graph: onnx.GraphProto) -> list[str]:
    """Have batch norms use the statistics that they have learnt."""
    changed = 0
    for node in graph.node:
        if not _is(node, "BatchNormalization"):
            continue
        training = any(one.name == "training_mode" and one.i for one in node.attribute)
        changed += training or len(node.output) > 1
        kept = [one for one in node.attribute if one.name not in {"training_mode", "is_test"}]
        del node.attribute[:]
        node.attribute.extend(kept)
        del node.output[1:]
    if not changed:
        return []
    outputs = {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    lost = outputs - made - {tensor.name for tensor in graph.initializer}
    for index in reversed(range(len(graph.output))):
        if graph.output[index].name in lost:
            del graph.output[index]
    what = f"{changed} batch norms" if changed > 1 else "A batch norm"
    return [f"{what} computed the statistics of each batch; now the learnt ones are used."]


def _bypassed(graph: onnx.GraphProto, kind: str) -> int:
    """Remove the nodes of a kind that hands its first input on; return how many there were."""
    made = {name for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    removed = 0
    for node in graph.node:
        source = _last(node.input[0], renamed) if node.input else ""
        others_read = any(name in outputs for name in node.output[1:])
        if not _is(node, kind) or others_read:
            if _is(node, "Dropout"):
                del node.input[2:]  # that it trains
            kept.append(node)
        elif node.output[0] not in outputs:
            renamed[node.output[0]] = source
            removed += 1
        elif source in made and source not in outputs:
            # The output keeps its name: whatever made the input makes it now.
            renamed[source] = node.output[0]
            removed += 1
        else:
            kept.append(node)
    if not removed:
        return 0
    nodes = [_with_names(node, renamed) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unneeded(graph)
    return removed


def _with_names(node: onnx.NodeProto, renamed: dict[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for names in (copy.input, copy.output):
        for position, name in enumerate(names):
            names[position] = _last(name, renamed)
    for attribute in copy.attribute:
        for body in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
            _rename_in_body(body, renamed)
    return copy


def _last(name: str, renamed: dict[str, str]) -> str:
    """Follow names that were renamed more than once."""
    while name in renamed:
        name = renamed[name]
    return name


def _rename_in_body(body: onnx.GraphProto, renamed: dict[str, str]) -> None:
    """Rename what a body of control flow takes from the graph around it."""
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own |= {name for node in body.node for name in node.output}
    outer = {old: new for old, new in renamed.items() if old not in own}
    nodes = [_with_names(node, outer) for node in body.node]
    del body.node[:]
    body.node.extend(nodes)
    for value in body.output:
        value.name = _last(value.name, outer)


def drop_unneeded(graph: onnx.GraphProto) -> None:
    """Remove nodes that no output needs, and inputs and initializers that nothing reads, in place."""
    outputs = {value.name for value in graph.output}
    needed = needed_nodes(graph, outputs)
    before = {name for node in graph.node for name in [*node.input, *captured_names(node)]}
    for index in reversed(range(len(graph.node))):
        if index not in needed:
            del graph.node[index]
    read = {name for node in graph.node for name in [*node.input, *captured_names(node)]} | outputs
    remove_initializers(graph, {tensor.name for tensor in graph.initializer if tensor.name not in read})
    # An input that nobody read from the start stays: it is the user's business.
    for index in reversed(range(len(graph.input))):
        if graph.input[index].name in before - read:
            del graph.input[index]
