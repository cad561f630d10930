"""From a finished trace to units and groups."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from oamip_onnx.channels.groups import ChannelAnalysis, ChannelGroup, Contraction, Pin, PinCode
from oamip_onnx.channels.labels import FIXED, BoolArray, IntArray, Labels, collapse, merge_factors
from oamip_onnx.channels.trace import Trace

UintArray = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]


class _Components:
    """Atoms tied by joins; each component with the pins that hold it, if any."""

    def __init__(self, trace: Trace) -> None:
        count = max(trace.atom_count, 1)
        edges = np.concatenate(trace.joins, axis=1) if trace.joins else np.zeros((2, 0), dtype=np.int64)
        matrix = coo_array((np.ones(edges.shape[1], dtype=np.int8), (edges[0], edges[1])), shape=(count, count))
        self.count, found = connected_components(matrix, directed=False)
        # FIXED is -1, the last entry of the lookup.
        self.of_atom: IntArray = np.append(found.astype(np.int64), FIXED)
        self.first_atom: IntArray = np.full(self.count, np.iinfo(np.int64).max)
        np.minimum.at(self.first_atom, found, np.arange(count))
        self.pins: dict[int, Pin] = {}
        for atoms, pin in trace.pins:
            self.pin(np.unique(self.of_atom[atoms]), pin)

    def pin(self, components: IntArray, pin: Pin) -> None:
        """Hold components; the first reason given stays."""
        for component in components[components != FIXED]:
            self.pins.setdefault(int(component), pin)

    def pinned(self) -> BoolArray:
        """Return whether each component is held."""
        result = np.zeros(self.count, dtype=np.bool_)
        result[list(self.pins)] = True
        return result


def resolve(trace: Trace) -> ChannelAnalysis:
    """Return groups, pins, unit labels and contractions of a finished trace."""
    components = _Components(trace)
    blocks, ties = _blocks(trace, components)
    while ties:
        # Each tie leaves fewer components, so that this ends.
        trace.joins.extend(ties)
        components = _Components(trace)
        blocks, ties = _blocks(trace, components)
    labels = {
        name: merge_factors(found.shape, (collapse(components.of_atom[f]) for f in found.factors))
        for name, found in trace.labels.items()
    }
    _pin_split_groups(components, labels, blocks)
    members = _members(trace, components, labels)
    unit_of = np.full(components.count + 1, FIXED, dtype=np.int64)
    groups: list[ChannelGroup] = []
    total = 0
    for found in members:
        unit_of[found] = np.arange(total, total + len(found))
        block = _block_numbers(blocks, found)
        minimum = 1 if block is None else int(block.max()) + 1
        groups.append(ChannelGroup("", (), total, len(found), block, minimum_width=minimum))
        total += len(found)
    unit_labels = {
        name: merge_factors(found.shape, (collapse(unit_of[f]) for f in found.factors))
        for name, found in labels.items()
    }
    contractions = tuple(_with_units(c, components, unit_of) for c in trace.contractions)
    named = _name_groups(trace, groups, unit_labels)
    ends = tuple(c for c in contractions if bool((c.units != FIXED).any()))
    return ChannelAnalysis(named, _report_pins(trace, components, labels), unit_labels, ends, trace.types)


def _with_units(contraction: Contraction, components: _Components, unit_of: IntArray) -> Contraction:
    units = unit_of[components.of_atom[contraction.units]]
    return Contraction(contraction.node, contraction.operand, contraction.tensor, units, contraction.weight)


def _blocks(trace: Trace, components: _Components) -> tuple[dict[int, tuple[int, int]], list[IntArray]]:
    """Return (grid number, block number) of each component that a grid binds, and ties; pin those of impossible grids.

    A second grid across a first one (a channel shuffle: blocks × positions, transposed) keeps equal counts both ways
    if whole rows of the second go: those are the ties, to be joined before the grids are looked at again.
    """
    found: dict[int, tuple[int, int]] = {}
    ties: list[IntArray] = []
    seen: dict[bytes, int] = {}
    for grid in trace.grids:
        cells = np.sort(components.of_atom[grid.cells], axis=1)
        pin = Pin(grid.tensor, PinCode.CONFLICTING_GRID, f"The split of {grid.tensor!r} needs blocks of equal width.")
        if cells.shape[0] == 1 or bool((cells[:, :1] == cells).all()):
            continue  # one row is free; rows of a single unit each go as wholes
        rows = np.unique(cells, axis=0)
        key = rows.tobytes()
        if key in seen:
            continue
        number = seen.setdefault(key, len(seen))
        free = rows[rows != FIXED]
        unequal = len(np.unique((rows == FIXED).sum(axis=1))) > 1
        if len(rows) == 1 and not unequal and len(np.unique(free)) == free.size:
            continue  # the same units in every row
        overlap = len(np.unique(free)) != free.size
        bound = any(int(c) in found for c in free)
        if bound and not unequal and not overlap and free.size == rows.size:
            ties.append(components.first_atom[np.stack([rows[:, :-1].ravel(), rows[:, 1:].ravel()])])
            continue
        if unequal or overlap or bound:
            components.pin(np.unique(free), pin)
            continue
        for block, row in enumerate(rows):
            for component in row[row != FIXED]:
                found[int(component)] = (number, block)
    return found, ties


def _pin_split_groups(components: _Components, labels: dict[str, Labels], blocks: dict[int, tuple[int, int]]) -> None:
    """Pin grids whose units do not form one group: equal counts across groups are not expressed."""
    while True:
        group_of = _signatures(components, labels)
        by_grid: dict[int, list[int]] = {}
        for component, (grid, _) in blocks.items():
            by_grid.setdefault(grid, []).append(component)
        changed = False
        for found in by_grid.values():
            held = [c for c in found if c in components.pins]
            if len(held) == len(found):
                continue
            signatures = {int(group_of[c]) for c in found}
            whole = len(signatures) == 1 and int((group_of == group_of[found[0]]).sum()) == len(found)
            if held or not whole:
                reason = "Channels of several groups share blocks that need equal widths."
                components.pin(np.array(found), Pin("", PinCode.CONFLICTING_GRID, reason))
                changed = True
        if not changed:
            return


def _block_numbers(blocks: dict[int, tuple[int, int]], members: IntArray) -> IntArray | None:
    if int(members[0]) not in blocks:
        return None
    numbers = np.array([blocks[int(m)][1] for m in members], dtype=np.int64)
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def _signatures(components: _Components, labels: dict[str, Labels]) -> UintArray:
    """Return a number per component that is equal for components on the same set of axes."""
    generator = np.random.default_rng(0)
    signature = np.zeros(components.count, dtype=np.uint64)
    for name in sorted(labels):
        for factor in labels[name].factors:
            number = generator.integers(1, 2**63, dtype=np.uint64)
            present = np.unique(factor)
            signature[present[present != FIXED]] ^= number
    return signature


def _members(trace: Trace, components: _Components, labels: dict[str, Labels]) -> list[IntArray]:
    """Return the components of each group that has something to remove, in the order in which channels appear."""
    signature = _signatures(components, labels)
    pinned = components.pinned()
    produced: dict[int, None] = {}
    for name in trace.contracted:
        for factor in labels[name].factors:
            for component in np.unique(factor):
                if component != FIXED and not pinned[component]:
                    produced.setdefault(int(signature[component]), None)
    groups = []
    for number in produced:
        found = np.flatnonzero((signature == np.uint64(number)) & ~pinned)
        found = found[np.argsort(components.first_atom[found], kind="stable")]
        if len(found) > 1:
            groups.append(found.astype(np.int64))
        else:
            reason = "Only one unit lives here; removing it would remove the layer."
            components.pin(found, Pin("", PinCode.TOO_NARROW, reason))
    return groups


def _name_groups(trace: Trace, groups: list[ChannelGroup], labels: dict[str, Labels]) -> tuple[ChannelGroup, ...]:
    """Return the groups with the tensors that contractions produce on them."""
    owner = np.repeat(np.arange(len(groups)), [g.width for g in groups])
    tensors: list[list[str]] = [[] for _ in groups]
    for name in trace.contracted:
        for factor in labels[name].factors:
            for group in np.unique(owner[factor[factor != FIXED]]):
                if name not in tensors[int(group)]:
                    tensors[int(group)].append(name)
    return tuple(
        ChannelGroup(names[0], tuple(names), g.first_unit, g.width, g.blocks, g.exact, g.minimum_width)
        for g, names in zip(groups, tensors, strict=True)
    )


def _report_pins(trace: Trace, components: _Components, labels: dict[str, Labels]) -> tuple[Pin, ...]:
    """Return one pin per contraction output of which channels must stay."""
    pins = []
    for name in trace.contracted:
        held = [
            components.pins[int(c)] for f in labels[name].factors for c in np.unique(f) if int(c) in components.pins
        ]
        if held:
            pins.append(Pin(name, held[0].code, held[0].reason))
    return tuple(pins)
