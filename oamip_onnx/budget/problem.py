"""What widths are chosen by: budgets, and the problem over the candidates that are left."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from oamip_onnx.formulation.program import FloatArray, IntArray

Pair = tuple[int, int]

# A pair's table that differs from a sum of one value each by less than this, relative to its entries, is that sum.
_SEPARABLE = 1e-13

# Rounding in sums of table entries, relative to their size.
ROUNDING = 1e-11


@dataclass(frozen=True)
class Budget:
    """A cost that the chosen widths must keep within a limit; groups are numbered by their position.

    Attributes
    ----------
    name
        What messages call it, such as ``macs``.
    limit
        Most that may be left, in the unit of the tables.
    constant
        What does not depend on a width.
    unary
        By group, the cost of each of its candidates, shape (candidates,); groups that add nothing may be left out.
    pairwise
        By pair of groups, the cost of each pair of their candidates, shape (candidates of the first, candidates of the
        second).
    shown
        How a message writes a value.
    """

    name: str
    limit: float
    constant: float = 0.0
    unary: Mapping[int, FloatArray] = field(default_factory=dict)
    pairwise: Mapping[Pair, FloatArray] = field(default_factory=dict)
    shown: Callable[[float], str] = "{:.6g}".format

    def cost(self, positions: Sequence[int]) -> float:
        """Return the cost where each group takes the candidate at its position, in the unit of the tables.

        The sum is rounded once, so that integers below 2⁵³ add up exactly and the order of the tables is no matter.
        """
        return math.fsum(
            [
                self.constant,
                *(float(values[positions[g]]) for g, values in self.unary.items()),
                *(float(table[positions[g], positions[h]]) for (g, h), table in self.pairwise.items()),
            ]
        )


@dataclass(frozen=True)
class Tables:
    """A function of the choice: a constant, one value a group, and one a pair g < h that is no sum of such values."""

    constant: float
    unary: tuple[FloatArray, ...]
    pairwise: Mapping[Pair, FloatArray]

    def value(self, positions: Sequence[int]) -> float:
        """Return the value at a choice, as `Budget.cost` but for rounding."""
        value = self.constant + sum(float(u[p]) for u, p in zip(self.unary, positions, strict=True))
        return value + sum(float(table[positions[g], positions[h]]) for (g, h), table in self.pairwise.items())

    def changes(self, positions: Sequence[int]) -> FloatArray:
        """Return how the value changes where one group takes another candidate, shape (candidates of all groups,)."""
        parts = [u - u[p] for u, p in zip(self.unary, positions, strict=True)]
        for (g, h), table in self.pairwise.items():
            own = table[positions[g], positions[h]]
            parts[g] += table[:, positions[h]] - own
            parts[h] += table[positions[g]] - own
        return np.concatenate(parts)

    def double_changes(self, positions: Sequence[int], starts: IntArray) -> FloatArray:
        """Return how the value changes where two groups take other candidates, shape (candidates, candidates)."""
        single = self.changes(positions)
        both = single[:, None] + single
        for (g, h), table in self.pairwise.items():
            own, other = table[positions[g]], table[:, positions[h], None]
            joint = table - own - other + table[positions[g], positions[h]]
            rows, columns = (slice(starts[k], starts[k] + self.unary[k].size) for k in (g, h))
            both[rows, columns] += joint
            both[columns, rows] += joint.T
        return both

    def restricted(self, kept: Sequence[IntArray]) -> "Tables":
        """Return the function of the candidates that are kept."""
        unary = [u[k] for u, k in zip(self.unary, kept, strict=True)]
        return _separated(
            self.constant, unary, {(g, h): t[np.ix_(kept[g], kept[h])] for (g, h), t in self.pairwise.items()}
        )

    def span(self) -> float:
        """Return a bound on how far two values lie apart."""
        return float(sum(np.ptp(table) for table in [*self.unary, *self.pairwise.values()]))


def _separated(constant: float, unary: Iterable[FloatArray], pairwise: Mapping[Pair, FloatArray]) -> Tables:
    """Return a function with zeros in the first row and column of its pair tables, without those that are zero then."""
    own = [np.array(u, np.float64) for u in unary]
    rest = {}
    for (g, h), table in pairwise.items():
        first, second = table[:, 0], table[0] - table[0, 0]
        joint = table - first[:, None] - second
        own[g] += first
        own[h] += second
        if np.abs(joint).max() > _SEPARABLE * np.abs(table).max():
            rest[g, h] = joint
    return Tables(constant, tuple(own), rest)


def _tables(budget: Budget, sizes: Sequence[int]) -> Tables:
    pairwise: dict[Pair, FloatArray] = {}
    for (g, h), table in budget.pairwise.items():
        key, ordered = ((g, h), table) if g < h else ((h, g), table.T)
        pairwise[key] = pairwise[key] + ordered if key in pairwise else np.asarray(ordered, np.float64)
    unary = [budget.unary.get(g, np.zeros(size)) for g, size in enumerate(sizes)]
    return _separated(budget.constant, unary, pairwise)


@dataclass(frozen=True)
class Problem:
    """The least `objective` with every one of `rows` at most 0, over the candidates that are left.

    Choices are positions among these; `kept` has the positions among all candidates, by group. `goal` and `budgets` are
    what objective and rows were made of, for exact values.
    """

    goal: Budget
    budgets: tuple[Budget, ...]
    objective: Tables
    rows: tuple[Tables, ...]
    kept: tuple[IntArray, ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of candidates of each group."""
        return tuple(k.size for k in self.kept)

    @cached_property
    def starts(self) -> IntArray:
        """Where the candidates of each group start in a vector of all of them."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs of groups whose joint choice matters."""
        return tuple(sorted({pair for tables in (self.objective, *self.rows) for pair in tables.pairwise}))

    def original(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Return a choice by its positions among all candidates."""
        return tuple(int(k[p]) for k, p in zip(self.kept, positions, strict=True))

    def value(self, positions: Sequence[int]) -> float:
        """Return the exact objective at a choice."""
        return self.goal.cost(self.original(positions))

    def allowed(self, positions: Sequence[int]) -> bool:
        """Return whether a choice keeps every budget, exactly."""
        chosen = self.original(positions)
        return all(budget.cost(chosen) <= budget.limit for budget in self.budgets)

    def violation(self, positions: Sequence[int]) -> float:
        """Return by how much a choice exceeds the budgets, in the scale of the rows."""
        return sum(max(row.value(positions), 0.0) for row in self.rows)

    def cut(self, positions: Sequence[int]) -> list[float]:
        """Return what a choice says of the Lagrangian's value t: the coefficients of ``t - λ · rows ≤ objective``."""
        return [*(-row.value(positions) for row in self.rows), 1.0, self.objective.value(positions)]

    def priced(self, multipliers: FloatArray) -> Tables:
        """Return the objective with the rows added at a price."""
        parts = [(1.0, self.objective), *zip(multipliers, self.rows, strict=True)]
        unary = tuple(sum((m * t.unary[g] for m, t in parts), np.zeros(n)) for g, n in enumerate(self.sizes))
        pairwise = {
            pair: sum((m * t.pairwise[pair] for m, t in parts if pair in t.pairwise), np.zeros((1, 1)))
            for pair in self.pairs
        }
        return Tables(float(sum(m * t.constant for m, t in parts)), unary, pairwise)

    def restricted(self, kept: Sequence[IntArray]) -> "Problem":
        """Return the problem with the candidates at these positions."""
        return replace(
            self,
            objective=self.objective.restricted(kept),
            rows=tuple(row.restricted(kept) for row in self.rows),
            kept=tuple(own[k] for own, k in zip(self.kept, kept, strict=True)),
        )


def make_problem(sizes: Sequence[int], goal: Budget, budgets: Sequence[Budget]) -> Problem:
    """Return the problem of the least `goal` within the budgets that have a finite limit, over all candidates."""
    rows = []
    finite = [budget for budget in budgets if math.isfinite(budget.limit)]
    for budget in finite:
        tables = _tables(budget, sizes)
        # Any scale will do for the relaxation; the engine's rows get their own.
        scale = tables.span() or 1.0
        unary = tuple(u / scale for u in tables.unary)
        pairwise = {pair: table / scale for pair, table in tables.pairwise.items()}
        rows.append(Tables((tables.constant - budget.limit) / scale, unary, pairwise))
    kept = tuple(np.arange(size, dtype=np.int64) for size in sizes)
    return Problem(goal, tuple(finite), _tables(goal, sizes), tuple(rows), kept)
