"""What `explain` reports about one name of a graph."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import Field
from rich.text import Text

from oamip_onnx.report.grid import Labelled
from oamip_onnx.report.schema import SCHEMA_VERSION, Record
from oamip_onnx.report.shown import Part, ShownInParts
from oamip_onnx.report.subjects import in_words

# Longer lists are for the JSON.
_SHOWN = 6

_TITLES = {"made": "Makes", "read": "Reads"}

Rows = list[tuple[str, str]]


class HeldRecord(Record):
    """Why cells stay, or why there are none; `code`, `meaning` and `remedy` are empty where nothing holds them."""

    cells: int
    code: str
    reason: str
    meaning: str
    remedy: str


class AxesRecord(Record):
    """The channels along some axes of a tensor: cells, those that can go, units, labels of groups, what holds."""

    axes: list[int]
    cells: int
    removable: int
    units: int
    groups: list[str]
    held: list[HeldRecord]


class TensorRecord(Record):
    """One tensor: `role` says what it is to the name that was asked for; `absence` why it carries no channels."""

    name: str
    role: Literal["itself", "made", "read", "weight"]
    kind: Literal["input", "activation", "initializer"]
    is_output: bool
    element_type: str
    shape: list[int]
    made_by: str | None
    read_by: list[str]
    channels: list[AxesRecord]
    absence: HeldRecord | None


class NodeRecord(Record):
    """One node."""

    name: str
    operator: str


class SliceRecord(Record):
    """An initializer that gets shorter with a group, and along which axes."""

    initializer: str
    axes: list[int]


class ConstraintRecord(Record):
    """What binds the units of a group: which constraint, what it is here, and what would loosen it."""

    name: str
    detail: str
    remedy: str


class RankingRecord(Record):
    """Scores of a group's units: where they come from, their spread, and the positions of those that go first."""

    source: str
    lowest: float
    median: float
    highest: float
    first_to_go: list[int]


class GroupExplanation(Record):
    """One group.

    Attributes
    ----------
    tensors
        The activations that layers produce with its channels; `activations` are all that carry them.
    producers, readers
        The nodes that produce the channels, and those where they end.
    macs, parameters, macs_share, parameters_share
        What goes when the group is narrowed to its minimum width and all others stay; shares of the model.
    step
        Units that go together at least, one a block; `step_macs` and `step_parameters` go with them. None where the
        group is at its minimum already.
    kept
        Positions of the units that the run of `--result` kept.
    """

    name: str
    width: int
    blocks: int
    minimum_width: int
    exact: bool
    constraints: list[ConstraintRecord]
    tensors: list[str]
    activations: list[str]
    producers: list[NodeRecord]
    readers: list[NodeRecord]
    slices: list[SliceRecord]
    macs: int
    parameters: int
    macs_share: float
    parameters_share: float
    step: int | None
    step_macs: int | None
    step_parameters: int | None
    ranking: RankingRecord | None
    kept: list[int] | None


class UnitExplanation(Record):
    """One unit, or a channel that stays.

    Attributes
    ----------
    tensor, axes, position
        The channel that was asked for.
    group, unit
        The name of its group and its position there; None where the channel stays.
    goes_with
        Positions of the channels along the same axes of the same tensor that are the same unit.
    block
        Number of its block; None where the units of the group are free.
    score, rank, rank_of
        Its score; its rank within its block, 1 being the first to go; and the units of that block.
    kept
        Whether the run of `--result` kept it.
    macs, parameters
        What goes with it (with one unit of each other block, where there are blocks).
    held
        Why the channel stays.
    """

    tensor: str
    axes: list[int]
    position: int
    group: str | None = None
    unit: int | None = None
    goes_with: list[int] = Field(default_factory=list)
    block: int | None = None
    score: float | None = None
    rank: int | None = None
    rank_of: int | None = None
    kept: bool | None = None
    macs: int | None = None
    parameters: int | None = None
    held: HeldRecord | None = None


class ChangeRecord(Record):
    """What another setting would do to the tensors in question: units of groups there, now and then."""

    setting: str
    units_now: int
    units_then: int


class Explanation(Record, ShownInParts):
    """What a name of a graph is, what it belongs to, what can go, what holds the rest, and what would change that.

    Attributes
    ----------
    kind, name
        What the name was taken as.
    operator
        Operator of the node, or of the node that makes the tensor; None for inputs, initializers and groups.
    tensors
        The tensor itself; for a node what it makes, then what it reads.
    groups
        The groups whose channels these tensors carry.
    unit
        The one unit that was asked for.
    changes
        Settings that were tried.
    parameters, macs
        Costs of the whole model.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["node", "tensor", "group"]
    name: str
    operator: str | None
    tensors: list[TensorRecord]
    groups: list[GroupExplanation]
    unit: UnitExplanation | None
    changes: list[ChangeRecord]
    parameters: int
    macs: int
    notes: list[str]

    def parts(self) -> list[Part]:
        """Return the explanation in words."""
        return list(self._parts())

    def _parts(self) -> Iterator[Part]:
        operator = f" ({self.operator})" if self.operator and self.kind == "node" else ""
        yield _title(f"{self.kind.capitalize()} {self.name}{operator}")
        if self.unit is not None:
            yield Labelled("", tuple(_unit_rows(self.unit, self.macs, self.parameters)))
        said: set[str] = set()
        for tensor in self.tensors:
            if tensor.role != "weight":
                title = "" if tensor.role == "itself" else f"{_TITLES[tensor.role]} {tensor.name}"
                yield Labelled(title, tuple(_tensor_rows(tensor, said)))
        for group in self.groups:
            yield Labelled(f"Group {group.name}", tuple(_group_rows(group)))
        weights = [tensor for tensor in self.tensors if tensor.role == "weight"]
        if weights:
            yield _title("Weights and parameters")
        for weight in weights:
            channels = "; ".join(_channels(axes) for axes in weight.channels) or "no channels"
            yield Text(f"  {weight.name} ({_shape(weight)}): {channels}")
        if self.changes:
            rows = [("with", f"{c.setting}: {c.units_then} units can go here, {c.units_now} now") for c in self.changes]
            yield Labelled("Other settings", tuple(rows))


def _title(text: str) -> Text:
    return Text(text, style="bold")


def _some(names: Sequence[str]) -> str:
    """Return names one after the other, the first few of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _amounts(macs: int, parameters: int, macs_share: float, parameters_share: float) -> str:
    return f"{macs:,} MACs ({macs_share:.2%}), {parameters:,} parameters ({parameters_share:.2%})"


