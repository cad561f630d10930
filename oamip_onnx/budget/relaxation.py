"""The Lagrangian relaxation of a choice of widths: dynamic programming at a price of the budgets, and the best prices.

With the budgets at a price, what is left is a sum over groups and pairs, and dynamic programming over the graph of
pairs finds its minimum, also with any one candidate or pair of candidates held (bucket elimination, Dechter 1999).
Kelley's cutting planes (1960) find the prices.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linprog

from oamip_onnx.budget.problem import ROUNDING, Pair, Problem, Tables
from oamip_onnx.formulation.program import FloatArray

# Entries of the largest table of the dynamic program, 2 MiB, or, where that is not enough for all pairs, of those that
# a part of the pairs may make: larger ones raise the bound by less than the time is worth.
LARGEST_TABLE = 1 << 18
_PART_TABLE = 1 << 12

# Kelley's method ends after a dozen rounds with one budget, and has the bound to many digits after these with three.
_DUAL_ROUNDS = 120
_DUAL_TOLERANCE = 1e-10

# Slack of the least cost of a budget below its limit, relative to the span of the cost, that multipliers allow for.
_SMALLEST_SLACK = 1e-6

# Rounds of dividing the tables of pairs that the dynamic program leaves out between their groups.
_DIVISIONS = 3


@dataclass(frozen=True)
class Minimum:
    """The least value of a function of the choice.

    Attributes
    ----------
    bound
        The least value, or a bound on it where pairs are left out.
    positions
        Where it is taken.
    excess, pair_excess
        How much larger it is at least with each candidate, or pair of candidates, held; by group and by pair.
    """

    bound: float
    positions: list[int]
    excess: list[FloatArray]
    pair_excess: dict[Pair, FloatArray]


class _Elimination:
    """Dynamic programming over the graph of pairs: groups are eliminated one by one, the cheapest next.

    Parameters
    ----------
    sizes
        Number of candidates of each group.
    pairs
        The pairs whose tables count.
    """

    def __init__(self, sizes: Sequence[int], pairs: Iterable[Pair]) -> None:
        self.pairs = frozenset(pairs)
        near: dict[int, set[int]] = {g: set() for g in range(len(sizes))}
        for g, h in self.pairs:
            near[g].add(h)
            near[h].add(g)
        found: list[tuple[int, set[int]]] = []
        self.largest = 1
        while near:
            entries = {g: sizes[g] * math.prod(sizes[h] for h in others) for g, others in near.items()}
            g = min(entries, key=lambda k: (entries[k], k))
            others = near.pop(g)
            self.largest = max(self.largest, entries[g])
            for h in others:
                near[h] = (near[h] | others) - {g, h}
            found.append((g, others))
        place = {g: i for i, (g, _) in enumerate(found)}
        # The axes of each table: the group and its neighbours in the order in which they are eliminated.
        self.axes = [(g, *sorted(others, key=lambda h: place[h])) for g, others in found]
        self.parents = [place[axes[1]] if len(axes) > 1 else None for axes in self.axes]

    def minimum(self, tables: Tables) -> Minimum:
        """Return the minimum of a function with these pairs."""
        own = [self._table(axes, tables) for axes in self.axes]
        messages = []
        bound = tables.constant
        for i, (axes, parent) in enumerate(zip(self.axes, self.parents, strict=True)):
            message = own[i].min(axis=0)
            messages.append(message)
            if parent is None:
                bound += float(message)
            else:
                own[parent] += _placed(message, axes[1:], self.axes[parent])
        return self._read(own, messages, bound)

    def _table(self, axes: tuple[int, ...], tables: Tables) -> FloatArray:
        """Return what a group adds itself: its values, and its pairs with groups that are eliminated later."""
        first = axes[0]
        table = np.zeros([tables.unary[g].size for g in axes]) + _placed(tables.unary[first], (first,), axes)
        for h in axes[1:]:
            pair = (min(first, h), max(first, h))
            if pair in self.pairs and pair in tables.pairwise:
                table += _placed(tables.pairwise[pair].T if first > h else tables.pairwise[pair], (first, h), axes)
        return table

    def _read(self, own: list[FloatArray], messages: list[FloatArray], bound: float) -> Minimum:
        """Return the minimum from the tables with all messages: backwards, so that each sees the whole function."""
        positions = [0] * len(own)
        excess: list[FloatArray] = [np.zeros(0)] * len(own)
        pair_excess: dict[Pair, FloatArray] = {}
        for i in reversed(range(len(own))):
            axes, parent = self.axes[i], self.parents[i]
            chosen: tuple[slice | int, ...] = (slice(None), *(positions[g] for g in axes[1:]))
            positions[axes[0]] = int(own[i][chosen].argmin())
            if parent is not None:
                own[i] = own[i] + (_least(own[parent], self.axes[parent], axes[1:]) - messages[i])
            own[i] = own[i] - own[i].min()
            excess[axes[0]] = _least(own[i], axes, axes[:1])
            for h in axes[1:]:
                pair = (min(axes[0], h), max(axes[0], h))
                if pair in self.pairs:
                    least = _least(own[i], axes, pair)
                    pair_excess[pair] = least.T if axes[0] > h else least
        return Minimum(bound, positions, excess, pair_excess)


def _placed(table: FloatArray, axes: Sequence[int], among: Sequence[int]) -> FloatArray:
    """Return a table with an axis of length 1 for each group that it does not depend on."""
    return table[tuple(slice(None) if g in axes else None for g in among)]


def _least(table: FloatArray, axes: Sequence[int], left: Sequence[int]) -> FloatArray:
    """Return the least entries over all axes but some."""
    return np.asarray(table.min(axis=tuple(k for k, g in enumerate(axes) if g not in left)), np.float64)


class _Relaxation:
    """The minimum over all choices with the budgets at a price.

    Where the graph of pairs is too dense for the dynamic program, weak pairs are left out of it, and their tables
    replaced by one value a group whose sum is nowhere above the table,

        a(w) = ½ (min_v [table(w, v) + q(v)] - p(w)),   b(v) = ½ (min_w [table(w, v) + p(w)] - q(v)),

    for any p and q; shares of the minima with a candidate held raise the bound (Globerson and Jaakkola 2007).
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.elimination = _Elimination(problem.sizes, problem.pairs)
        self.left_out: tuple[Pair, ...] = ()
        if self.elimination.largest > LARGEST_TABLE:
            self.elimination = self._part()
            self.left_out = tuple(pair for pair in problem.pairs if pair not in self.elimination.pairs)
        self.shares = {pair: tuple(np.zeros(problem.sizes[g]) for g in pair) for pair in self.left_out}

    def _part(self) -> _Elimination:
        """Return the elimination with as many of the strongest pairs as its tables have room for."""
        rows, sizes = self.problem.rows, self.problem.sizes
        strength = {
            pair: sum(float(np.ptp(row.pairwise[pair])) for row in rows if pair in row.pairwise)
            for pair in self.problem.pairs
        }
        chosen = _Elimination(sizes, ())
        most = max(_PART_TABLE, *(sizes[g] * sizes[h] for g, h in strength))
        for pair in sorted(self.problem.pairs, key=lambda p: -strength[p]):
            wider = _Elimination(sizes, [*chosen.pairs, pair])
            chosen = wider if wider.largest <= most else chosen
        return chosen

    def minimum(self, tables: Tables) -> Minimum:
        """Return the minimum of a function with the pairs of the problem."""
        best = self._divided(tables)
        for _ in range(_DIVISIONS if self.left_out else 0):
            found = self._divided(tables)
            best = found if found.bound > best.bound else best
        return best

    def _divided(self, tables: Tables) -> Minimum:
        """Return the minimum with the pairs left out divided by the shares, and set the shares by what it shows."""
        unary = [u.copy() for u in tables.unary]
        parts, count = {}, np.zeros(len(unary))
        for pair in self.left_out:
            if pair not in tables.pairwise:
                continue
            table, (p, q) = tables.pairwise[pair], self.shares[pair]
            a = ((table + q).min(axis=1) - p) / 2
            b = ((table + p[:, None]).min(axis=0) - q) / 2
            parts[pair] = (a, b)
            for g, part in zip(pair, (a, b), strict=True):
                unary[g] += part
                count[g] += 1
        found = self.elimination.minimum(replace(tables, unary=tuple(unary)))
        for pair, both in parts.items():
            self.shares[pair] = tuple((found.excess[g] - part) / count[g] for g, part in zip(pair, both, strict=True))
            found.pair_excess[pair] = tables.pairwise[pair] - both[0][:, None] - both[1]
        return found


