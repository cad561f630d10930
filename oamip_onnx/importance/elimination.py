"""Backward elimination of a group's units, each time those whose readers are best refit without them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from oamip_onnx.channels import BoolArray, ChannelGroup
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.importance.surgeon import LayerState

# Of the units that still have to go, one part in so many goes before costs are computed anew.
_STEPS = 64

# Exchanges a group at most, the units that one round tries, and by how much each must lower the relative error.
_EXCHANGES, _TRIED = 64, 6
_LEAST_IMPROVEMENT = 1e-6

# Features of all readers of a group above which exchanges would take longer than they are worth.
_LARGEST_EXCHANGED = 3000


class Elimination:
    """Backward elimination of one group's units, and exchanges after it.

    Parameters
    ----------
    group
        The group.
    states
        The layers that read it; they are left without the units that go.
    """

    def __init__(self, group: ChannelGroup, states: Sequence[LayerState]) -> None:
        self._group = group
        self._states = states
        self._first = group.first_unit

    def ranking(self, width: int) -> FloatArray:
        """Return the scores of the group's units, shape (width of the group,)."""
        group, order = self._group, list[int]()
        there = np.ones(group.width, dtype=np.bool_)
        for gone, _ in self._narrow(there, width, lambda left: left // _STEPS):
            order += gone
        if width:
            self._exchange(there, order)
        values = np.zeros(group.width)
        values[order] = np.arange(len(order)) / (2 * group.width)
        stay = np.flatnonzero(there).tolist()
        if stay:
            costs = self._sum(stay, LayerState.costs)
            values[stay] = 0.5 + 0.5 * costs / max(float(costs.max()), np.finfo(np.float64).tiny)
        return values

    def walk(self, widths: Sequence[int]) -> Iterator[tuple[int, BoolArray, float]]:
        """Yield the widths, widest first, with the group's units that are left and the relative error so far.

        Parameters
        ----------
        widths
            The widths, descending, each with equally many units of every block.
        """
        there = np.ones(self._group.width, dtype=np.bool_)
        error = 0.0
        for width in widths:
            # Steps as towards nothing, whatever the next width is: later ones have to find a good order too.
            for _, rise in self._narrow(there, width, lambda left: min(left, self._group.width // _STEPS)):
                error += rise
            yield width, there.copy(), error

    def _narrow(self, there: BoolArray, width: int, step: Callable[[int], int]) -> Iterator[tuple[list[int], float]]:
        """Yield units that go until the width is reached, the cheapest first, with the rise of the error.

        `there` follows; `step` says how many may go at a time, at least one, of how many still have to.
        """
        quota = width // self._group.block_count
        while (left := int(there.sum()) - width) > 0:
            gone = self._next(there, quota, max(step(left), 1))
            there[gone] = False
            yield gone, self._remove(gone)

    def _next(self, there: BoolArray, quota: int, count: int) -> list[int]:
        """Return the units that go next, the cheapest ones."""
        units = self._removable(there, quota)
        costs = self._sum(units, LayerState.costs)
        return list(self._cheapest(units, costs, count, there, quota))

    def _removable(self, there: BoolArray, quota: int) -> list[int]:
        """Return the units of blocks that have more than their share."""
        found = [members[there[members]] for members in self._group.members()]
        return [int(u) for units in found if len(units) > quota for u in units]

    def _cheapest(
        self, units: Sequence[int], costs: FloatArray, count: int, there: BoolArray, quota: int
    ) -> Iterator[int]:
        """Yield the cheapest units, no more of a block than may go."""
        room = {block: int(there[members].sum()) - quota for block, members in enumerate(self._group.members())}
        for position in np.argsort(costs, kind="stable").tolist():
            block = 0 if self._group.blocks is None else int(self._group.blocks[units[position]])
            if room[block] > 0:
                room[block] -= 1
                count -= 1
                yield units[position]
            if not count:
                return

    def _exchange(self, there: BoolArray, order: list[int]) -> None:
        """Exchange units that went for units that stay while the error falls; `there` and `order` follow."""
        if not self._states or sum(len(state.weights) for state in self._states) > _LARGEST_EXCHANGED:
            return
        for _ in range(_EXCHANGES):
            gains = self._sum(order, LayerState.gains)
            tried = [order[p] for p in np.argsort(-gains, kind="stable")[:_TRIED]]
            best, pair = _LEAST_IMPROVEMENT, (-1, -1)
            for back, gain in zip(tried, np.sort(-gains)[:_TRIED], strict=True):
                change = self._after(back, there, -float(gain))
                if change[0] > best:
                    best, pair = change[0], (back, change[1])
            if pair[0] < 0:
                return
            back, away = pair
            self._restore(back)
            self._remove([away])
            there[back], there[away] = True, False
            order[order.index(back)] = away

    def _after(self, back: int, there: BoolArray, gain: float) -> tuple[float, int]:
        """Return by how much the error falls when a unit comes back and the best other goes, and which that is."""
        blocks = self._group.blocks
        others = there if blocks is None else there & (blocks == blocks[back])
        units = np.flatnonzero(others).tolist()
        kept = [state.copy() for state in self._states]
        for state in kept:
            state.restore(self._first + back)
        numbers = [self._first + u for u in units]
        costs = np.sum([state.by_size(LayerState.costs, numbers) for state in kept], axis=0)
        position = int(np.argmin(costs))
        return gain - float(costs[position]), units[position]

    def _sum(self, units: Sequence[int], of: Callable[[LayerState, list[int]], FloatArray]) -> FloatArray:
        total = np.zeros(len(units))
        for state in self._states:
            total += state.by_size(of, [self._first + u for u in units])
        return total

    def _remove(self, units: Sequence[int]) -> float:
        return sum(state.remove([self._first + unit for unit in units]) for state in self._states)

    def _restore(self, unit: int) -> None:
        for state in self._states:
            state.restore(self._first + unit)
