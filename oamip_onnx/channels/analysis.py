"""From a graph to its channel groups: trace the labels, tie what was joined, sort out what must stay."""

from collections.abc import Iterable, Mapping

import onnx

from oamip_onnx.channels.groups import ChannelAnalysis, Pin, PinCode
from oamip_onnx.channels.labels import FIXED
from oamip_onnx.channels.patterns import matching_tensors
from oamip_onnx.channels.resolve import resolve
from oamip_onnx.channels.rules import find_rule
from oamip_onnx.channels.trace import Trace, node_label
from oamip_onnx.errors import ModelError
from oamip_onnx.model import Model, TensorType
from oamip_onnx.model.canonical import captured_names


def analyse(
    model: Model,
    types: Mapping[str, TensorType],
    *,
    ignore: Iterable[str] = (),
    only: Iterable[str] = (),
) -> ChannelAnalysis:
    """Return the channel groups of a model, and why the other channels must stay.

    Parameters
    ----------
    model
        The canonical model.
    types
        Concrete types of its tensors (`infer_shapes`).
    ignore
        Globs on node and tensor names whose channels stay.
    only
        Globs on node and tensor names; where given, every contraction that none matches stays.

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    ModelError
        If a contraction's operands do not fit each other.
    """
    trace = trace_labels(model, types)
    _apply_patterns(trace, list(ignore), list(only))
    return resolve(trace)


def trace_labels(model: Model, types: Mapping[str, TensorType]) -> Trace:
    """Run every node's rule over the graph, in order."""
    trace = Trace(model, types)
    for index, node in enumerate(model.graph.node):
        _step(trace, index, node)
    for name in model.output_names:
        trace.pin_tensor(name, PinCode.GRAPH_OUTPUT, f"These channels are part of the graph output {name!r}.")
    return trace


def _step(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    where = node_label(trace, index, node)
    for name in captured_names(node):
        if name in trace.types:
            reason = f"A body of {where} uses this tensor."
            trace.pin_tensor(name, PinCode.CONTROL_FLOW, reason)
    domain = "" if node.domain == "ai.onnx" else node.domain
    row = find_rule(node, trace.model.opsets.get(domain, 1))
    if row is None:
        _unknown(trace, node, where)
        return
    if row.family is not row.family.MOVEMENT:
        _pin_sizes(trace, node, where)
    try:
        row.propagate(trace, index, node)
    except (ValueError, IndexError) as error:
        raise ModelError(f"The operands of {where} do not fit each other: {error}.") from error


def _unknown(trace: Trace, node: onnx.NodeProto, where: str) -> None:
    """Pin all that enters and leaves an operator without a rule: it is never assumed to be elementwise."""
    reason = f"{where} has no rule for channels."
    _pin_sizes(trace, node, where)
    for name in node.input:
        if name:
            trace.pin_tensor(name, PinCode.UNKNOWN_OPERATOR, reason)
    for name in node.output:
        if name in trace.types:
            trace.set(name, [])


def _pin_sizes(trace: Trace, node: onnx.NodeProto, where: str) -> None:
    """Pin channels whose number reaches something else than the target of a movement."""
    for name in node.input:
        sizes = trace.sizes.get(name)
        if sizes is None:
            continue
        for number in {int(n) for n in sizes.measured.ravel() if n != FIXED}:
            reason = f"{where} computes with the number of these channels."
            trace.pin(sizes.factors[number].ravel(), Pin(name, PinCode.SHAPE_VALUE, reason))


def _apply_patterns(trace: Trace, ignore: list[str], only: list[str]) -> None:
    if ignore:
        for name in matching_tensors(trace.model, ignore):
            if name in trace.types:
                trace.pin_tensor(name, PinCode.IGNORED, "An --ignore pattern matches these channels.")
    if only:
        chosen = matching_tensors(trace.model, only)
        for name in trace.contracted:
            if name not in chosen:
                trace.pin_tensor(name, PinCode.IGNORED, "No --only pattern matches these channels.")
