"""Puts an explanation together: the subject's tensors, their groups, what holds the rest, what would change it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from oamip_onnx.budget import costs_of
from oamip_onnx.channels import (
    FIXED,
    REMEDIES,
    Cells,
    ChannelAnalysis,
    Constraint,
    Pin,
    PinCode,
    Reasons,
    analyse_with_reasons,
)
from oamip_onnx.config import PruneConfig
from oamip_onnx.model import Model, TensorType
from oamip_onnx.report.explanation import (
    AxesRecord,
    ChangeRecord,
    Explanation,
    GroupExplanation,
    HeldRecord,
    TensorRecord,
    UnitExplanation,
)
from oamip_onnx.report.group_explanation import Groups
from oamip_onnx.report.ranking import find_ranking
from oamip_onnx.report.subjects import Subject, find_cell, find_group_cell, find_subject, groups_on

Role = Literal["itself", "made", "read", "weight"]

# That this does not help is worth a word as well: the remedy for a normalisation names it.
_INEXACT = "--allow-inexact"

# Another way to take heads changes which rows are asked for, and with them these.
_HEADS = frozenset({PinCode.CONFLICTING_GRID, PinCode.TOO_NARROW})


def explain(
    model: Model,
    types: Mapping[str, TensorType],
    config: PruneConfig,
    name: str,
    *,
    scores: Path | None = None,
    result: Path | None = None,
) -> Explanation:
    """Return what a name of a graph is, what it belongs to, what can go, what holds the rest, and what would help.

    Parameters
    ----------
    model, types
        The canonical model and the concrete types of its tensors.
    config
        Settings; those that decide the groups count.
    name
        A node, a tensor, a group, or one unit of them as ``NAME[3]``; see `find_subject`.
    scores, result
        Files of ``oamip score --out`` and of ``oamip prune --json``.

    Raises
    ------
    UsageError, DataError, ModelError
        If nothing has the name, a file does not fit, or the model's operands do not fit each other.
    """
    return Explainer(model, types, config, scores, result).explain(name)


class Explainer:
    """Explains any number of names of one model; the parameters are those of `explain`."""

    def __init__(
        self,
        model: Model,
        types: Mapping[str, TensorType],
        config: PruneConfig,
        scores: Path | None = None,
        result: Path | None = None,
    ) -> None:
        self._model, self._types, self._config = model, types, config
        self.analysis, self.reasons = _analyse(model, types, config)
        full = costs_of(model, self.analysis, np.ones(self.analysis.unit_count, dtype=np.bool_))
        ranking = find_ranking(model, self.analysis, scores, result)
        self._groups = Groups(model, self.analysis, self.reasons, full, ranking)
        # Several names share groups and settings to try.
        self._known: dict[int, GroupExplanation] = {}
        self._tried: dict[str, Reasons] = {}

    def explain(self, name: str) -> Explanation:
        """Return the explanation of one name.

        Raises
        ------
        UsageError
            If nothing has the name.
        """
        subject = find_subject(self._model, self.analysis, name)
        tensors = [self._tensor(name, role) for name, role in self._tensors_of(subject)]
        if subject.group is None:
            numbers = list(dict.fromkeys(n for t in tensors for n in groups_on(self.analysis, self.reasons, t.name)))
        else:
            numbers = [subject.group]
        for number in numbers:
            if number not in self._known:
                self._known[number] = self._groups.group(number)
        groups = [self._known[number] for number in numbers]
        full = self._groups.full
        return Explanation(
            kind=subject.kind,
            name=subject.name,
            operator=self._operator(subject),
            tensors=tensors,
            groups=groups,
            unit=None if subject.position is None else self._unit(subject, tensors[0].name),
            changes=self._changes(tensors, groups),
            parameters=full.parameters,
            macs=full.macs,
            notes=[*subject.notes, *self._model.notes],
        )

    def _unit(self, subject: Subject, tensor: str) -> UnitExplanation:
        if subject.group is None:
            cell = find_cell(self.reasons, tensor, subject)
        else:
            cell = find_group_cell(self.analysis, self.reasons, subject)
        return self._groups.unit(cell, _held(cell.pin, 1) if cell.unit == FIXED else None)

    def _tensors_of(self, subject: Subject) -> list[tuple[str, Role]]:
        if subject.group is not None:
            return [(self.analysis.groups[subject.group].tensors[0], "itself")]
        if subject.node is None:
            return [(subject.name, "itself")]
        node = self._model.graph.node[subject.node]
        found: dict[str, Role] = {name: "made" for name in node.output if name}
        for name in node.input:
            if name:
                found.setdefault(name, "weight" if self._model.is_constant(name) else "read")
        order = ("made", "read", "weight")
        return sorted(found.items(), key=lambda item: order.index(item[1]))

    def _tensor(self, name: str, role: Role) -> TensorRecord:
        model = self._model
        kind = self._types.get(name)
        index = model.producers.get(name)
        absence = self.reasons.absence(name)
        source: Literal["input", "activation", "initializer"] = "activation"
        if model.is_constant(name):
            source = "initializer"
        elif index is None:
            source = "input"
        return TensorRecord(
            name=name,
            role=role,
            kind=source,
            is_output=name in model.output_names,
            element_type="" if kind is None else onnx.TensorProto.DataType.Name(kind.element_type).lower(),
            shape=[] if kind is None else list(kind.shape),
            made_by=None if index is None else self._label(index),
            read_by=list(dict.fromkeys(self._label(use.node) for use in model.uses.get(name, ()))),
            channels=[self._axes(cells) for cells in self.reasons.cells(name)],
            absence=None if absence is None else _held(absence.pin, 0, absence.reason),
        )

    def _axes(self, cells: Cells) -> AxesRecord:
        units = np.unique(cells.units[cells.units != FIXED])
        owner = self.analysis.group_of_unit()
        return AxesRecord(
            axes=list(cells.axes),
            cells=len(cells.units),
            removable=cells.removable,
            units=len(units),
            groups=[self.analysis.groups[int(g)].name for g in np.unique(owner[units])],
            held=[_held(pin, count) for pin, count in cells.held.items()],
        )

    def _label(self, index: int) -> str:
        return f"{self._model.graph.node[index].op_type} {self._model.node_name(index)!r}"

    def _operator(self, subject: Subject) -> str | None:
        index = self._model.producers.get(subject.name) if subject.node is None else subject.node
        return None if index is None or subject.kind == "group" else str(self._model.graph.node[index].op_type)

    def _changes(self, tensors: list[TensorRecord], groups: list[GroupExplanation]) -> list[ChangeRecord]:
        """Return what other settings would do, for those that could and do change something."""
        pins = [held for t in tensors for axes in t.channels for held in axes.held]
        pins += [t.absence for t in tensors if t.absence is not None]
        codes = {PinCode(held.code) for held in pins if held.code}
        tied = any(c.name == Constraint.TIED for group in groups for c in group.constraints)
        names = [t.name for t in tensors]
        now = _units_on(names, self.reasons)
        found = []
        for setting, other in _alternatives(self._config, codes, tied=tied):
            if setting not in self._tried:
                self._tried[setting] = _analyse(self._model, self._types, other)[1]
            then = _units_on(names, self._tried[setting])
            if then != now or setting == _INEXACT:
                found.append(ChangeRecord(setting=setting, units_now=now, units_then=then))
        return found


@dataclass(frozen=True)
class _Alternative:
    """A setting to try, and whether it could matter."""

    setting: str
    update: Mapping[str, object]
    could_matter: bool


def _alternatives(config: PruneConfig, codes: set[PinCode], *, tied: bool) -> list[tuple[str, PruneConfig]]:
    """Return the settings that could free what is held by these codes, each with its effect on the configuration."""
    whole = config.heads == "whole"
    candidates = [
        _Alternative(
            _INEXACT,
            {"allow_inexact": True},
            PinCode.NORMALISATION in codes and not config.allow_inexact,
        ),
        _Alternative("--heads dimension", {"heads": "dimension"}, whole and (tied or bool(codes & _HEADS))),
        _Alternative("--heads whole", {"heads": "whole"}, not whole and bool(codes - {PinCode.GRAPH_OUTPUT})),
        _Alternative(
            "neither --ignore nor --only",
            {"ignore": (), "only": ()},
            PinCode.IGNORED in codes,
        ),
    ]
    return [(c.setting, config.model_copy(update=dict(c.update))) for c in candidates if c.could_matter]


def _analyse(model: Model, types: Mapping[str, TensorType], config: PruneConfig) -> tuple[ChannelAnalysis, Reasons]:
    return analyse_with_reasons(
        model,
        types,
        ignore=config.ignore,
        only=config.only,
        allow_inexact=config.allow_inexact,
        heads=config.heads,
    )


def _units_on(names: list[str], reasons: Reasons) -> int:
    """Return how many units of groups these tensors carry."""
    return len({int(u) for name in names for cells in reasons.cells(name) for u in cells.units if u != FIXED})


def _held(pin: Pin | None, cells: int, reason: str = "") -> HeldRecord:
    if pin is None:
        return HeldRecord(cells=cells, code="", reason=reason, meaning="", remedy="")
    known = REMEDIES[pin.code]
    return HeldRecord(
        cells=cells, code=str(pin.code), reason=reason or pin.reason, meaning=known.meaning, remedy=known.change
    )
