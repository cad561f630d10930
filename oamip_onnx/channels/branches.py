"""Which groups may vanish as a whole: branches whose layers can disappear with them.

With all its channels gone, a group's consumers compute their bias alone. A group may vanish if

1. each of its consumers is a Conv, Gemm or MatMul with constant weights that reads no other channels,
2. nothing else reads what carries the group's channels,
3. what the consumers compute reaches, through pointwise operators, a sum, product or the like with a tensor of the
   full shape, so that one constant a channel can take its place (a residual branch, a gate).
"""

from collections.abc import Sequence

import numpy as np

from oamip_onnx.channels.groups import ChannelGroup, Contraction
from oamip_onnx.channels.labels import Labels
from oamip_onnx.channels.rules.broadcast import BINARY, UNARY
from oamip_onnx.channels.trace import Trace
from oamip_onnx.model import Use

_CONSUMERS = frozenset({"Conv", "Gemm", "MatMul"})
_POINTWISE = frozenset(UNARY) | {"BatchNormalization"}
_COMBINING = frozenset(BINARY) - {"Where"}


def may_vanish(
    trace: Trace, group: ChannelGroup, contractions: Sequence[Contraction], labels: dict[str, Labels]
) -> bool:
    """Return whether all of a group's units may go.

    Parameters
    ----------
    trace
        The finished trace.
    group
        The group.
    contractions, labels
        All contractions and labels of the model, by unit.
    """
    own = range(group.first_unit, group.first_unit + group.width)
    ends = [c for c in contractions if bool(np.isin(c.units, own).any())]
    if not ends or not all(_is_consumer(trace, end, group) for end in ends):
        return False
    consumers = {end.node for end in ends}
    carriers = {name for name, found in labels.items() if any(bool(np.isin(f, own).any()) for f in found.factors)}
    for name in carriers:
        for use in trace.model.uses.get(name, ()):
            outputs = [o for o in trace.model.graph.node[use.node].output if o]
            if use.node not in consumers and not carriers.issuperset(outputs):
                return False
    return all(_ends_in_a_full_operand(trace, trace.model.graph.node[c].output[0]) for c in consumers)


def _is_consumer(trace: Trace, end: Contraction, group: ChannelGroup) -> bool:
    node = trace.model.graph.node[end.node]
    within = (end.units >= group.first_unit) & (end.units < group.first_unit + group.width)
    return (
        node.op_type in _CONSUMERS
        and not node.domain
        and end.operand == 0
        and bool(within.all())
        and all(trace.model.is_constant(name) for name in node.input[1:] if name)
    )


def _ends_in_a_full_operand(trace: Trace, name: str) -> bool:
    """Return whether one constant a channel can stand for a tensor wherever it is read."""
    if name in trace.model.output_names or name not in trace.model.uses:
        return False
    return all(_stands_for(trace, name, use) for use in trace.model.uses[name])


def _stands_for(trace: Trace, name: str, use: Use) -> bool:
    node = trace.model.graph.node[use.node]
    others = [o for i, o in enumerate(node.input) if i != use.operand and o]
    if node.domain or (node.op_type == "BatchNormalization" and use.operand):
        return False
    rank = len(trace.shape(name))
    passes_on = node.op_type in _COMBINING and all(
        trace.is_parameter(o) and len(trace.shape(o)) <= rank for o in others
    )
    if node.op_type in _POINTWISE or passes_on:
        read = [o for o in node.output if o in trace.model.uses or o in trace.model.output_names]
        return all(_ends_in_a_full_operand(trace, o) for o in read)
    shape = trace.shape(node.output[0])
    full = any(o != name and not trace.is_parameter(o) and trace.shape(o) == shape for o in others)
    return node.op_type in _COMBINING and full
