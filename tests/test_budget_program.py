"""The budget program chooses the best widths, proves it, and never exceeds a budget."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oamip_onnx.budget import Budget, ChosenWidths, WidthChoices, choose_widths
from oamip_onnx.errors import SolverError, TargetError, UsageError
from oamip_onnx.solvers import SolverOptions, SolverStatus

FloatArray = npt.NDArray[np.float64]

EXACT = SolverOptions(gap=1e-9)
PROVEN = SolverOptions(gap=1e-6)

# Most seconds of processor time to prove an optimum at full size: others may be using the machine.
SECONDS = 10.0


def choices_of(*damages: Sequence[float]) -> list[WidthChoices]:
    """Return groups of widths 1, 2, … with these damages."""
    return [WidthChoices(np.arange(1, len(own) + 1), np.array(own, np.float64)) for own in damages]


def product(choices: Sequence[WidthChoices], g: int, h: int, factor: float = 1.0) -> FloatArray:
    """Return the cost of a layer from group g to group h."""
    return factor * np.outer(choices[g].widths, choices[h].widths)


def every(choices: Sequence[WidthChoices], budgets: Sequence[Budget]) -> Iterator[tuple[int, ...]]:
    """Yield all choices within the budgets."""
    for positions in itertools.product(*(range(choice.widths.size) for choice in choices)):
        if all(budget.cost(positions) <= budget.limit for budget in budgets):
            yield positions


def damage_of(choices: Sequence[WidthChoices], positions: Sequence[int]) -> float:
    return math.fsum(choice.damages[p] for choice, p in zip(choices, positions, strict=True))


def check_consistent(found: ChosenWidths, choices: Sequence[WidthChoices], budgets: Sequence[Budget]) -> None:
    """Assert that what is said of the choice is so, and that it keeps the budgets."""
    assert found.widths == tuple(c.widths[p] for c, p in zip(choices, found.positions, strict=True))
    assert found.damage == found.result.objective == pytest.approx(damage_of(choices, found.positions), rel=1e-12)
    assert found.costs == tuple(budget.cost(found.positions) for budget in budgets)
    assert all(cost <= budget.limit for cost, budget in zip(found.costs, budgets, strict=True))
    assert found.result.bound is not None
    assert found.result.bound <= found.damage


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[WidthChoices], list[Budget]]:
    """Draw a few groups and budgets; limits often lie exactly at the cost of a choice."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    tied = draw(st.booleans())
    choices = []
    for size in sizes:
        damages = random.integers(0, 4, size).astype(np.float64) if tied else random.random(size)
        choices.append(WidthChoices(np.cumsum(random.integers(1, 5, size)), damages))
    budgets = []
    for number in range(draw(st.integers(1, 3))):
        scale = 10.0 ** draw(st.integers(-3, 9))
        whole = draw(st.booleans())
        unary, pairwise = {}, {}
        for g, size in enumerate(sizes):
            if random.random() < 0.7:
                unary[g] = scale * (random.integers(0, 9, size) if whole else random.random(size))
            for h in range(g):
                key = (g, h) if random.random() < 0.5 else (h, g)
                kind = random.integers(4)
                if kind == 0:
                    pairwise[key] = scale * random.random([sizes[k] for k in key])
                elif kind == 1:
                    pairwise[key] = product(choices, *key, scale)
                elif kind == 2:
                    pairwise[key] = scale * np.add.outer(*(choices[k].widths.astype(np.float64) for k in key))
        budget = Budget(f"budget {number}", math.inf, scale * random.integers(3), unary, pairwise)
        costs = [budget.cost(p) for p in every(choices, [])]
        at = random.integers(len(costs)) if draw(st.booleans()) else int(np.argsort(costs)[len(costs) // 3])
        budgets.append(replace(budget, limit=costs[at]))
    return choices, budgets


@settings(max_examples=150)
@given(problems())
def test_the_choice_is_the_best_of_all(problem: tuple[list[WidthChoices], list[Budget]]) -> None:
    choices, budgets = problem
    within = [damage_of(choices, positions) for positions in every(choices, budgets)]
    if not within:
        with pytest.raises(TargetError, match="cannot be reached"):
            choose_widths(choices, budgets, EXACT)
        return
    found = choose_widths(choices, budgets, EXACT)
    check_consistent(found, choices, budgets)
    assert found.result.status is SolverStatus.OPTIMAL
    assert found.damage == pytest.approx(min(within), rel=1e-9, abs=1e-12)


@settings(max_examples=40)
@given(problems())
def test_pairs_beyond_the_dynamic_program_are_searched(problem: tuple[list[WidthChoices], list[Budget]]) -> None:
    choices, budgets = problem
    within = [damage_of(choices, positions) for positions in every(choices, budgets)]
    program, relaxation = (import_module(f"oamip_onnx.budget.{name}") for name in ("program", "relaxation"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "LARGEST_TABLE", 8)
        patch.setattr(relaxation, "LARGEST_TABLE", 8)
        patch.setattr(relaxation, "_PART_TABLE", 8)
        if within:
            found = choose_widths(choices, budgets, EXACT)
            check_consistent(found, choices, budgets)
            assert found.damage == pytest.approx(min(within), rel=1e-9, abs=1e-12)
        else:
            with pytest.raises(TargetError):
                choose_widths(choices, budgets, EXACT)


@settings(max_examples=30)
@given(problems(), st.floats(1.0, 2.0))
def test_a_larger_limit_does_no_more_damage(problem: tuple[list[WidthChoices], list[Budget]], factor: float) -> None:
    choices, budgets = problem
    if not any(True for _ in every(choices, budgets)):
        budgets = [replace(b, limit=max(b.cost(p) for p in every(choices, []))) for b in budgets]
    tight = choose_widths(choices, budgets, EXACT)
    for number, budget in enumerate(budgets):
        raised = [*budgets]
        raised[number] = replace(budget, limit=budget.limit * factor)
        assert choose_widths(choices, raised, EXACT).damage <= tight.damage * (1 + 1e-9) + 1e-12


def network(seed: int, *, residual: bool) -> tuple[list[WidthChoices], Budget, Budget]:
    """Return fifty groups of 32 widths with their MACs and parameters, a chain or residual stages of bottlenecks.

    Damages are the tails of decaying spectra. Convolutions of 3 × 3 lead from each group of a chain to the next; in
    stages, those of one group are read and written by many blocks of one or two groups.
    """
    random = np.random.default_rng(seed)
    choices = []
    for g in range(50):
        full = 64 * 2 ** min(3, g * 4 // 50)
        spectrum = np.sort(random.lognormal(size=full))[::-1] / np.arange(1, full + 1) ** random.uniform(0.5, 1.8)
        widths = np.arange(1, 33) * full // 32
        tail = 1 - np.cumsum(spectrum) / spectrum.sum()
        choices.append(WidthChoices(widths, random.lognormal() * np.maximum(tail[widths - 1], 0.0)))
    layers: list[tuple[int, int, int]] = []
    if residual:
        for root in range(0, 50, 10):
            if root:
                layers.append((root - 10, root, 1))
            g = root + 1
            while g < root + 10:
                two = g + 1 < root + 10 and random.random() < 0.5
                inner = [(root, g, 1), (g, g + 1, 9), (root, g + 1, 1)] if two else [(root, g, 18)]
                layers.extend(inner)
                g += 1 + two
    else:
        layers = [(g, g + 1, 9) for g in range(49)]
    pixels = {(g, h): (32 // 2 ** min(3, g * 4 // 50)) ** 2 for g, h, _ in layers}
    macs = {(g, h): product(choices, g, h, taps * pixels[g, h]) for g, h, taps in layers}
    parameters = {(g, h): product(choices, g, h, taps) for g, h, taps in layers}
    first = {0: 27.0 * choices[0].widths}
    last = {49: 10.0 * choices[49].widths}
    return (
        choices,
        Budget("macs", math.inf, 0.0, {0: 1024 * first[0], **last}, macs),
        Budget("params", math.inf, 500.0, {**first, **last}, parameters),
    )


def share(budget: Budget, choices: Sequence[WidthChoices], left: float) -> Budget:
    return replace(budget, limit=left * budget.cost([choice.widths.size - 1 for choice in choices]))


@pytest.mark.parametrize("left", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("residual", [False, True], ids=["chain", "residual"])
def test_fifty_groups_of_32_widths_are_proven_optimal_within_seconds(residual: bool, left: float) -> None:  # noqa: FBT001
    choices, macs, _ = network(7, residual=residual)
    budgets = [share(macs, choices, left)]
    began = time.process_time()
    found = choose_widths(choices, budgets, PROVEN)
    assert time.process_time() - began < SECONDS
    check_consistent(found, choices, budgets)
    assert found.result.status is SolverStatus.OPTIMAL
    assert found.result.gap is not None
    assert found.result.gap <= 1e-6
    # One more unit nowhere fits without giving another up: the budget is used.
    assert found.costs[0] > 0.995 * budgets[0].limit


def test_budgets_in_units_far_apart_are_kept_at_once() -> None:
    choices, macs, parameters = network(2, residual=True)
    seconds = {pair: table * 1e-12 for pair, table in macs.pairwise.items()}
    budgets = [
        share(b, choices, f) for b, f in ((macs, 0.4), (parameters, 0.33), (Budget("s", 0, 0, {}, seconds), 0.5))
    ]
    found = choose_widths(choices, budgets, PROVEN)
    check_consistent(found, choices, budgets)
    assert found.result.status is SolverStatus.OPTIMAL
    assert sum(cost > 0.999 * budget.limit for cost, budget in zip(found.costs, budgets, strict=True)) == 2
    for one in budgets:
        assert choose_widths(choices, [one], PROVEN).damage <= found.damage * (1 + 1e-6)


def test_groups_with_a_single_candidate_are_left_as_they_are() -> None:
    choices = [WidthChoices(np.array([7]), np.array([3.0])), *choices_of([4.0, 1.0, 0.0])]
    budget = Budget("macs", 14.0, 0.0, {}, {(0, 1): product(choices, 0, 1)})
    found = choose_widths(choices, [budget])
    assert found.widths == (7, 2)
    assert (found.damage, found.costs) == (4.0, (14.0,))
    alone = choose_widths(choices[:1], [Budget("params", 7.0, 0.0, {0: np.array([7.0])})])
    assert (alone.widths, alone.damage) == ((7,), 3.0)


def test_without_a_limit_the_least_damage_is_chosen() -> None:
    choices = choices_of([4.0, 1.0, 2.0], [5.0, 0.0])
    budget = Budget("macs", math.inf, 0.0, {}, {(0, 1): product(choices, 0, 1)})
    assert choose_widths(choices, [budget]).widths == choose_widths(choices, []).widths == (2, 2)


def test_of_equal_damages_one_within_the_budget_is_chosen() -> None:
    choices = choices_of(*[[1.0, 0.0, 0.0, 0.0]] * 6)
    pairs = {(g, g + 1): product(choices, g, g + 1) for g in range(5)}
    budgets = [
        Budget("macs", 20.0, 0.0, {}, pairs),
        Budget("params", 12.0, 0.0, {g: c.widths * 1.0 for g, c in enumerate(choices)}),
    ]
    found = choose_widths(choices, budgets, EXACT)
    check_consistent(found, choices, budgets)
    assert found.damage == 0.0
    assert found.widths == (2,) * 6


def test_a_wider_candidate_may_cost_less() -> None:
    # Kernels are fast at multiples of 4: the narrower width 3 has the larger latency.
    choices = choices_of([3.0, 2.0, 1.0, 0.5])
    latency = Budget("latency", 6.0, 0.0, {0: np.array([4.0, 5.0, 7.0, 6.0])})
    assert choose_widths(choices, [latency]).widths == (4,)


def test_a_pair_may_be_given_in_either_order_and_twice() -> None:
    choices = choices_of([2.0, 1.0, 0.0], [3.0, 0.0])
    table = np.arange(6.0).reshape(3, 2)
    once = Budget("macs", 6.0, 0.0, {}, {(0, 1): 2 * table})
    twice = Budget("macs", 6.0, 0.0, {}, {(0, 1): table, (1, 0): table.T})
    assert choose_widths(choices, [once]).positions == choose_widths(choices, [twice]).positions == (1, 1)


def test_the_same_problem_has_the_same_choice() -> None:
    choices, macs, _ = network(5, residual=True)
    first, second = (choose_widths(choices, [share(macs, choices, 0.4)], PROVEN) for _ in range(2))
    assert first.positions == second.positions
    assert first.result.nodes == second.result.nodes


def test_an_unreachable_budget_names_the_smallest() -> None:
    choices = choices_of([1.0, 0.0], [1.0, 0.0])
    budget = Budget("macs", 11.0, 7.0, {0: np.array([3.0, 9.0])}, {(0, 1): product(choices, 0, 1, 2.0)})
    with pytest.raises(TargetError, match=r"The budget macs of 11 cannot be reached; the smallest possible is 12\."):
        choose_widths(choices, [budget])
    written = replace(budget, shown=lambda value: f"{value / 10:.1f} tens")
    with pytest.raises(TargetError, match=r"of 1\.1 tens cannot be reached; the smallest possible is 1\.2 tens\."):
        choose_widths(choices, [written])
    assert choose_widths(choices, [replace(budget, limit=12.0)]).widths == (1, 1)


def test_of_several_unreachable_budgets_the_failing_one_is_named() -> None:
    choices = choices_of([1.0, 0.0], [1.0, 0.0])
    macs = Budget("macs", 3.0, 0.0, {0: np.array([1.0, 5.0]), 1: np.array([1.0, 5.0])})
    latency = Budget("latency", 3.0, 0.0, {0: np.array([4.0, 2.0]), 1: np.array([4.0, 1.0])})
    with pytest.raises(
        TargetError, match=r"macs of 3 and latency of 2.* alone can reach macs 2 and latency 3, and raise latency"
    ):
        choose_widths(choices, [macs, replace(latency, limit=2.0)])
    together = "alone can reach macs 2 and latency 3, and within macs of 3, the smallest possible latency is 8"
    with pytest.raises(TargetError, match=together):
        choose_widths(choices, [macs, latency])
    with pytest.raises(TargetError, match="within latency of 3, the smallest possible macs is 10"):
        choose_widths(choices, [latency, macs])


@pytest.mark.parametrize("name", ["scip", "SCIPY", "clarabel", None])
def test_engines_agree(name: str | None) -> None:
    choices, macs, parameters = network(2, residual=False)
    budgets = [share(macs, choices, 0.4), share(parameters, choices, 0.4)]
    expected = choose_widths(choices, budgets, PROVEN)
    found = choose_widths(choices, budgets, replace(PROVEN, name=name))
    check_consistent(found, choices, budgets)
    assert found.damage == pytest.approx(expected.damage, rel=1e-4)
    # CLARABEL takes no binaries, so that the search is SCIP's.
    assert found.result.engine.split()[0] == ("SCIPY" if name == "SCIPY" else "SCIP")


def test_an_unknown_engine_is_an_error() -> None:
    choices, macs, _ = network(2, residual=False)
    with pytest.raises(UsageError, match="'scib' is not installed; did you mean 'scip'"):
        choose_widths(choices, [share(macs, choices, 0.4)], SolverOptions(name="scib", gap=1e-6))


def test_a_gap_that_the_relaxation_proves_needs_no_search() -> None:
    choices, macs, _ = network(7, residual=False)
    budgets = [share(macs, choices, 0.3)]
    loose = choose_widths(choices, budgets, SolverOptions(gap=0.05))
    check_consistent(loose, choices, budgets)
    assert loose.result.engine.startswith("Lagrangian relaxation")
    assert loose.result.gap is not None
    assert 0 < loose.result.gap <= 0.05
    exact = choose_widths(choices, budgets, PROVEN)
    assert (loose.result.bound or 0.0) <= exact.damage <= loose.damage


@pytest.mark.parametrize("limits", [{"nodes": 1}, {"seconds": 0.0}], ids=lambda limits: next(iter(limits)))
def test_a_search_that_ends_at_its_limit_keeps_the_budgets_and_says_so(limits: dict[str, Any]) -> None:
    choices, macs, parameters = network(1, residual=True)
    budgets = [share(macs, choices, 0.36), share(parameters, choices, 0.36)]
    found = choose_widths(choices, budgets, SolverOptions(gap=0.0, **limits))
    check_consistent(found, choices, budgets)
    assert found.result.status is SolverStatus.LIMIT
    assert "ended at the node or time limit with a gap of" in found.result.advice
    assert (found.result.gap or 0.0) > 0


def test_a_search_that_fails_leaves_a_choice_within_the_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def solve(self, _program: object) -> None:
            raise SolverError("The engine broke down.")

    choices, macs, _ = network(1, residual=True)
    budgets = [share(macs, choices, 0.36)]
    program = import_module("oamip_onnx.budget.program")
    monkeypatch.setattr(program, "_engine", lambda _program, _options: Failing())
    found = choose_widths(choices, budgets, SolverOptions(gap=0.0))
    check_consistent(found, choices, budgets)
    assert found.result.status is SolverStatus.LIMIT
    assert "The engine broke down." in found.result.advice
    assert 0 < (found.result.gap or 0.0) < 0.01


def identical(count: int, limit: float) -> tuple[list[WidthChoices], list[Budget]]:
    """Return equal groups, so that very many choices cost as much as each other, and a limit on their widths."""
    choices = choices_of(*[np.linspace(1.0, 0.0, 9) ** 1.5] * count)
    return choices, [Budget("params", limit, 0.0, {g: 1e6 * c.widths for g, c in enumerate(choices)})]


def test_a_budget_is_not_exceeded_by_what_engines_tolerate() -> None:
    count = 15
    # 75 of a million would do less damage, and are above the limit by less than 10⁻⁷ of it.
    choices, budgets = identical(count, 75e6 - 1.0)
    found = choose_widths(choices, budgets, EXACT)
    check_consistent(found, choices, budgets)
    _, below = identical(count, 74e6)
    assert found.costs == (74e6,)
    assert found.damage == pytest.approx(choose_widths(choices, below, EXACT).damage, rel=1e-12)
    # 75 millions are the proven bound, since the engine takes them.
    assert found.result.status is SolverStatus.INACCURATE
    assert "exceeded the limits by rounding" in found.result.advice


def test_tables_of_other_shapes_are_refused() -> None:
    choices = choices_of([1.0, 0.0], [1.0, 0.5, 0.0])
    wrong: list[Mapping[str, Mapping[object, FloatArray]]] = [
        {"unary": {0: np.ones(3)}},
        {"pairwise": {(0, 1): np.ones((3, 2))}},
        {"pairwise": {(1, 1): np.ones((3, 3))}},
    ]
    for tables in wrong:
        with pytest.raises(ValueError, match="tables of the budget 'macs'"):
            choose_widths(choices, [Budget("macs", 5.0, 0.0, **tables)])  # type: ignore[arg-type]
    for limit, constant in ((math.nan, 0.0), (-math.inf, 0.0), (5.0, math.inf)):
        with pytest.raises(ValueError, match="finite numbers"):
            choose_widths(choices, [Budget("macs", limit, constant)])
    with pytest.raises(ValueError, match="finite numbers"):
        choose_widths(choices, [Budget("macs", 5.0, 0.0, {0: np.array([1.0, math.nan])})])


def test_groups_without_candidates_in_order_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        choose_widths([], [])
    with pytest.raises(ValueError, match="Group 1 needs at least one candidate"):
        choose_widths([*choices_of([1.0]), WidthChoices(np.zeros(0, np.int64), np.zeros(0))], [])
    with pytest.raises(ValueError, match="group 0 must ascend"):
        choose_widths([WidthChoices(np.array([2, 1]), np.zeros(2))], [])
    with pytest.raises(ValueError, match="damages must be finite"):
        choose_widths(choices_of([1.0, math.inf]), [])


def table_of(budget: Budget, sizes: Sequence[int]) -> FloatArray:
    """Return the cost of every choice, one axis a group."""
    total = np.full(sizes, budget.constant)
    for axes, table in [*(((g,), own) for g, own in budget.unary.items()), *budget.pairwise.items()]:
        total += table.reshape([size if g in axes else 1 for g, size in enumerate(sizes)])
    return total


@pytest.mark.parametrize("seed", range(30))
def test_choices_that_no_change_of_two_groups_leads_to_are_found(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = [5] * 8
    choices = [WidthChoices(np.arange(1, 6) * random.integers(1, 9), np.sort(random.random(5))[::-1]) for _ in sizes]
    pairs = [(g, g + 1) for g in range(7)] + [(0, 2), (2, 5)]
    tables = [{(g, h): product(choices, g, h, factor) for g, h in pairs} for factor in (1.0, 1e-6)]
    tables[1] |= {pair: 1e-6 * 50 * random.random((5, 5)) for pair in pairs[::2]}
    budgets = [share(Budget(name, 0.0, 0.0, {}, own), choices, 0.45) for name, own in zip("ab", tables, strict=True)]
    damage = table_of(Budget("", 0.0, 0.0, {g: c.damages for g, c in enumerate(choices)}), sizes)
    within = np.logical_and.reduce([table_of(budget, sizes) <= budget.limit for budget in budgets])
    found = choose_widths(choices, budgets, EXACT)
    check_consistent(found, choices, budgets)
    assert found.damage == pytest.approx(damage[within].min(), rel=1e-9)
