"""What `inspect` reports: groups with what they cost, pins, and what the program can encode."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from rich.text import Text

from oamip_onnx.budget import costs_of
from oamip_onnx.channels import REMEDIES, BoolArray, ChannelAnalysis, ChannelGroup
from oamip_onnx.formulation import BUILDERS
from oamip_onnx.model import Costs, Model, history
from oamip_onnx.report.grid import Grid, Section
from oamip_onnx.report.schema import SCHEMA_VERSION, PinRecord, Record
from oamip_onnx.report.shown import Part, ShownInParts

# Digits of a digest that tell two files apart.
_DIGITS = 12

_PRODUCTS = frozenset({"Conv", "Div", "Gemm", "MatMul", "Mul"})


class GroupInspection(Record):
    """One group.

    Attributes
    ----------
    blocks
        Number of blocks that must keep equally many units; 1 where units are free.
    minimum_width
        Fewest units that must stay; 0 where the branch may vanish.
    exact
        Whether removal equals zeroing; False under a normalisation over these channels.
    macs, parameters, macs_share, parameters_share
        What goes when the group is narrowed to its minimum width and all others stay; shares of the model.
    """

    name: str
    tensors: list[str]
    width: int
    blocks: int
    minimum_width: int
    exact: bool
    macs_share: float
    parameters_share: float
    macs: int
    parameters: int

    def constraints(self) -> str:
        """Return what binds the units, in words."""
        words = []
        if self.blocks > 1:
            words.append(f"{self.blocks} equal blocks")
        if not self.exact:
            words.append("inexact")
        if not self.minimum_width:
            words.append("may vanish")
        return ", ".join(words)


class StepRecord(Record):
    """One command that the model went through: its options without paths, the version, the digest of what it read."""

    command: str
    options: list[str]
    version: str
    source_sha256: str

    def describe(self) -> str:
        """Return the command, and what it read."""
        read = f" of the file with SHA-256 {self.source_sha256[:_DIGITS]}…" if self.source_sha256 else ""
        return f"{shlex.join(['oamip', self.command, *self.options])} (version {self.version}){read}"


class Inspection(Record, ShownInParts):
    """The channels of a model.

    Attributes
    ----------
    smallest_parameters, smallest_macs
        Shares that are left with every group at its minimum width.
    encodable_nodes, encodable_macs
        Shares of the nodes, and of the MACs in them, that the program in shift form can express.
    remedies
        What would have to change for pinned channels to go, by the codes of the pins.
    history
        The commands that the model went through, the oldest first.
    """

    schema_version: int = SCHEMA_VERSION
    parameters: int
    macs: int
    smallest_parameters: float
    smallest_macs: float
    encodable_nodes: float
    encodable_macs: float
    groups: list[GroupInspection]
    pinned: list[PinRecord]
    remedies: dict[str, str]
    notes: list[str]
    history: list[StepRecord]

    def parts(self) -> list[Part]:
        """Return groups with what they cost, what the program can encode, and pins with what would help."""
        return list(self._parts())

    def _parts(self) -> Iterator[Part]:
        if self.groups:
            yield self._group_grid()
        yield Text(
            f"{self.parameters:,} parameters, {self.macs:,} MACs; with every group at its narrowest, "
            f"{100 * self.smallest_macs:.1f} % of the MACs and {100 * self.smallest_parameters:.1f} % of the "
            "parameters are left."
        )
        yield Text(
            f"The program in shift form can express {100 * self.encodable_nodes:.0f} % of the nodes, with "
            f"{100 * self.encodable_macs:.0f} % of the MACs."
        )
        if self.pinned:
            yield self._pin_grid()
            yield from (Text(f"{code}: {remedy}") for code, remedy in self.remedies.items())
        if self.history:
            yield Text("\n".join(["History:", *(f"{i}. {step.describe()}" for i, step in enumerate(self.history, 1))]))

    def _group_grid(self) -> Grid:
        rows = tuple(
            (
                group.name,
                str(group.width),
                group.constraints(),
                str(len(group.tensors)),
                f"{100 * group.macs_share:.1f} %",
                f"{100 * group.parameters_share:.1f} %",
            )
            for group in self.groups
        )
        headers = ("Group", "Width", "Constraints", "Tensors", "MACs", "Parameters")
        return Grid(headers, (Section("", rows),), frozenset({"Group", "Constraints"}))

    def _pin_grid(self) -> Grid:
        """Return a row for each reason."""
        by_reason: dict[tuple[str, str], list[str]] = {}
        for pin in self.pinned:
            by_reason.setdefault((pin.code, pin.reason), []).append(pin.tensor)
        rows = tuple(
            (tensors[0] + (f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""), code, reason)
            for (code, reason), tensors in by_reason.items()
        )
        headers = ("Stays", "Code", "Reason")
        return Grid(headers, (Section("", rows),), frozenset(headers))


def inspect_channels(model: Model, analysis: ChannelAnalysis) -> Inspection:
    """Return groups, pins, and the largest reduction possible.

    Examples
    --------
    >>> from oamip_onnx.channels import analyse
    >>> from oamip_onnx.model import bind_inputs, infer_shapes, load_model
    >>> from oamip_onnx.report import inspect_channels
    >>> model = load_model("model.onnx")
    >>> types = infer_shapes(model, bind_inputs(model, None, {}))
    >>> found = inspect_channels(model, analyse(model, types))
    >>> [(group.name, group.width) for group in found.groups]
    [('t0', 8), ('t2', 6)]
    >>> [(pin.tensor, pin.code) for pin in found.pinned]
    [('t8', 'graph-output')]
    """
    everything = np.ones(analysis.unit_count, dtype=np.bool_)
    full = costs_of(model, analysis, everything)
    smallest = everything.copy()
    groups = []
    for group in analysis.groups:
        # The share that hangs on a group is what disappears when it is narrowed to its minimum, all others untouched.
        own = everything.copy()
        own[group.units] = minimum_kept(group)
        smallest[group.units] = own[group.units]
        costs = costs_of(model, analysis, own)
        groups.append(
            GroupInspection(
                name=group.name,
                tensors=list(group.tensors),
                width=group.width,
                blocks=group.block_count,
                minimum_width=group.minimum_width,
                exact=group.exact,
                macs_share=1 - costs.macs / max(full.macs, 1),
                parameters_share=1 - costs.parameters / max(full.parameters, 1),
                macs=full.macs - costs.macs,
                parameters=full.parameters - costs.parameters,
            )
        )
    nodes, macs = _encodable(model, full)
    least = costs_of(model, analysis, smallest)
    return Inspection(
        parameters=full.parameters,
        macs=full.macs,
        smallest_parameters=least.parameters / max(full.parameters, 1),
        smallest_macs=least.macs / max(full.macs, 1),
        encodable_nodes=nodes,
        encodable_macs=macs,
        groups=groups,
        pinned=[PinRecord(tensor=p.tensor, code=str(p.code), reason=p.reason) for p in analysis.pinned],
        remedies={str(code): REMEDIES[code].change for code in dict.fromkeys(p.code for p in analysis.pinned)},
        notes=list(model.notes),
        history=[StepRecord(**asdict(step)) for step in history(model.proto)],
    )


def minimum_kept(group: ChannelGroup) -> BoolArray:
    """Return which units stay at a group's minimum width: the first of each block; shape (width,)."""
    kept = np.zeros(group.width, dtype=np.bool_)
    for members in group.members() if group.minimum_width else []:
        kept[members[0]] = True
    return kept


def _encodable(model: Model, costs: Costs) -> tuple[float, float]:
    """Return the shares of nodes, and of MACs in them, that the program in shift form has a builder for.

    Products count only with one operand that the data reach: their product is not linear in the scores.
    """
    fits = []
    for index, node in enumerate(model.graph.node):
        data = sum(bool(name) and not model.is_constant(name) for name in node.input)
        if not node.domain and node.op_type in BUILDERS and (data == 1 or node.op_type not in _PRODUCTS):
            fits.append(index)
    macs = sum(costs.macs_by_node.get(i, 0) for i in fits)
    return len(fits) / max(len(model.graph.node), 1), macs / max(costs.macs, 1)
