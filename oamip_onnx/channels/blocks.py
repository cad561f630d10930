"""Grids: cells of which every row must keep equally many, turned into blocks of a group, or into ties."""

from collections import Counter

import numpy as np

from oamip_onnx.channels.components import Components
from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import FIXED, IntArray
from oamip_onnx.channels.trace import Grid, Trace


def find_blocks(trace: Trace, components: Components) -> tuple[dict[int, tuple[int, int]], list[IntArray]]:
    """Return (grid number, block number) of each component that a grid binds, and ties.

    1. A grid whose rows are units of their own each asks for equally many kept cells in every row.
    2. Where that cannot be expressed (rows of different length, cells in several rows, a second grid across the first,
       as in a channel shuffle) cells are tied, and the grids are looked at again: across a first grid, whole columns of
       the second; otherwise whole rows.
    3. The two sides of a grouped convolution go by whole blocks together, if one of them does.
    """
    found: dict[int, tuple[int, int]] = {}
    ties: list[IntArray] = []
    seen: set[tuple[int, bytes]] = set()
    for grid in trace.grids:
        cells = np.sort(components.of_atom[grid.cells], axis=1)
        rows = np.unique(cells, axis=0)
        key = (rows.shape[1], rows.tobytes())
        # Equal rows lose equally many.
        if len(rows) == 1 or key in seen:
            continue
        seen.add(key)
        if not rows_are_whole(cells):
            ties += _place(components, found, rows, grid)
        elif grid.rigid:
            _pin_rows(components, rows, grid.tensor)  # otherwise rows of a single unit each go as wholes
    for blocks in trace.blocks:
        sides = [components.of_atom[side] for side in (blocks.entering, blocks.leaving)]
        if any(rows_are_whole(side) for side in sides):
            ties.append(_whole_rows(components, np.concatenate(sides, axis=1), blocks.tensor))
    ties = [tie for tie in ties if tie.size]
    if not ties:
        _pin_uneven_blocks(components, found)
    return found, ties


def _place(components: Components, found: dict[int, tuple[int, int]], rows: IntArray, grid: Grid) -> list[IntArray]:
    """Enter one grid into the blocks found so far, or return the ties that take its place."""
    free = rows[rows != FIXED]
    unequal = len(np.unique((rows == FIXED).sum(axis=1))) > 1
    parts = None if unequal else _by_multiplicity(rows)
    if parts is None:
        if grid.rigid:
            _pin_rows(components, rows, grid.tensor)
            return []
        return [_whole_rows(components, components.of_atom[grid.cells], grid.tensor)]
    ties = []
    for part in parts:
        if not any(int(c) in found for c in part.ravel()):
            number = max((place[0] for place in found.values()), default=-1) + 1
            for block, row in enumerate(part):
                found.update({int(component): (number, block) for component in row})
        elif not _is_nested(found, part):
            if grid.rigid or free.size != rows.size:
                _pin_rows(components, part, grid.tensor)
            else:
                ties.append(_tie(components, part[:, :-1], part[:, 1:]))
    return ties


def _by_multiplicity(rows: IntArray) -> list[IntArray] | None:
    """Return grids without repeated cells that together ask for what the rows ask for; None where there are none.

    Within a row a unit may hold several cells (queries and keys that go together): units with equally many cells make
    a grid of their own. No unit may lie in two rows, and each row must have the same number of units of every kind.
    """
    counted = [np.unique(row[row != FIXED], return_counts=True) for row in rows]
    everything = np.concatenate([units for units, _ in counted])
    if len(np.unique(everything)) != everything.size:
        return None
    parts = []
    for count in np.unique(np.concatenate([counts for _, counts in counted])):
        members = [units[counts == count] for units, counts in counted]
        if len({len(m) for m in members}) > 1:
            return None
        parts.append(np.stack(members))
    return parts


def _pin_rows(components: Components, rows: IntArray, tensor: str) -> None:
    reason = f"The rows of the split of {tensor!r} stay, and its cells cannot go equally from every row."
    components.pin(np.unique(rows), Pin(tensor, PinCode.CONFLICTING_GRID, reason))


def rows_are_whole(cells: IntArray) -> bool:
    """Return whether every row is a single unit."""
    return bool((cells[:, :1] == cells).all())


def _tie(components: Components, left: IntArray, right: IntArray) -> IntArray:
    """Return joins between components that differ, as pairs of atoms."""
    differ = (left != right).ravel()
    pairs = np.stack([left.ravel()[differ], right.ravel()[differ]])
    return np.asarray(components.first_atom[pairs], dtype=np.int64)


def _whole_rows(components: Components, cells: IntArray, tensor: str) -> IntArray:
    """Return joins that make every row a single unit; rows with fixed cells are pinned."""
    fixed = (cells == FIXED).any(axis=1)
    reason = f"The split of {tensor!r} needs blocks of equal width, and some of their channels cannot be removed."
    components.pin(np.unique(cells[fixed]), Pin(tensor, PinCode.CONFLICTING_GRID, reason))
    rows = cells[~fixed]
    return _tie(components, rows[:, :-1], rows[:, 1:])


def _is_nested(found: dict[int, tuple[int, int]], rows: IntArray) -> bool:
    """Return whether equal counts in the rows follow from the blocks of one grid found before.

    They do if every row consists of whole blocks. Where the rows are parts of those blocks, the blocks are refined.
    """
    known = [[found.get(int(c)) for c in row] for row in rows]
    grids = {place[0] for row in known for place in row if place is not None}
    if len(grids) != 1 or any(place is None for row in known for place in row):
        return False
    (number,) = grids
    sizes = Counter(block for grid, block in found.values() if grid == number)
    by_row = [Counter(place[1] for place in row if place is not None) for row in known]
    if all(count == sizes[block] for row in by_row for block, count in row.items()):
        return True
    touched = {block for row in by_row for block in row}
    if rows.size == sum(sizes[block] for block in touched) and all(len(row) == 1 for row in by_row):
        first = max(sizes) + 1
        for block, row in enumerate(rows):
            for component in row:
                found[int(component)] = (number, first + block)
        return True
    return False


def _pin_uneven_blocks(components: Components, found: dict[int, tuple[int, int]]) -> None:
    """Pin grids of which some blocks were refined and others were not."""
    sizes = Counter(found.values())
    for number in {grid for grid, _ in sizes}:
        if len({size for (grid, _), size in sizes.items() if grid == number}) > 1:
            members = np.array([c for c, (grid, _) in found.items() if grid == number])
            reason = "These channels are split into blocks of different width that need equal shares."
            components.pin(members, Pin("", PinCode.CONFLICTING_GRID, reason))
