"""What `explain` reports about one name of a graph, as data."""

from typing import Literal

from pydantic import Field

from oamip_onnx.report.schema import SCHEMA_VERSION, Record


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


class Explanation(Record):
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
