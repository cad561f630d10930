"""From a graph to its channel groups: trace the labels, tie what was joined, sort out what must stay."""

from collections.abc import Iterable, Mapping

import onnx

from oamip_onnx.channels.groups import ChannelAnalysis, Pin, PinCode
from oamip_onnx.channels.labels import FIXED
from oamip_onnx.channels.patterns import matching_tensors
from oamip_onnx.channels.resolve import resolve
from oamip_onnx.channels.rules import find_rule
from oamip_onnx.channels.rules.pinned import pin_all
from oamip_onnx.channels.rules.shape_values import select_sizes
from oamip_onnx.channels.trace import Heads, Trace, node_label
from oamip_onnx.errors import ModelError
from oamip_onnx.model import CONTRACTIONS, Model, TensorType, captured_names, inner_nodes


def analyse(
    model: Model,
    types: Mapping[str, TensorType],
    *,
    ignore: Iterable[str] = (),
    only: Iterable[str] = (),
    allow_inexact: bool = False,
    heads: Heads = "whole",
) -> ChannelAnalysis:
    """Return the channel groups of a model, and why the other channels must stay.

    Parameters
    ----------
    model
        The canonical model.
    types
        Concrete types of its tensors (`infer_shapes`).
    ignore
        Globs, or regular expressions behind ``re:``, on node and tensor names whose channels stay.
    only
        The same; where given, every contraction that none matches stays.
    allow_inexact
        Whether channels under a normalisation over them may go: the narrower model normalises over those it keeps.
    heads
        Whether attention loses whole heads, or equally many dimensions of every head.

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    ModelError
        If a contraction's operands do not fit each other.
    """
    trace = trace_labels(model, types, allow_inexact=allow_inexact, heads=heads)
    apply_patterns(trace, list(ignore), list(only))
    return resolve(trace)


def trace_labels(
    model: Model, types: Mapping[str, TensorType], *, allow_inexact: bool = False, heads: Heads = "whole"
) -> Trace:
    """Run every node's rule over the graph, in order."""
    trace = Trace(model, types, allow_inexact=allow_inexact, heads=heads)
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
    if any(node.op_type in CONTRACTIONS for node in inner_nodes(node)):
        reason = f"The layers inside the bodies of {where} are left as they are."
        trace.unseen.append(Pin(next((o for o in node.output if o), ""), PinCode.CONTROL_FLOW, reason))
    if any(name and name not in trace.types for name in [*node.input, *node.output]):
        pin_all(trace, node, PinCode.NO_TENSOR, f"{where} handles sequences or optional values.")
        return
    domain = "" if node.domain == "ai.onnx" else node.domain
    row = find_rule(node, trace.model.opsets.get(domain, 1))
    if select_sizes(trace, node):
        return
    if row is None or row.family is not row.family.MOVEMENT:
        _pin_sizes(trace, node, where)
    if row is None:
        # Never assumed to be elementwise.
        pin_all(trace, node, PinCode.UNKNOWN_OPERATOR, f"{where} has no rule for channels.")
        return
    try:
        row.propagate(trace, index, node)
    except (ValueError, IndexError, StopIteration) as error:
        raise ModelError(f"The operands of {where} do not fit each other: {error}.") from error


def _pin_sizes(trace: Trace, node: onnx.NodeProto, where: str) -> None:
    """Pin channels whose number reaches something else than the target of a movement."""
    for name in node.input:
        sizes = trace.sizes.get(name)
        if sizes is None:
            continue
        for number in {int(n) for n in sizes.measured.ravel() if n != FIXED}:
            reason = f"{where} computes with the number of these channels."
            trace.pin(sizes.factors[number].ravel(), Pin(name, PinCode.SHAPE_VALUE, reason))


def apply_patterns(trace: Trace, ignore: list[str], only: list[str]) -> None:
    """Pin what the patterns leave alone.

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    """
    if ignore:
        for name in matching_tensors(trace.model, ignore):
            if name in trace.types:
                trace.pin_tensor(name, PinCode.IGNORED, "An --ignore pattern matches these channels.")
    if only:
        chosen = matching_tensors(trace.model, only)
        for name in trace.contracted:
            if name not in chosen:
                trace.pin_tensor(name, PinCode.IGNORED, "No --only pattern matches these channels.")
