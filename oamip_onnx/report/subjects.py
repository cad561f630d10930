"""What a name of a graph stands for: a node, a tensor, a group, or one unit of them."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from oamip_onnx.channels import FIXED, Cells, ChannelAnalysis, Pin, Reasons
from oamip_onnx.errors import UsageError, closest
from oamip_onnx.model import Model

# NAME[3] counts along the axis of the channels, NAME[:,3] along the second axis.
_POSITION = re.compile(r"(?P<name>.+)\[(?P<before>(?:\s*:\s*,)*)\s*(?P<position>\d+)\s*\]")

Kind = Literal["node", "tensor", "group"]
_KINDS: tuple[Kind, ...] = ("node", "tensor", "group")


@dataclass(frozen=True)
class Subject:
    """What a name stands for.

    Attributes
    ----------
    kind
        ``node``, ``tensor`` or ``group``.
    name
        The name in the graph.
    node
        Position of the node; None for a tensor or a group.
    group
        Number of the group where it was asked for as such.
    axis, position
        What stands in brackets behind the name; the axis is None where only a position was given.
    notes
        What else the name could have meant.
    """

    kind: Kind
    name: str
    node: int | None = None
    group: int | None = None
    axis: int | None = None
    position: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One cell of a tensor: the tensor, its axes, the position along them, and its unit or what holds it."""

    tensor: str
    axes: tuple[int, ...]
    position: int
    unit: int
    pin: Pin | None


def find_subject(model: Model, analysis: ChannelAnalysis, text: str) -> Subject:
    """Return what a name stands for; a node goes before a tensor of the same name, and that before a group.

    ``node:``, ``tensor:`` or ``group:`` in front of the name chooses; groups go by their names.

    Raises
    ------
    UsageError
        If nothing has the name; the message gives the closest ones.
    """
    found = _named(model, analysis, text)
    if found is not None:
        return found
    parts = _POSITION.fullmatch(text)
    found = None if parts is None else _named(model, analysis, parts["name"])
    if parts is None or found is None:
        name = text if parts is None else parts["name"]
        near = closest(name.partition("#")[0], [*_tensors(model, analysis), *_nodes(model)])
        what = f"the model {str(model.path)!r}" if model.path else "the model"
        raise UsageError(f"No node, tensor or group of {what} is called {name!r}{near}.")
    axis = parts["before"].count(",") if parts["before"] else None
    return Subject(found.kind, found.name, found.node, found.group, axis, int(parts["position"]), found.notes)


def find_cell(reasons: Reasons, name: str, subject: Subject) -> Cell:
    """Return the cell of a tensor that a subject names by its position.

    Raises
    ------
    UsageError
        If the tensor carries no channels there, or fewer.
    """
    position = subject.position or 0
    found = _along(reasons, name, subject.axis)
    if found is None:
        absence = reasons.absence(name)
        where = "" if subject.axis is None else f" on axis {subject.axis}"
        why = "" if absence is None else f": {absence.reason.rstrip('.')}"
        raise UsageError(f"The tensor {name!r} carries no channels{where}, so that it has no unit {position}{why}.")
    if position >= len(found.units):
        raise UsageError(
            f"The tensor {name!r} has {len(found.units)} channels on {in_words(found.axes)}; the last one is "
            f"{len(found.units) - 1}, not {position}."
        )
    return Cell(name, found.axes, position, int(found.units[position]), found.pins[position])


def find_group_cell(analysis: ChannelAnalysis, reasons: Reasons, subject: Subject) -> Cell:
    """Return the cell of a group's first tensor that is the unit whose position in the group a subject names.

    Raises
    ------
    UsageError
        If the group has fewer units.
    """
    group = analysis.groups[subject.group or 0]
    position = subject.position or 0
    if position >= group.width:
        raise UsageError(f"The group {group.name!r} has {group.width} units; the last one is {group.width - 1}.")
    unit = group.first_unit + position
    tensor = group.tensors[0]
    cells = next(cells for cells in reasons.cells(tensor) if unit in cells.units)
    return Cell(tensor, cells.axes, int(np.flatnonzero(cells.units == unit)[0]), unit, None)


def in_words(axes: tuple[int, ...]) -> str:
    """Return axes in words, such as ``axis 1`` or ``axes 1 and 3``."""
    numbers = " and ".join(map(str, axes))
    return f"axis {numbers}" if len(axes) == 1 else f"axes {numbers}"


def groups_on(analysis: ChannelAnalysis, reasons: Reasons, name: str) -> list[int]:
    """Return the numbers of the groups whose units a tensor carries, in graph order."""
    owner = analysis.group_of_unit()
    units = {int(u) for cells in reasons.cells(name) for u in cells.units if u != FIXED}
    return sorted({int(owner[u]) for u in units})


def _along(reasons: Reasons, name: str, axis: int | None) -> Cells | None:
    """Return the labels along an axis; without one, those that can go before those that stay."""
    found = [cells for cells in reasons.cells(name) if axis is None or axis in cells.axes]
    return next((cells for cells in found if cells.removable), next(iter(found), None))


def _named(model: Model, analysis: ChannelAnalysis, text: str) -> Subject | None:
    found = _exactly(model, analysis, text, _KINDS)
    chosen, _, name = text.partition(":")
    for kind in _KINDS:
        if found is None and chosen == kind:
            found = _exactly(model, analysis, name, (kind,))
    return found


def _exactly(model: Model, analysis: ChannelAnalysis, name: str, kinds: tuple[Kind, ...]) -> Subject | None:
    nodes = _nodes(model).get(name, []) if "node" in kinds else []
    is_tensor = "tensor" in kinds and name in _tensors(model, analysis)
    groups = [i for i, group in enumerate(analysis.groups) if group.name == name] if "group" in kinds else []
    if nodes:
        notes = []
        if len(nodes) > 1:
            notes.append(f"{len(nodes)} nodes are called {name!r}; this is the first.")
        if is_tensor:
            notes.append(f"A tensor is called {name!r} as well; tensor:{name} explains it.")
        return Subject("node", name, node=nodes[0], notes=tuple(notes))
    if is_tensor:
        return Subject("tensor", name)
    return Subject("group", analysis.groups[groups[0]].name, group=groups[0]) if groups else None


def _nodes(model: Model) -> dict[str, list[int]]:
    """Return the positions of the nodes by the names that reports give them."""
    found: dict[str, list[int]] = {}
    for index in range(len(model.graph.node)):
        found.setdefault(model.node_name(index), []).append(index)
    return found


def _tensors(model: Model, analysis: ChannelAnalysis) -> dict[str, None]:
    """Return the names of all tensors of the main graph, in graph order."""
    names = [*model.input_names, *(n for node in model.graph.node for n in [*node.input, *node.output] if n)]
    return dict.fromkeys([*names, *(n for n in analysis.types if n in model.initializers)])