def relax(problem: Problem) -> tuple[Minimum, list[list[int]]]:
    """Return the minimum at the best multipliers found, and all choices met on the way."""
    relaxation = _Relaxation(problem)
    best = relaxation.minimum(problem.priced(np.zeros(len(problem.rows))))
    met = [best.positions]
    span = problem.objective.span()
    most = []
    for row in problem.rows:
        cheapest = relaxation.minimum(row)
        if cheapest.bound > ROUNDING:
            return best, met  # out of reach, so that no multiplier is the last
        met.append(cheapest.positions)
        most.append(span / max(-cheapest.bound, _SMALLEST_SLACK))
    if not most:
        return best, met
    # Each choice met is an upper bound that is linear in the multipliers: t ≤ objective + Σ multiplier · row.
    cuts = [problem.cut(positions) for positions in met]
    limits = [*((0.0, m) for m in most), (None, None)]
    for _ in range(_DUAL_ROUNDS):
        upper = np.array(cuts)
        master = linprog([*np.zeros(len(most)), -1.0], A_ub=upper[:, :-1], b_ub=upper[:, -1], bounds=limits)
        if master.x is None or master.x[-1] - best.bound <= _DUAL_TOLERANCE * max(span, abs(best.bound)):
            break
        found = relaxation.minimum(problem.priced(np.asarray(master.x[:-1], np.float64)))
        best = found if found.bound > best.bound else best
        met.append(found.positions)
        cuts.append(problem.cut(found.positions))
    return best, met
