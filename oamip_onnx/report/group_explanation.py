"""Groups and units explained: members, constraints, costs, ranks."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from oamip_onnx.budget import costs_of
from oamip_onnx.channels import (
    CONSTRAINTS,
    FIXED,
    BoolArray,
    ChannelAnalysis,
    ChannelGroup,
    Constraint,
    IntArray,
    Reasons,
)
from oamip_onnx.model import Costs, Model
from oamip_onnx.report.explanation import (
    ConstraintRecord,
    GroupExplanation,
    HeldRecord,
    NodeRecord,
    RankingRecord,
    SliceRecord,
    UnitExplanation,
)
from oamip_onnx.report.inspection import minimum_kept
from oamip_onnx.report.ranking import Ranking
from oamip_onnx.report.subjects import Cell, in_words

_FIRST = 5


@dataclass(frozen=True)
class Groups:
    """Explains the groups of a model.

    Attributes
    ----------
    model, analysis, reasons
        The model, its channels, and what holds those that stay.
    full
        Costs of the whole model.
    ranking
        How units are ranked.
    """

    model: Model
    analysis: ChannelAnalysis
    reasons: Reasons
    full: Costs
    ranking: Ranking

    def group(self, number: int) -> GroupExplanation:
        """Return what there is to say about a group."""
        group = self.analysis.groups[number]
        activations = self._carriers(group)
        readers = [c.node for c in self.analysis.contractions if _within(c.units, group)]
        macs, parameters = self._saved(group, minimum_kept(group))
        step = self._step(group, None)
        step_macs, step_parameters = (None, None) if step is None else self._saved(group, step)
        kept = self.ranking.kept
        return GroupExplanation(
            name=group.name,
            width=group.width,
            blocks=group.block_count,
            minimum_width=group.minimum_width,
            exact=group.exact,
            constraints=self._constraints(group),
            tensors=list(group.tensors),
            activations=activations,
            producers=self._nodes(self.model.producers[name] for name in group.tensors),
            readers=self._nodes(readers),
            slices=self._slices(group),
            macs=macs,
            parameters=parameters,
            macs_share=macs / max(self.full.macs, 1),
            parameters_share=parameters / max(self.full.parameters, 1),
            step=None if step is None else group.block_count,
            step_macs=step_macs,
            step_parameters=step_parameters,
            ranking=self._ranking(group),
            kept=None if kept is None else [int(u) for u in np.flatnonzero(kept[group.units])],
        )

    def unit(self, cell: Cell, held: HeldRecord | None) -> UnitExplanation:
        """Return what there is to say about one unit; `held` is why the cell stays, where it does."""
        axes = list(cell.axes)
        if cell.unit == FIXED:
            return UnitExplanation(tensor=cell.tensor, axes=axes, position=cell.position, held=held)
        number = int(self.analysis.group_of_unit()[cell.unit])
        group = self.analysis.groups[number]
        own = cell.unit - group.first_unit
        together = next(c.units for c in self.reasons.cells(cell.tensor) if c.axes == cell.axes)
        step = self._step(group, own)
        macs, parameters = (None, None) if step is None else self._saved(group, step)
        ranked = next(order for order in self.ranking.order(group) if own in order)
        scored = self.ranking.says_something(group)
        return UnitExplanation(
            tensor=cell.tensor,
            axes=axes,
            position=cell.position,
            group=self.analysis.groups[number].name,
            unit=own,
            goes_with=[int(p) for p in np.flatnonzero(together == cell.unit) if p != cell.position],
            block=None if group.blocks is None else int(group.blocks[own]),
            score=float(self.ranking.values[cell.unit]) if scored else None,
            rank=int(np.flatnonzero(ranked == own)[0]) + 1 if scored else None,
            rank_of=len(ranked) if scored else None,
            kept=None if self.ranking.kept is None else bool(self.ranking.kept[cell.unit]),
            macs=macs,
            parameters=parameters,
        )

    def _carriers(self, group: ChannelGroup) -> list[str]:
        """Return the activations that carry a group's channels, in graph order."""
        made = dict.fromkeys(o for node in self.model.graph.node for o in node.output if o)
        labels = self.analysis.labels
        return [name for name in made if name in labels and any(_within(f, group) for f in labels[name].factors)]

    def _slices(self, group: ChannelGroup) -> list[SliceRecord]:
        found = []
        for name in self.model.initializers:
            labels = self.analysis.labels.get(name)
            axes = {
                axis
                for factor in ([] if labels is None else labels.factors)
                if _within(factor, group)
                for axis, size in enumerate(factor.shape)
                if size > 1
            }
            if axes:
                found.append(SliceRecord(initializer=name, axes=sorted(axes)))
        return found

    def _nodes(self, positions: Iterable[int]) -> list[NodeRecord]:
        nodes = self.model.graph.node
        return [NodeRecord(name=self.model.node_name(i), operator=nodes[i].op_type) for i in dict.fromkeys(positions)]

    def _constraints(self, group: ChannelGroup) -> list[ConstraintRecord]:
        found = []
        if group.block_count > 1:
            where = ", ".join(map(repr, self.reasons.split_at(group.units)[:3]))
            width = group.width // group.block_count
            text = f"{group.block_count} blocks of {width} units keep equally many, because of the split at {where}."
            found.append((Constraint.BLOCKS, text))
        tied = self._tied(group)
        if tied:
            found.append((Constraint.TIED, tied))
        if not group.exact:
            nodes = self._nodes(n.node for n in self.analysis.normalisations if _within(n.units, group))
            where = ", ".join(f"{node.operator} {node.name!r}" for node in nodes[:3])
            found.append((Constraint.INEXACT, f"{where} normalises over them, and then over those that are kept."))
        if not group.minimum_width:
            found.append((Constraint.MAY_VANISH, "All units may go; the bias of the layers behind takes their place."))
        else:
            each = "in every block " if group.block_count > 1 else ""
            found.append((Constraint.AT_LEAST_ONE, f"At least one unit {each}stays."))
        return [ConstraintRecord(name=str(c), detail=text, remedy=CONSTRAINTS[c].change) for c, text in found]

    def _tied(self, group: ChannelGroup) -> str:
        """Return where a unit is several channels; empty where each is one."""
        for name in group.tensors:
            for cells in self.reasons.cells(name):
                own = cells.units[(cells.units >= group.first_unit) & (cells.units < group.first_unit + group.width)]
                sizes = np.unique(np.unique(own, return_counts=True)[1])
                if sizes.size and sizes[-1] > 1:
                    many = f"{sizes[-1]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
                    return f"A unit is {many} channels of {name!r} on {in_words(cells.axes)}, which go together."
        return ""

    def _ranking(self, group: ChannelGroup) -> RankingRecord | None:
        if not self.ranking.says_something(group):
            return None
        values = self.ranking.values[group.units]
        first = [u for rank in zip(*self.ranking.order(group), strict=True) for u in rank]
        return RankingRecord(
            source=self.ranking.source,
            lowest=float(values.min()),
            median=float(np.median(values)),
            highest=float(values.max()),
            first_to_go=[int(u) for u in first[: max(_FIRST, group.block_count)]],
        )

    def _step(self, group: ChannelGroup, unit: int | None) -> BoolArray | None:
        """Return which units stay after one step: a unit, or the first, and its like of every other block.

        None where the group is at its minimum already.
        """
        if group.width <= group.minimum_width:
            return None
        members = group.members()
        place = 0 if unit is None else next(int(np.flatnonzero(m == unit)[0]) for m in members if unit in m)
        kept = np.ones(group.width, dtype=np.bool_)
        kept[[m[place] for m in members]] = False
        return kept

    def _saved(self, group: ChannelGroup, own: BoolArray) -> tuple[int, int]:
        """Return the MACs and parameters that go when only these units of a group stay, all others untouched."""
        kept = np.ones(self.analysis.unit_count, dtype=np.bool_)
        kept[group.units] = own
        costs = costs_of(self.model, self.analysis, kept)
        return self.full.macs - costs.macs, self.full.parameters - costs.parameters


def _within(units: IntArray, group: ChannelGroup) -> bool:
    return bool(((units >= group.first_unit) & (units < group.first_unit + group.width)).any())
