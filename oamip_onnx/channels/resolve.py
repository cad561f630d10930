"""From a finished trace to units and groups."""

from collections import Counter
from dataclasses import replace

import numpy as np

from oamip_onnx.channels.blocks import find_blocks
from oamip_onnx.channels.branches import Branches
from oamip_onnx.channels.components import Components
from oamip_onnx.channels.groups import ChannelAnalysis, ChannelGroup, Contraction, Normalisation, Pin, PinCode
from oamip_onnx.channels.labels import FIXED, IntArray, Labels, collapse, merge_factors
from oamip_onnx.channels.trace import Trace

UintArray = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]


def resolve(trace: Trace) -> ChannelAnalysis:
    """Return groups, pins, unit labels and contractions of a finished trace."""
    components = Components(trace)
    blocks, ties = find_blocks(trace, components)
    while ties:
        # Each tie leaves fewer components, so that this ends.
        trace.joins.extend(ties)
        components = Components(trace)
        blocks, ties = find_blocks(trace, components)
    labels = {
        name: merge_factors(found.shape, (collapse(components.of_atom[f]) for f in found.factors))
        for name, found in trace.labels.items()
    }
    signatures = _pin_split_groups(components, labels, blocks)
    members = _members(trace, components, labels, signatures)
    inexact = {int(c) for n in trace.normalisations for c in np.unique(components.of_atom[n.units])}
    unit_of = np.full(components.count + 1, FIXED, dtype=np.int64)
    groups: list[ChannelGroup] = []
    total = 0
    for found in members:
        unit_of[found] = np.arange(total, total + len(found))
        block = _block_numbers(blocks, found)
        minimum = 1 if block is None else int(block.max()) + 1
        exact = inexact.isdisjoint(found.tolist())
        groups.append(ChannelGroup("", (), total, len(found), block, exact, minimum))
        total += len(found)
    unit_labels = {
        name: merge_factors(found.shape, (collapse(unit_of[f]) for f in found.factors))
        for name, found in labels.items()
    }
    contractions = tuple(_with_units(c, components, unit_of) for c in trace.contractions)
    branches = Branches(trace, contractions, unit_labels, groups)
    named = tuple(
        replace(group, minimum_width=0) if branches.may_vanish(number) else group
        for number, group in enumerate(_name_groups(trace, groups, unit_labels))
    )
    ends = tuple(c for c in contractions if bool((c.units != FIXED).any()))
    normalisations = (Normalisation(n.node, unit_of[components.of_atom[n.units]], n.axes) for n in trace.normalisations)
    return ChannelAnalysis(
        named,
        _report_pins(trace, components, labels),
        unit_labels,
        ends,
        trace.types,
        tuple(n for n in normalisations if bool((n.units != FIXED).any())),
        tuple(trace.targets),
    )


def _with_units(contraction: Contraction, components: Components, unit_of: IntArray) -> Contraction:
    units = unit_of[components.of_atom[contraction.units]]
    return Contraction(contraction.node, contraction.operand, contraction.tensor, units, contraction.weight)


def _pin_split_groups(
    components: Components, labels: dict[str, Labels], blocks: dict[int, tuple[int, int]]
) -> UintArray:
    """Pin grids that some of a group's units lie outside of; return the signatures with the groups of a grid merged.

    Queries, keys and values from one matrix lie on different axes and still need blocks of equal width: they are one
    group.
    """
    by_grid: dict[int, list[int]] = {}
    for component, (grid, _) in blocks.items():
        by_grid.setdefault(grid, []).append(component)
    while True:
        signatures = _signatures(components, labels)
        changed = False
        for found in by_grid.values():
            held = [c for c in found if c in components.pins]
            if len(held) == len(found):
                continue
            own = np.isin(signatures, signatures[found])
            own[list(components.pins)] = False
            if held or int(own.sum()) != len(found):
                reason = "Some of these channels share blocks of equal width with channels that stay."
                components.pin(np.array(found), Pin("", PinCode.CONFLICTING_GRID, reason))
                changed = True
            else:
                signatures[found] = signatures[found[0]]
        if not changed:
            return signatures


def _block_numbers(blocks: dict[int, tuple[int, int]], members: IntArray) -> IntArray | None:
    if int(members[0]) not in blocks:
        return None
    numbers = np.array([blocks[int(m)][1] for m in members], dtype=np.int64)
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def _signatures(components: Components, labels: dict[str, Labels]) -> UintArray:
    """Return a number per component that is equal for components on the same set of axes."""
    generator = np.random.default_rng(0)
    signature = np.zeros(components.count, dtype=np.uint64)
    for name in sorted(labels):
        for factor in labels[name].factors:
            number = generator.integers(1, 2**63, dtype=np.uint64)
            present = np.unique(factor)
            signature[present[present != FIXED]] ^= number
    return signature


def _members(trace: Trace, components: Components, labels: dict[str, Labels], signature: UintArray) -> list[IntArray]:
    """Return the components of each group that has something to remove, in the order in which channels appear."""
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
        ChannelGroup(name, tuple(names), g.first_unit, g.width, g.blocks, g.exact, g.minimum_width)
        for g, name, names in zip(groups, _distinct([names[0] for names in tensors]), tensors, strict=True)
    )


def _distinct(names: list[str]) -> list[str]:
    """Return the names, numbered from 1 where several are the same."""
    counts, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if counts[name] == 1 else f"{name}#{seen[name]}")
    return found


def _report_pins(trace: Trace, components: Components, labels: dict[str, Labels]) -> tuple[Pin, ...]:
    """Return one pin per contraction output of which channels must stay."""
    pins = []
    for name in trace.contracted:
        held = [
            components.pins[int(c)] for f in labels[name].factors for c in np.unique(f) if int(c) in components.pins
        ]
        if held:
            pins.append(Pin(name, held[0].code, held[0].reason))
    return (*pins, *trace.unseen)
