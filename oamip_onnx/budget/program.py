"""One width for each group, with the least damage within every budget: a multiple-choice program.

With x[g, w] = 1 where group g takes its candidate w, and y[gh, w, v] = 1 where g takes w and h takes v,

    min   Σ damage[g, w] x[g, w]
    s.t.  Σ_w x[g, w] = 1,   Σ_v y[gh, w, v] = x[g, w],   Σ_w y[gh, w, v] = x[h, v],
          constant[b] + Σ unary[b, g, w] x[g, w] + Σ pairwise[b, gh, w, v] y[gh, w, v] ≤ limit[b]  for every budget b.

This is the multiple-choice knapsack (Sinha and Zoltners 1979) with the products of choices linearised as by Adams and
Sherali (1986). Fifty groups of 32 candidates have fifty thousand products, which takes an engine minutes. So the
Lagrangian relaxation comes first: with the budgets at a price, what is left is a sum over groups and pairs, and dynamic
programming over the graph of pairs finds its minimum, also with any one candidate or pair of candidates held (bucket
elimination, Dechter 1999). Kelley's cutting planes (1960) find the prices. A candidate whose minimum lies above the
damage of a choice that is known is in no better one; hardly any are left to the engine.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

from oamip_onnx.errors import SolverError, TargetError
from oamip_onnx.formulation.program import FloatArray, IntArray, Program, ProgramBuilder
from oamip_onnx.solvers import Capability, Solver, SolverOptions, SolverResult, SolverStatus, solver_for
from oamip_onnx.solvers.conic import installed_engine
from oamip_onnx.solvers.result import TracePoint

Pair = tuple[int, int]
BoolArray = npt.NDArray[np.bool_]

# A pair's table that differs from a sum of one value each by less than this, relative to its entries, is that sum.
_SEPARABLE = 1e-13

# Rounding in sums of table entries, relative to their size, and in those of the relaxation, whose prices may be large.
_ROUNDING = 1e-11
_PRICED_ROUNDING = 1e-10

# Entries of the largest table of the dynamic program, 2 MiB, or, where that is not enough for all pairs, of those that
# a part of the pairs may make: larger ones raise the bound by less than the time is worth.
_LARGEST_TABLE = 1 << 18
_PART_TABLE = 1 << 12

# Kelley's method ends after a dozen rounds with one budget, and has the bound to many digits after these with three.
_DUAL_ROUNDS = 120
_DUAL_TOLERANCE = 1e-10

# Slack of the least cost of a budget below its limit, relative to the span of the cost, that multipliers allow for.
_SMALLEST_SLACK = 1e-6

# Rounds of dividing the tables of pairs that the dynamic program leaves out between their groups.
_DIVISIONS = 3

# Rounds of dropping candidates and improving the choice in turn; each has fewer candidates than the one before.
_REDUCTIONS = 5

# Changes of a choice, and most candidates with which changes of two groups at once are looked at.
_MOVES = 1000
_FEW_CANDIDATES = 700

# Choices of either kind, within the budgets and not, that are improved after each relaxation.
_STARTS = 3

# Engines meet rows to a tolerance. Choices that exceed a budget by less are ruled out one by one, and then, since there
# may be very many of them, by limits lowered by this share, and twice as much each time.
_RULED_OUT = 3
_LOWERED = 2e-6
_SOLVES = 12
_LOWERED_ADVICE = (
    "The engine exceeded the limits by rounding, so that they were lowered by {:.0e} of what they leave to choose; the "
    "bound is that of the limits as given."
)

_TASK = "widths"
_CHOICES = "choices"


@dataclass(frozen=True)
class WidthChoices:
    """The widths that one group may take.

    Attributes
    ----------
    widths
        The widths, ascending, shape (candidates,).
    damages
        What each of them is expected to harm, in any unit that adds up over groups, shape (candidates,).
    """

    widths: IntArray
    damages: FloatArray


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
class ChosenWidths:
    """The widths chosen, and how good they are.

    Attributes
    ----------
    positions, widths
        The candidate that each group takes, and its width.
    damage
        Sum of the damages, which `result` has as its objective.
    costs
        The exact cost by each budget, in the order and the units of the budgets.
    result
        How the program was solved: status, bound, gap, time. Where the relaxation alone proves the gap there was no
        search.
    """

    positions: tuple[int, ...]
    widths: tuple[int, ...]
    damage: float
    costs: tuple[float, ...]
    result: SolverResult


def choose_widths(
    choices: Sequence[WidthChoices], budgets: Sequence[Budget], options: SolverOptions | None = None
) -> ChosenWidths:
    """Return the widths with the least damage in sum that keep every budget.

    Every budget is checked exactly, by its tables: no choice above a limit is returned, by however little.

    Parameters
    ----------
    choices
        The candidates of each group.
    budgets
        What the chosen widths must keep.
    options
        The engine and its limits. An engine that takes no binaries leaves the search to SCIP, and `largest_binary` is
        no matter here: relaxed choices are none.

    Raises
    ------
    TargetError
        If no widths keep the budgets; the message says what each can reach.
    SolverError
        If the limits end the search before any widths that keep the budgets are found.
    UsageError
        If the named engine is unknown or not installed.
    ValueError
        If a group has no candidates, or a table has a wrong shape or values that are not finite.
    """
    sizes = [choice.widths.size for choice in choices]
    _check(choices, budgets, sizes)
    damage = Budget("damage", math.inf, unary={g: choice.damages for g, choice in enumerate(choices)})
    found = _minimum(_problem(sizes, damage, budgets), options or SolverOptions())
    return ChosenWidths(
        found.positions,
        tuple(int(choice.widths[p]) for choice, p in zip(choices, found.positions, strict=True)),
        found.value,
        tuple(budget.cost(found.positions) for budget in budgets),
        found.result,
    )


def _check(choices: Sequence[WidthChoices], budgets: Sequence[Budget], sizes: Sequence[int]) -> None:
    if not choices:
        raise ValueError("There must be at least one group to choose a width of.")
    for g, choice in enumerate(choices):
        if not sizes[g] or choice.damages.shape != choice.widths.shape or choice.widths.ndim != 1:
            raise ValueError(f"Group {g} needs at least one candidate, and one damage for each.")
        if (np.diff(choice.widths) <= 0).any() or not np.isfinite(choice.damages).all():
            raise ValueError(f"The candidates of group {g} must ascend, and their damages must be finite.")
    for budget in budgets:
        tables: list[tuple[FloatArray, tuple[int, ...]]] = [(v, (sizes[g],)) for g, v in budget.unary.items()]
        tables += [(table, (sizes[g], sizes[h])) for (g, h), table in budget.pairwise.items()]
        if any(table.shape != shape for table, shape in tables) or any(g == h for g, h in budget.pairwise):
            raise ValueError(f"The tables of the budget {budget.name!r} must be those of its groups' candidates.")
        numbers = math.isfinite(budget.constant) and budget.limit > -math.inf
        if not numbers or not all(np.isfinite(table).all() for table, _ in tables):
            raise ValueError(f"The budget {budget.name!r} must consist of finite numbers.")


# The problem, and what is left of it.


@dataclass(frozen=True)
class _Tables:
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

    def restricted(self, kept: Sequence[IntArray]) -> "_Tables":
        """Return the function of the candidates that are kept."""
        unary = [u[k] for u, k in zip(self.unary, kept, strict=True)]
        return _separated(
            self.constant, unary, {(g, h): t[np.ix_(kept[g], kept[h])] for (g, h), t in self.pairwise.items()}
        )

    def span(self) -> float:
        """Return a bound on how far two values lie apart."""
        return float(sum(np.ptp(table) for table in [*self.unary, *self.pairwise.values()]))


def _separated(constant: float, unary: Iterable[FloatArray], pairwise: Mapping[Pair, FloatArray]) -> _Tables:
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
    return _Tables(constant, tuple(own), rest)


def _tables(budget: Budget, sizes: Sequence[int]) -> _Tables:
    pairwise: dict[Pair, FloatArray] = {}
    for (g, h), table in budget.pairwise.items():
        key, ordered = ((g, h), table) if g < h else ((h, g), table.T)
        pairwise[key] = pairwise[key] + ordered if key in pairwise else np.asarray(ordered, np.float64)
    unary = [budget.unary.get(g, np.zeros(size)) for g, size in enumerate(sizes)]
    return _separated(budget.constant, unary, pairwise)


@dataclass(frozen=True)
class _Problem:
    """The least `objective` with every one of `rows` at most 0, over the candidates that are left.

    Choices are positions among these; `kept` has the positions among all candidates, by group. `goal` and `budgets` are
    what objective and rows were made of, for exact values.
    """

    goal: Budget
    budgets: tuple[Budget, ...]
    objective: _Tables
    rows: tuple[_Tables, ...]
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

    def priced(self, multipliers: FloatArray) -> _Tables:
        """Return the objective with the rows added at a price."""
        parts = [(1.0, self.objective), *zip(multipliers, self.rows, strict=True)]
        unary = tuple(sum((m * t.unary[g] for m, t in parts), np.zeros(n)) for g, n in enumerate(self.sizes))
        pairwise = {
            pair: sum((m * t.pairwise[pair] for m, t in parts if pair in t.pairwise), np.zeros((1, 1)))
            for pair in self.pairs
        }
        return _Tables(float(sum(m * t.constant for m, t in parts)), unary, pairwise)

    def restricted(self, kept: Sequence[IntArray]) -> "_Problem":
        """Return the problem with the candidates at these positions."""
        return replace(
            self,
            objective=self.objective.restricted(kept),
            rows=tuple(row.restricted(kept) for row in self.rows),
            kept=tuple(own[k] for own, k in zip(self.kept, kept, strict=True)),
        )


def _problem(sizes: Sequence[int], goal: Budget, budgets: Sequence[Budget]) -> _Problem:
    rows = []
    finite = [budget for budget in budgets if math.isfinite(budget.limit)]
    for budget in finite:
        tables = _tables(budget, sizes)
        # Any scale will do for the relaxation; the engine's rows get their own.
        scale = tables.span() or 1.0
        unary = tuple(u / scale for u in tables.unary)
        pairwise = {pair: table / scale for pair, table in tables.pairwise.items()}
        rows.append(_Tables((tables.constant - budget.limit) / scale, unary, pairwise))
    kept = tuple(np.arange(size, dtype=np.int64) for size in sizes)
    return _Problem(goal, tuple(finite), _tables(goal, sizes), tuple(rows), kept)


# The relaxation.


@dataclass(frozen=True)
class _Minimum:
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

    def minimum(self, tables: _Tables) -> _Minimum:
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

    def _table(self, axes: tuple[int, ...], tables: _Tables) -> FloatArray:
        """Return what a group adds itself: its values, and its pairs with groups that are eliminated later."""
        first = axes[0]
        table = np.zeros([tables.unary[g].size for g in axes]) + _placed(tables.unary[first], (first,), axes)
        for h in axes[1:]:
            pair = (min(first, h), max(first, h))
            if pair in self.pairs and pair in tables.pairwise:
                table += _placed(tables.pairwise[pair].T if first > h else tables.pairwise[pair], (first, h), axes)
        return table

    def _read(self, own: list[FloatArray], messages: list[FloatArray], bound: float) -> _Minimum:
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
        return _Minimum(bound, positions, excess, pair_excess)


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

    def __init__(self, problem: _Problem) -> None:
        self.problem = problem
        self.elimination = _Elimination(problem.sizes, problem.pairs)
        self.left_out: tuple[Pair, ...] = ()
        if self.elimination.largest > _LARGEST_TABLE:
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

    def minimum(self, tables: _Tables) -> _Minimum:
        """Return the minimum of a function with the pairs of the problem."""
        best = self._divided(tables)
        for _ in range(_DIVISIONS if self.left_out else 0):
            found = self._divided(tables)
            best = found if found.bound > best.bound else best
        return best

    def _divided(self, tables: _Tables) -> _Minimum:
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


def _relaxed(problem: _Problem) -> tuple[_Minimum, list[list[int]]]:
    """Return the minimum at the best multipliers found, and all choices met on the way."""
    relaxation = _Relaxation(problem)
    best = relaxation.minimum(problem.priced(np.zeros(len(problem.rows))))
    met = [best.positions]
    span = problem.objective.span()
    most = []
    for row in problem.rows:
        cheapest = relaxation.minimum(row)
        if cheapest.bound > _ROUNDING:
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


def _improved(problem: _Problem, positions: Sequence[int]) -> list[int] | None:
    """Return a choice that keeps the budgets and is no worse, by changes of one or two groups; None if none is met."""
    chosen = list(positions)
    owners = np.repeat(np.arange(len(chosen)), problem.sizes)
    least = _ROUNDING * max(problem.objective.span(), abs(problem.objective.value(chosen)))
    for _ in range(_MOVES):
        slack = np.array([row.value(chosen) for row in problem.rows])
        gain = problem.objective.changes(chosen)
        rows = np.array([row.changes(chosen) for row in problem.rows]).reshape(len(slack), gain.size)
        over = np.maximum(slack, 0.0).sum()
        if over > _ROUNDING:
            less = over - np.maximum(slack[:, None] + rows, 0.0).sum(axis=0)
            move = int(np.where(less > _ROUNDING, less / np.maximum(gain, least or 1.0), 0.0).argmax())
            if less[move] <= _ROUNDING:
                return None
            moves = [move]
        else:
            moves = _best_moves(problem, chosen, gain, slack[:, None] + rows, least)
        if not moves:
            break
        for move in moves:
            chosen[owners[move]] = int(move - problem.starts[owners[move]])
    return chosen if problem.allowed(chosen) else None


def _best_moves(problem: _Problem, chosen: list[int], gain: FloatArray, rows: FloatArray, least: float) -> list[int]:
    """Return the changes of one group, or else of two, that lower the objective most within the budgets."""
    single = np.where((gain < -least) & (rows <= 0).all(axis=0), gain, 0.0)
    if single.min() < 0:
        return [int(single.argmin())]
    if gain.size > _FEW_CANDIDATES:
        return []
    both = problem.objective.double_changes(chosen, problem.starts)
    owners = np.repeat(np.arange(len(chosen)), problem.sizes)
    allowed = (both < -least) & (owners[:, None] != owners)
    for row in problem.rows:
        allowed &= row.value(chosen) + row.double_changes(chosen, problem.starts) <= 0
    double = np.where(allowed, both, 0.0)
    if double.min() == 0:
        return []
    return [int(k) for k in np.unravel_index(double.argmin(), double.shape)]


# The solve.


@dataclass(frozen=True)
class _Found:
    """A choice by positions among all candidates, its exact value, and the record of how it was found."""

    positions: tuple[int, ...]
    value: float
    result: SolverResult


def _minimum(problem: _Problem, options: SolverOptions) -> _Found:
    """Return the best choice within the budgets.

    Raises
    ------
    TargetError, SolverError, UsageError
        As `choose_widths` does.
    """
    began = time.perf_counter()
    relaxed, met = _relaxed(problem)
    best = _best_of(problem, met) or _first(problem, options)
    for _ in range(_REDUCTIONS):
        # Whatever is better than the best choice is among the candidates that are within reach of its value.
        kept = _kept(problem, relaxed.excess, best, _room(problem, best, relaxed.bound))
        if sum(k.size for k in kept) == sum(problem.sizes):
            break
        problem = problem.restricted(kept)
        best = [int(np.searchsorted(k, p)) for k, p in zip(kept, best, strict=True)]
        relaxed, met = _relaxed(problem)
        best = _best_of(problem, [best, *met]) or best
    value = problem.value(best)
    bound = min(relaxed.bound, value)
    if max(problem.sizes, default=1) == 1:
        bound = value
    name = f"Lagrangian relaxation, scipy {version('scipy')}"
    result = SolverResult(_TASK, name, SolverStatus.OPTIMAL, value, bound, _gap(value, bound), 0, 0.0)
    if _gap(value, bound) > options.gap:
        possible = {p: e <= _room(problem, best, relaxed.bound) for p, e in relaxed.pair_excess.items()}
        best, result = _searched(problem, best, result, possible, options)
    return _Found(problem.original(best), problem.value(best), replace(result, seconds=time.perf_counter() - began))


def _gap(value: float, bound: float) -> float:
    return max(value - bound, 0.0) / max(abs(value), 1e-9)


def _room(problem: _Problem, best: Sequence[int], bound: float) -> float:
    """Return how far above a bound the value of the best choice lies, and rounding."""
    value = problem.value(best)
    return value - bound + _PRICED_ROUNDING * max(abs(value), problem.objective.span())


def _best_of(problem: _Problem, met: Sequence[Sequence[int]]) -> list[int] | None:
    """Return the best choice that those met lead to within the budgets; None if none does."""
    inside = [p for p in met if problem.allowed(p)]
    outside = sorted((p for p in met if not problem.allowed(p)), key=problem.violation)
    starts = [*sorted(inside, key=problem.value)[:_STARTS], *outside[:_STARTS]]
    found = [improved for start in starts if (improved := _improved(problem, start)) is not None]
    return min([*found, *(list(p) for p in inside)], key=problem.value, default=None)


def _kept(problem: _Problem, excess: Sequence[FloatArray], best: Sequence[int], room: float) -> list[IntArray]:
    """Return the candidates of each group that a better choice may hold, and those of the best one."""
    masks = [e <= room for e in excess]
    for g, mask in enumerate(masks):
        mask[_dominated(problem, g, np.flatnonzero(mask))] = False
        mask[best[g]] = True
    return [np.flatnonzero(mask).astype(np.int64) for mask in masks]


def _dominated(problem: _Problem, g: int, among: IntArray) -> IntArray:
    """Return the candidates of a group that another is never worse than, whatever the other groups take."""
    pairs = [pair for pair in problem.pairs if g in pair]
    if among.size**2 * max((problem.sizes[h] for pair in pairs for h in pair), default=1) > _LARGEST_TABLE:
        return np.zeros(0, np.int64)
    never_worse = np.ones((among.size, among.size), np.bool_)
    for tables in (problem.objective, *problem.rows):
        worst = tables.unary[g][among][:, None] - tables.unary[g][among]
        for pair in pairs:
            if pair in tables.pairwise:
                table = tables.pairwise[pair][among] if pair[0] == g else tables.pairwise[pair].T[among]
                worst += (table[:, None] - table).max(axis=2)
        never_worse &= worst <= 0
    # Of candidates that are as good as each other the first stays.
    before = np.triu(np.ones_like(never_worse), 1)
    return among[(never_worse & (~never_worse.T | before)).any(axis=0)]


def _first(problem: _Problem, options: SolverOptions) -> list[int]:
    """Return a choice within the budgets, where none is met by chance: the least cost of each within those before.

    Raises
    ------
    TargetError, SolverError
        As `choose_widths` does.
    """
    exact = replace(options, gap=0.0)
    positions: Sequence[int] = [0] * len(problem.sizes)
    for number, budget in enumerate(problem.budgets):
        found = _minimum(_problem(problem.sizes, budget, problem.budgets[:number]), exact)
        positions = found.positions
        if found.value > budget.limit:
            if found.result.status is SolverStatus.OPTIMAL:
                raise _unreachable(problem, number, found.value, exact)
            raise SolverError(
                f"The search for widths that keep the budget {_written(budget)} ended at its limits without any; "
                "raise the node or time limit, or the budget."
            )
    return list(positions)


def _unreachable(problem: _Problem, number: int, value: float, options: SolverOptions) -> TargetError:
    """Return the error for budgets of which one is out of reach, alone or within those before it."""
    budget = problem.budgets[number]
    if len(problem.budgets) == 1:
        return TargetError(
            f"The budget {_written(budget)} cannot be reached; the smallest possible is {budget.shown(value)}."
        )
    least = [_minimum(_problem(problem.sizes, b, ()), options).value for b in problem.budgets]
    alone = " and ".join(f"{b.name} {b.shown(v)}" for b, v in zip(problem.budgets, least, strict=True))
    above = [b.name for b, v in zip(problem.budgets, least, strict=True) if v > b.limit]
    if above:
        why = f"raise {' and '.join(above)}"
    else:
        before = " and ".join(_written(b) for b in problem.budgets[:number])
        why = f"within {before}, the smallest possible {budget.name} is {budget.shown(value)}"
    wanted = " and ".join(_written(b) for b in problem.budgets)
    return TargetError(f"The budgets {wanted} cannot be reached together; each alone can reach {alone}, and {why}.")


def _written(budget: Budget) -> str:
    return f"{budget.name} of {budget.shown(budget.limit)}"


def _searched(
    problem: _Problem, best: list[int], found: SolverResult, possible: Mapping[Pair, BoolArray], options: SolverOptions
) -> tuple[list[int], SolverResult]:
    """Return the engine's choice, or the best one before if that is no worse, and the record of the search.

    Parameters
    ----------
    problem, best, possible
        As of `_program`.
    found
        What the relaxation has proven.
    options
        The engine and its limits.
    """
    bound = -math.inf if found.bound is None else found.bound
    ruled_out: list[list[int]] = []
    lowered, scale, failure = 0.0, 1.0, ""
    for _ in range(_SOLVES):
        program, scale = _program(problem, best, possible, ruled_out, lowered)
        try:
            solution = _engine(program, options).solve(program)
        except SolverError as error:
            # The best choice before keeps the budgets, and how good it is at least is known.
            failure = str(error)
            break
        found = solution.result
        if not lowered and found.bound is not None:
            bound = max(bound, found.bound * scale)
        parts = np.split(solution.x[program.columns(_CHOICES)], problem.starts[1:])
        chosen = [int(part.argmax()) for part in parts]
        if problem.allowed(chosen):
            best = min(best, chosen, key=problem.value)
            break
        if len(ruled_out) < _RULED_OUT:
            ruled_out.append(chosen)
        else:
            lowered = max(2 * lowered, _LOWERED)
    value = problem.value(best)
    bound = min(bound, value)
    gap = _gap(value, bound)
    status, advice = found.status, ""
    if gap <= options.gap:
        status = SolverStatus.OPTIMAL
    elif failure:
        status, advice = SolverStatus.LIMIT, f"The search proved no gap below {gap:.1e}: {failure}"
    elif status is SolverStatus.LIMIT:
        advice = f"The search ended at the node or time limit with a gap of {gap:.1e}; raise it, or the gap."
    elif lowered:
        status, advice = SolverStatus.INACCURATE, _LOWERED_ADVICE.format(lowered)
    trace = tuple(
        TracePoint(point.seconds, *(None if v is None else v * scale for v in (point.incumbent, point.bound)))
        for point in found.trace
    )
    return best, replace(found, status=status, objective=value, bound=bound, gap=gap, advice=advice, trace=trace)


def _engine(program: Program, options: SolverOptions) -> Solver:
    """Return the engine asked for, if it takes binaries, and else SCIP.

    Raises
    ------
    UsageError
        If the named engine is unknown or not installed.
    """
    if options.name is not None and options.name.lower() != "scip":
        installed_engine(options.name)
    every = replace(options, largest_binary=program.binary_count)
    engine = solver_for(program, every)
    return engine if Capability.BINARIES in engine.capabilities else solver_for(program, replace(every, name=None))


def _program(
    problem: _Problem,
    best: Sequence[int],
    possible: Mapping[Pair, BoolArray],
    ruled_out: Sequence[Sequence[int]],
    lowered: float,
) -> tuple[Program, float]:
    """Return the program over the candidates that are left, and what its objective is to be multiplied with.

    Parameters
    ----------
    problem
        The problem.
    best
        The best choice so far, which the search starts from.
    possible
        By pair, which joint choices a better choice may hold.
    ruled_out
        Choices that it must not take.
    lowered
        What is taken off each limit, as a share of what it leaves above the least entry of every table.
    """
    builder = ProgramBuilder(_TASK)
    count = sum(problem.sizes)
    starts = problem.starts
    owners = np.repeat(np.arange(len(problem.sizes)), problem.sizes)
    one, start = np.ones(count), np.zeros(count)
    start[starts + np.array(best, np.int64)] = 1.0
    builder.variables(_CHOICES, count, 0.0, 1.0, binary=True)
    builder.rows("one width a group", sparse.csr_array((one, (owners, np.arange(count)))), 1.0, 1.0)
    cells: dict[Pair, tuple[IntArray, IntArray, IntArray]] = {}
    for pair in problem.pairs:
        g, h = pair
        first, second = (k.astype(np.int64) for k in np.nonzero(possible[pair]))
        block = builder.variables("pairs", first.size, 0.0, 1.0)
        columns = np.arange(block.start, builder.width)
        cells[pair] = first, second, columns
        # What the pairs of candidates add up to is 1 for the chosen candidate of either group, and else 0.
        rows = np.concatenate([first, problem.sizes[g] + second, np.arange(problem.sizes[g] + problem.sizes[h])])
        ends = np.concatenate([starts[k] + np.arange(problem.sizes[k]) for k in pair])
        values = np.concatenate([np.ones(2 * first.size), -np.ones(ends.size)])
        matrix = sparse.csr_array((values, (rows, np.concatenate([columns, columns, ends]))))
        builder.rows("one pair of widths a pair of groups", matrix, 0.0, 0.0)
        start = np.concatenate([start, (first == best[g]) & (second == best[h])])
    for chosen in ruled_out:
        columns = starts + np.array(chosen, np.int64)
        matrix = sparse.csr_array(
            (np.ones(columns.size), (np.zeros(columns.size, np.int64), columns)), (1, builder.width)
        )
        builder.rows("choices above a budget", matrix, -np.inf, columns.size - 1.0)
    for budget, tables in zip(problem.budgets, problem.rows, strict=True):
        least, values = _flat(tables, cells)
        # In this scale what the limit leaves to choose is 1, whatever the unit, and so is an engine's tolerance.
        room = -least if -least > _ROUNDING * values.max(initial=0.0) else values.max(initial=1.0) or 1.0
        upper = -least / room * (1.0 - lowered)
        builder.rows(f"budget {budget.name}", sparse.csr_array(values[None] / room), -np.inf, upper)
    least, values = _flat(problem.objective, cells)
    scale = problem.objective.value(best) - least
    scale = scale if scale > _ROUNDING * abs(least) else values.max(initial=1.0) or 1.0
    builder.cost(np.arange(builder.width), values / scale)
    builder.constant = least / scale
    return builder.build(start), scale


def _flat(tables: _Tables, cells: Mapping[Pair, tuple[IntArray, IntArray, IntArray]]) -> tuple[float, FloatArray]:
    """Return the sum of the least entries of all tables, and what is above them by the columns of the program."""
    least = tables.constant
    parts = []
    for values in tables.unary:
        least += float(values.min())
        parts.append(values - values.min())
    for pair, (first, second, _) in cells.items():
        values = tables.pairwise[pair][first, second] if pair in tables.pairwise else np.zeros(first.size)
        least += float(values.min())
        parts.append(values - values.min())
    return least, np.concatenate(parts)