def _labels(nodes: Iterable[NodeRecord]) -> str:
    return _some([f"{node.name} ({node.operator})" for node in nodes])


def _shape(tensor: TensorRecord) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _tensor_rows(tensor: TensorRecord, said: set[str]) -> Rows:
    """Return the rows of a tensor; what a code means is said once, and the code added to `said`."""
    kind = f"{tensor.kind}, {tensor.element_type} {_shape(tensor)}"
    rows = [("is", kind + (", an output of the graph" if tensor.is_output else ""))]
    if tensor.role == "itself":
        rows += [("made by", tensor.made_by or ""), ("read by", _some(tensor.read_by))]
    for axes in tensor.channels:
        rows.append(("channels", _channels(axes)))
        for held in axes.held:
            rows += _held_rows(held, f"{held.cells} stay")[: 1 if held.code in said else None]
            said.add(held.code)
    if tensor.absence is not None:
        rows += _held_rows(tensor.absence, "no channels")[: 1 if tensor.absence.code in said else None]
        said.add(tensor.absence.code)
    return rows


def _channels(axes: AxesRecord) -> str:
    text = f"{axes.cells} on {in_words(tuple(axes.axes))}"
    if not axes.removable:
        return f"{text}, all of which stay"
    units = "" if axes.units == axes.removable else f" as {axes.units} units"
    part = "" if axes.removable == axes.cells else f"{axes.removable} can go"
    groups = f"group {_some(axes.groups)}" if len(axes.groups) == 1 else f"groups {_some(axes.groups)}"
    return f"{text}{', ' if part else ''}{part}{units}, {groups}"


def _held_rows(held: HeldRecord, label: str) -> Rows:
    code = f" ({held.code})" if held.code else ""
    return [(label, f"{held.reason}{code}"), ("means", held.meaning), ("would help", held.remedy)]


def _group_rows(group: GroupExplanation) -> Rows:
    least, step = group.minimum_width, group.step or 1
    steps = f" in steps of {step}" if step > 1 else ""
    rows = [("width", f"{group.width}; can be cut to {least}–{group.width - step}{steps}")]
    if group.step is None:
        rows = [("width", f"{group.width}, the least that its blocks allow")]
    if group.kept is not None:
        rows.append(("kept", f"{len(group.kept)} in the run"))
    rows += [("bound by", constraint.detail) for constraint in group.constraints]
    loosened = {c.remedy for c in group.constraints if c.name in {"blocks", "tied"}}
    rows += [("would help", remedy) for remedy in sorted(loosened)]
    rows += [
        ("made by", _labels(group.producers)),
        ("ends at", _labels(group.readers)),
        ("tensors", _some(group.activations)),
        ("slices", _some([f"{s.initializer} on {in_words(tuple(s.axes))}" for s in group.slices])),
        ("holds", _amounts(group.macs, group.parameters, group.macs_share, group.parameters_share)),
    ]
    if group.step_macs is not None and group.step_parameters is not None:
        many = "a unit" if step == 1 else f"{step} units"
        rows.append((many, f"{group.step_macs:,} MACs, {group.step_parameters:,} parameters"))
    if group.ranking is None:
        rows.append(("scores", "none: no weight produces these units; give --scores"))
    else:
        r = group.ranking
        spread = f"{r.lowest:.4g} to {r.highest:.4g}, median {r.median:.4g}: {r.source}"
        rows += [("scores", spread), ("first to go", ", ".join(map(str, r.first_to_go)))]
    return rows


def _unit_rows(unit: UnitExplanation, macs: int, parameters: int) -> Rows:
    """Return the rows of a unit; the amounts are those of the whole model."""
    where = f"channel {unit.position} on {in_words(tuple(unit.axes))} of {unit.tensor}"
    if unit.held is not None:
        reason = unit.held if unit.held.reason else unit.held.model_copy(update={"reason": "No layer makes it."})
        return [("channel", where), *_held_rows(reason, "stays")]
    rows = [("unit", f"{where}: unit {unit.unit} of group {unit.group}")]
    if unit.goes_with:
        rows.append(("goes with", f"channels {_some([str(p) for p in unit.goes_with])}"))
    if unit.block is not None:
        rows.append(("block", f"{unit.block}; one unit of each other block goes with it"))
    if unit.score is not None:
        rows += [("score", f"{unit.score:.4g}"), ("rank", f"{unit.rank} of {unit.rank_of}; 1 is the first to go")]
    if unit.kept is not None:
        rows.append(("in the run", "kept" if unit.kept else "removed"))
    if unit.macs is not None and unit.parameters is not None:
        shares = unit.macs / max(macs, 1), unit.parameters / max(parameters, 1)
        rows.append(("holds", _amounts(unit.macs, unit.parameters, *shares)))
    return rows
