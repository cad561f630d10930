"""Why cells stay, for every tensor of a graph: a trace that is read once more for what holds each of its cells."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from oamip_onnx.channels.analysis import apply_patterns, trace_labels
from oamip_onnx.channels.blocks import find_blocks
from oamip_onnx.channels.components import Components
from oamip_onnx.channels.groups import ChannelAnalysis, Pin, PinCode
from oamip_onnx.channels.labels import FIXED, IntArray, Labels, axes_of, collapse
from oamip_onnx.channels.resolve import resolve
from oamip_onnx.channels.rules import Family, find_rule
from oamip_onnx.channels.trace import Heads, Trace, node_label
from oamip_onnx.model import Model, TensorType

# A tensor of this name, which no graph has, carries every atom: `resolve` answers with the unit of each.
_ATOMS = "\0atoms"

_UNEVEN = "These channels share blocks of equal width with channels that stay."
_ALONE = "Only one unit lives here; removing it would remove the layer."


@dataclass(frozen=True)
class Cells:
    """The labels along some axes of a tensor: what can go, and what holds the rest.

    Attributes
    ----------
    axes
        The axes that the labels depend on.
    units
        Unit of each cell, FIXED where it stays, in the order of the cells; shape (cells,).
    pins
        What holds each cell; None where it can go, and where it stays since no layer makes it. One entry a cell.
    """

    axes: tuple[int, ...]
    units: IntArray
    pins: tuple[Pin | None, ...]

    @property
    def removable(self) -> int:
        """Number of cells that can go."""
        return int((self.units != FIXED).sum())

    @property
    def held(self) -> Mapping[Pin, int]:
        """What holds cells, each with how many, in the order of the cells."""
        return {pin: count for pin, count in Counter(self.pins).items() if pin is not None}


@dataclass(frozen=True)
class Absence:
    """Why a tensor carries no channels: a sentence, and the pin behind it where something is held."""

    reason: str
    pin: Pin | None = None


class Reasons:
    """Answers for any tensor of a graph what can go and what holds the rest.

    Parameters
    ----------
    trace
        A trace that `resolve` has read.
    units
        Unit of each atom, FIXED where it stays; shape (atoms,).
    """

    def __init__(self, trace: Trace, units: IntArray) -> None:
        self._trace = trace
        self._unit_of_atom = np.append(units, FIXED)  # FIXED is -1, the last entry
        self._components = Components(trace)
        # What cannot keep blocks of equal width is held as well.
        self._blocks, _ = find_blocks(trace, self._components)
        self._made: set[int] = set()
        for name in trace.contracted:
            for factor in trace.labels[name].factors:
                self._made.update(np.unique(self._components.of_atom[factor]).tolist())
        self._sizes = _size_tensors(trace)
        self._unseen = {pin.tensor: pin for pin in trace.unseen}

    def cells(self, name: str) -> tuple[Cells, ...]:
        """Return the labels of a tensor, one entry a set of axes; none where it carries no channels.

        Axes along which no layer makes or reads channels, such as those of a kernel's plane, are left out.
        """
        labels = self._trace.labels.get(name)
        found = () if labels is None else tuple(self._cells(factor) for factor in labels.factors)
        return tuple(cells for cells in found if cells.removable or cells.held)

    def absence(self, name: str) -> Absence | None:
        """Return why a tensor carries no channels; None where it carries some."""
        if self.cells(name):
            return None
        where = name
        while True:
            # What carries no channels because its origin carries none is answered by the origin.
            found = self._absence_at(where)
            if isinstance(found, Absence):
                return found
            where = found

    def split_at(self, units: slice) -> tuple[str, ...]:
        """Return the tensors where units are split into rows that keep equally many, in graph order."""
        found: dict[str, None] = {}
        for grid in self._trace.grids:
            own = self._unit_of_atom[grid.cells]
            if bool(((own >= units.start) & (own < units.stop)).any()):
                found.setdefault(grid.tensor)
        return tuple(found)

    def _cells(self, factor: IntArray) -> Cells:
        components = self._components.of_atom[factor]
        axes = axes_of(collapse(components)) or axes_of(factor)
        part = tuple(slice(None) if a in axes else slice(0, 1) for a in range(factor.ndim))
        units, own = self._unit_of_atom[factor[part]].ravel(), components[part].ravel()
        held = {int(c): self._pin(int(c)) for c in np.unique(own[units == FIXED]) if c != FIXED}
        return Cells(tuple(sorted(axes)), units, tuple(held.get(c) for c in own.tolist()))

    def _pin(self, component: int) -> Pin | None:
        """Return what holds a component that stays; None where no layer makes it."""
        if component in self._components.pins:
            return self._components.pins[component]
        if component in self._blocks:
            return Pin("", PinCode.CONFLICTING_GRID, _UNEVEN)
        if component in self._made:
            return Pin("", PinCode.TOO_NARROW, _ALONE)
        return None

    def _absence_at(self, name: str) -> Absence | str:
        """Return why a tensor carries no channels, or the tensor that answers for it."""
        model = self._trace.model
        if name in self._unseen:
            return Absence(self._unseen[name].reason, self._unseen[name])
        if name not in self._trace.types:
            return Absence("It is a sequence or an optional value.")
        if name in self._sizes:
            return Absence("It holds sizes (a shape value), which follow the channels that they count.")
        if model.is_constant(name):
            return Absence(self._constant_without(name))
        if name not in model.producers:
            return Absence("Inputs of the graph keep their shape, and no layer has made channels up to here.")
        return self._output_without(name, model.producers[name])

    def _constant_without(self, name: str) -> str:
        readers = {self._label(use.node) for use in self._trace.model.uses.get(name, ())}
        where = f" of {next(iter(readers))}" if len(readers) == 1 else ""
        if np.prod(self._trace.types[name].shape, dtype=np.int64) == 1:
            return f"It holds a single value, a parameter{where}."
        return f"It is a parameter{where} without channels: sizes, axes, positions or scales."

    def _output_without(self, name: str, index: int) -> Absence | str:
        model, where = self._trace.model, self._label(index)
        node = model.graph.node[index]
        row = find_rule(node, model.opsets.get("" if node.domain == "ai.onnx" else node.domain, 1))
        if row is None:
            reason = f"{where} has no rule for channels."
            return Absence(reason, Pin(name, PinCode.UNKNOWN_OPERATOR, reason))
        if row.family is Family.PINNED:
            # The code is that of what the node reads; where it reads no channels, nothing is held.
            return Absence(f"{where} {row.reason}.", self._first_pin(node.input))
        read = [n for n in node.input if n and not self._trace.is_parameter(n)]
        if any(c.removable for n in read for c in self.cells(n)):
            return Absence(f"The channels that {where} reads end there.")
        # What a layer makes stays where the weights that make it do.
        pin = self._first_pin([*read, *(node.input if name in self._trace.contracted else ())])
        if pin is not None:
            return Absence(pin.reason, pin)
        return next((n for n in read if n not in self._sizes), "") or Absence(f"{where} reads no channels.")

    def _first_pin(self, names: Iterable[str]) -> Pin | None:
        return next((pin for name in names if name for c in self.cells(name) for pin in c.held), None)

    def _label(self, index: int) -> str:
        return node_label(self._trace, index, self._trace.model.graph.node[index])


def analyse_with_reasons(
    model: Model,
    types: Mapping[str, TensorType],
    *,
    ignore: Iterable[str] = (),
    only: Iterable[str] = (),
    allow_inexact: bool = False,
    heads: Heads = "whole",
) -> tuple[ChannelAnalysis, Reasons]:
    """Return what `analyse` returns, and what holds the cells that stay.

    Raises
    ------
    UsageError, ModelError
        As `analyse` does.
    """
    trace = trace_labels(model, types, allow_inexact=allow_inexact, heads=heads)
    apply_patterns(trace, list(ignore), list(only))
    atoms = np.arange(trace.atom_count, dtype=np.int64)
    trace.labels[_ATOMS] = Labels(atoms.shape, (atoms,))
    analysis = resolve(trace)
    del trace.labels[_ATOMS]
    found = analysis.labels[_ATOMS].factors
    units = np.broadcast_to(found[0], atoms.shape) if found else np.full(atoms.shape, FIXED, dtype=np.int64)
    labels = {name: known for name, known in analysis.labels.items() if name != _ATOMS}
    return replace(analysis, labels=labels), Reasons(trace, units)


def _size_tensors(trace: Trace) -> set[str]:
    """Return the tensors that are computed from sizes alone: from Shape, and by integers from those."""
    found = set(trace.sizes)
    for node in trace.model.graph.node:
        inputs = [name for name in node.input if name and not trace.is_parameter(name)]
        if node.op_type == "Shape" or (inputs and found.issuperset(inputs)):
            found.update(o for o in node.output if o in trace.types and trace.types[o].dtype.kind in "iub")
    return found
