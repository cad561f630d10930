"""Which groups may vanish as a whole: branches whose layers can disappear with them.

With all its channels gone, a group's consumers compute their bias alone. A group may vanish if

1. each of its consumers is a Conv, Gemm or MatMul with constant weights that reads no other channels,
2. nothing else reads what carries the group's channels,
3. what the consumers compute reaches, through pointwise operators, a sum, product or the like with a tensor of the
   full shape that does not vanish itself, so that one constant a channel can take its place (a residual branch, a
   gate).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oamip_onnx.channels.groups import ChannelAnalysis, ChannelGroup, Contraction
from oamip_onnx.channels.labels import FIXED, BoolArray, Labels
from oamip_onnx.channels.rules.broadcast import BINARY, UNARY
from oamip_onnx.channels.trace import Trace
from oamip_onnx.model import Model, needed_nodes

_CONSUMERS = frozenset({"Conv", "Gemm", "MatMul"})
_POINTWISE = frozenset(UNARY) | {"BatchNormalization"}
_COMBINING = frozenset(BINARY) - {"Where"}


@dataclass
class Branches:
    """Decides group by group which may vanish, so that any of those may vanish together.

    Attributes
    ----------
    trace
        The finished trace.
    contractions, labels
        All contractions and labels of the model, by unit.
    groups
        All groups.
    """

    trace: Trace
    contractions: Sequence[Contraction]
    labels: dict[str, Labels]
    groups: Sequence[ChannelGroup]

    def __post_init__(self) -> None:
        self._constants: set[str] = set()
        self._full: set[str] = set()
        owner = np.repeat(np.arange(len(self.groups)), [g.width for g in self.groups])
        self._ends: dict[int, list[Contraction]] = {}
        for contraction in self.contractions:
            for number in np.unique(owner[contraction.units[contraction.units != FIXED]]):
                self._ends.setdefault(int(number), []).append(contraction)
        self._carriers: dict[int, set[str]] = {}
        for name, found in self.labels.items():
            for factor in found.factors:
                for number in np.unique(owner[factor[factor != FIXED]]):
                    self._carriers.setdefault(int(number), set()).add(name)

    def may_vanish(self, number: int) -> bool:
        """Return whether all units of the group of that number may go."""
        group, ends = self.groups[number], self._ends.get(number, [])
        if not ends or not all(self._is_consumer(end, group) for end in ends):
            return False
        consumers = {end.node for end in ends}
        if self._is_read_elsewhere(self._carriers[number], consumers):
            return False
        found = self._constants_behind(consumers)
        if found is None:
            return False
        constants, full = found
        if constants & self._full or full & self._constants:
            return False  # a branch that this one needs may vanish, or the other way round
        self._constants |= constants
        self._full |= full
        return True

    def _is_consumer(self, end: Contraction, group: ChannelGroup) -> bool:
        node = self.trace.model.graph.node[end.node]
        within = (end.units >= group.first_unit) & (end.units < group.first_unit + group.width)
        return (
            node.op_type in _CONSUMERS
            and not node.domain
            and end.operand == 0
            and bool(within.all())
            and all(self.trace.model.is_constant(name) for name in node.input[1:] if name)
        )

    def _is_read_elsewhere(self, carriers: set[str], consumers: set[int]) -> bool:
        """Return whether a node that neither carries the group's channels on nor ends them reads them."""
        model = self.trace.model
        for name in carriers:
            for use in model.uses.get(name, ()):
                outputs = [o for o in model.graph.node[use.node].output if o]
                if use.node not in consumers and not carriers.issuperset(outputs):
                    return True
        return False

    def _constants_behind(self, consumers: set[int]) -> tuple[set[str], set[str]] | None:
        """Return the tensors that become constants and the full ones beside them; None where one cannot."""
        model, trace = self.trace.model, self.trace
        constants = {model.graph.node[c].output[0] for c in consumers}
        full: set[str] = set()
        for index in range(min(consumers) + 1, len(model.graph.node)):
            node = model.graph.node[index]
            read = [name for name in node.input if name in constants]
            if not read or index in consumers:
                continue
            if node.domain or node.op_type not in _POINTWISE | _COMBINING:
                return None
            shape = trace.shape(node.output[0])
            others = [n for n in node.input if n and n not in constants and not trace.is_parameter(n)]
            wide = [n for n in others if trace.shape(n) == shape]
            if wide:
                full.add(wide[0])
            elif others or any(len(trace.shape(n)) > len(trace.shape(read[0])) for n in node.input if n):
                return None
            else:
                constants.update(o for o in node.output if o in model.uses or o in model.output_names)
        return None if constants.intersection(model.output_names) else (constants, full)


def vanished_consumers(analysis: ChannelAnalysis, kept: BoolArray) -> set[int]:
    """Return the positions of the contractions all of whose channels went.

    Raises
    ------
    ValueError
        If a group falls below its minimum width.
    """
    gone: list[int] = []
    for group in analysis.groups:
        count = int(kept[group.units].sum())
        if count < group.minimum_width:
            raise ValueError(f"The group {group.name!r} keeps {count} units and needs {group.minimum_width}.")
        if count == 0:
            gone.extend(range(group.first_unit, group.first_unit + group.width))
    return {c.node for c in analysis.contractions if gone and bool(np.isin(c.units, gone).any())}


def living_nodes(model: Model, consumers: set[int]) -> set[int]:
    """Return the positions of the nodes that are left once the outputs of some contractions are constants."""
    return needed_nodes(model.graph, model.output_names, consumers)
