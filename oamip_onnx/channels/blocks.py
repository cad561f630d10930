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
        # One row is free, rows of a single unit each go as wholes, and equal rows lose equally many.
        if len(rows) == 1 or rows_are_whole(cells) or key in seen:
            continue
        seen.add(key)
        ties += _place(components, found, rows, grid)
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
    has_fixed = free.size != rows.size
    unequal = len(np.unique((rows == FIXED).sum(axis=1))) > 1
    overlap = len(np.unique(free)) != free.size
    bound = any(int(c) in found for c in free)
    if not (unequal or overlap or bound):
        number = max((place[0] for place in found.values()), default=-1) + 1
        for block, row in enumerate(rows):
            for component in row[row != FIXED]:
                found[int(component)] = (number, block)
        return []
    if unequal or overlap or has_fixed:
        return [_whole_rows(components, components.of_atom[grid.cells], grid.tensor)]
    return [] if _is_nested(found, rows) else [_tie(components, rows[:, :-1], rows[:, 1:])]


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
