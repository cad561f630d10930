"""One width for each group, with the least damage within every budget: a multiple-choice program.

With x[g, w] = 1 where group g takes its candidate w, and y[gh, w, v] = 1 where g takes w and h takes v,

    min   Σ damage[g, w] x[g, w]
    s.t.  Σ_w x[g, w] = 1,   Σ_v y[gh, w, v] = x[g, w],   Σ_w y[gh, w, v] = x[h, v],
          constant[b] + Σ unary[b, g, w] x[g, w] + Σ pairwise[b, gh, w, v] y[gh, w, v] ≤ limit[b]  for every budget b.

This is the multiple-choice knapsack (Sinha and Zoltners 1979) with the products of choices linearised as by Adams and
Sherali (1986). Fifty groups of 32 candidates have fifty thousand products, which takes an engine minutes. So the
Lagrangian relaxation comes first (`relaxation.py`), with its minimum also where any one candidate or pair of candidates
is held. A candidate whose minimum lies above the damage of a choice that is known is in no better one; hardly any are
left to the engine.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.budget.problem import ROUNDING, Budget, Pair, Problem, Tables, make_problem
from oamip_onnx.budget.relaxation import LARGEST_TABLE, relax
from oamip_onnx.errors import SolverError, TargetError
from oamip_onnx.formulation.program import FloatArray, IntArray, Program, ProgramBuilder
from oamip_onnx.solvers import Capability, Solver, SolverOptions, SolverResult, SolverStatus, solver_for
from oamip_onnx.solvers.conic import installed_engine
from oamip_onnx.solvers.result import TracePoint

BoolArray = npt.NDArray[np.bool_]

# Rounding in values of the relaxation, relative to their size; the prices in them may be large.
_PRICED_ROUNDING = 1e-10

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
    found = _minimum(make_problem(sizes, damage, budgets), options or SolverOptions())
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


# The solve.


def _improved(problem: Problem, positions: Sequence[int]) -> list[int] | None:
    """Return a choice that keeps the budgets and is no worse, by changes of one or two groups; None if none is met."""
    chosen = list(positions)
    owners = np.repeat(np.arange(len(chosen)), problem.sizes)
    least = ROUNDING * max(problem.objective.span(), abs(problem.objective.value(chosen)))
    for _ in range(_MOVES):
        slack = np.array([row.value(chosen) for row in problem.rows])
        gain = problem.objective.changes(chosen)
        rows = np.array([row.changes(chosen) for row in problem.rows]).reshape(len(slack), gain.size)
        over = np.maximum(slack, 0.0).sum()
        if over > ROUNDING:
            less = over - np.maximum(slack[:, None] + rows, 0.0).sum(axis=0)
            move = int(np.where(less > ROUNDING, less / np.maximum(gain, least or 1.0), 0.0).argmax())
            if less[move] <= ROUNDING:
                return None
            moves = [move]
        else:
            moves = _best_moves(problem, chosen, gain, slack[:, None] + rows, least)
        if not moves:
            break
        for move in moves:
            chosen[owners[move]] = int(move - problem.starts[owners[move]])
    return chosen if problem.allowed(chosen) else None


def _best_moves(problem: Problem, chosen: list[int], gain: FloatArray, rows: FloatArray, least: float) -> list[int]:
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


@dataclass(frozen=True)
class _Found:
    """A choice by positions among all candidates, its exact value, and the record of how it was found."""

    positions: tuple[int, ...]
    value: float
    result: SolverResult


def _minimum(problem: Problem, options: SolverOptions) -> _Found:
    """Return the best choice within the budgets.

    Raises
    ------
    TargetError, SolverError, UsageError
        As `choose_widths` does.
    """
    began = time.perf_counter()
    relaxed, met = relax(problem)
    best = _best_of(problem, met) or _first(problem, options)
    for _ in range(_REDUCTIONS):
        # Whatever is better than the best choice is among the candidates that are within reach of its value.
        kept = _kept(problem, relaxed.excess, best, _room(problem, best, relaxed.bound))
        if sum(k.size for k in kept) == sum(problem.sizes):
            break
        problem = problem.restricted(kept)
        best = [int(np.searchsorted(k, p)) for k, p in zip(kept, best, strict=True)]
        relaxed, met = relax(problem)
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


def _room(problem: Problem, best: Sequence[int], bound: float) -> float:
    """Return how far above a bound the value of the best choice lies, and rounding."""
    value = problem.value(best)
    return value - bound + _PRICED_ROUNDING * max(abs(value), problem.objective.span())


def _best_of(problem: Problem, met: Sequence[Sequence[int]]) -> list[int] | None:
    """Return the best choice that those met lead to within the budgets; None if none does."""
    inside = [p for p in met if problem.allowed(p)]
    outside = sorted((p for p in met if not problem.allowed(p)), key=problem.violation)
    starts = [*sorted(inside, key=problem.value)[:_STARTS], *outside[:_STARTS]]
    found = [improved for start in starts if (improved := _improved(problem, start)) is not None]
    return min([*found, *(list(p) for p in inside)], key=problem.value, default=None)


def _kept(problem: Problem, excess: Sequence[FloatArray], best: Sequence[int], room: float) -> list[IntArray]:
    """Return the candidates of each group that a better choice may hold, and those of the best one."""
    masks = [e <= room for e in excess]
    for g, mask in enumerate(masks):
        mask[_dominated(problem, g, np.flatnonzero(mask))] = False
        mask[best[g]] = True
    return [np.flatnonzero(mask).astype(np.int64) for mask in masks]


def _dominated(problem: Problem, g: int, among: IntArray) -> IntArray:
    """Return the candidates of a group that another is never worse than, whatever the other groups take."""
    pairs = [pair for pair in problem.pairs if g in pair]
    if among.size**2 * max((problem.sizes[h] for pair in pairs for h in pair), default=1) > LARGEST_TABLE:
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


def _first(problem: Problem, options: SolverOptions) -> list[int]:
    """Return a choice within the budgets, where none is met by chance: the least cost of each within those before.

    Raises
    ------
    TargetError, SolverError
        As `choose_widths` does.
    """
    exact = replace(options, gap=0.0)
    positions: Sequence[int] = [0] * len(problem.sizes)
    for number, budget in enumerate(problem.budgets):
        found = _minimum(make_problem(problem.sizes, budget, problem.budgets[:number]), exact)
        positions = found.positions
        if found.value > budget.limit:
            if found.result.status is SolverStatus.OPTIMAL:
                raise _unreachable(problem, number, found.value, exact)
            raise SolverError(
                f"The search for widths that keep the budget {_written(budget)} ended at its limits without any; "
                "raise the node or time limit, or the budget."
            )
    return list(positions)


def _unreachable(problem: Problem, number: int, value: float, options: SolverOptions) -> TargetError:
    """Return the error for budgets of which one is out of reach, alone or within those before it."""
    budget = problem.budgets[number]
    if len(problem.budgets) == 1:
        return TargetError(
            f"The budget {_written(budget)} cannot be reached; the smallest possible is {budget.shown(value)}."
        )
    least = [_minimum(make_problem(problem.sizes, b, ()), options).value for b in problem.budgets]
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
    problem: Problem, best: list[int], found: SolverResult, possible: Mapping[Pair, BoolArray], options: SolverOptions
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
    problem: Problem,
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
        room = -least if -least > ROUNDING * values.max(initial=0.0) else values.max(initial=1.0) or 1.0
        upper = -least / room * (1.0 - lowered)
        builder.rows(f"budget {budget.name}", sparse.csr_array(values[None] / room), -np.inf, upper)
    least, values = _flat(problem.objective, cells)
    scale = problem.objective.value(best) - least
    scale = scale if scale > ROUNDING * abs(least) else values.max(initial=1.0) or 1.0
    builder.cost(np.arange(builder.width), values / scale)
    builder.constant = least / scale
    return builder.build(start), scale


def _flat(tables: Tables, cells: Mapping[Pair, tuple[IntArray, IntArray, IntArray]]) -> tuple[float, FloatArray]:
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
