"""Targets, widths, costs by width and selection."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from graphs import GRAPHS
from hypothesis import given
from hypothesis import strategies as st
from oracle import Analysed, analysed, check_removal_equals_masking

from oamip_onnx.budget import (
    CostCounter,
    WidthPolynomial,
    candidate_widths,
    costs_of,
    parse_target,
    plan_widths,
    total,
    uniform_widths,
)
from oamip_onnx.budget.target import Limit
from oamip_onnx.budget.widths import first_units
from oamip_onnx.channels import ChannelGroup, select_units
from oamip_onnx.errors import TargetError, UsageError
from oamip_onnx.model import bind_inputs, count_costs, infer_shapes, load_model


def planned(found: Analysed, text: str, round_to: int = 1) -> tuple[int, ...]:
    """Return the uniform widths for a target of counted costs."""

    def costs(widths: Sequence[int]) -> dict[str, float]:
        after = costs_of(found.model, found.analysis, first_units(found.analysis, widths))
        return {"macs": after.macs, "params": after.parameters}

    whole = costs([group.width for group in found.analysis.groups])
    return plan_widths(found.analysis.groups, parse_target(text), costs, whole, round_to)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", "'0.5' has no value"),
        ("ratoi=0.5", "'ratoi' is unknown; did you mean 'ratio'"),
        ("ratio=half", "needs a number"),
        ("macs=", "needs a number"),
        ("ratio=1", "out of range; it must hold 0 ≤ ratio < 1"),
        ("ratio=-0.1", "out of range"),
        ("ratio=nan", "out of range"),
        ("ratio=50%", "unknown unit '%'; ratio has none"),
        ("macs=0", "out of range"),
        ("macs=0M", "out of range"),
        ("macs=-5M", "out of range"),
        ("macs=inf", "out of range"),
        ("macs=1e400M", "out of range"),
        ("params=1.5", "out of range.*the share left.*such as params=1.5M"),
        ("params=2.0", "out of range"),
        ("macs=5m", "unknown unit 'm'; known: k, M, G, T"),
        ("latency=8", "out of range.*a time such as latency=8ms"),
        ("latency=8min", "unknown unit 'min'.*known: us, ms, s"),
        ("size=4000000", "out of range.*a size such as size=4MB"),
        ("size=4mb", "unknown unit 'mb'.*known: B, KB, MB, GB, KiB, MiB, GiB"),
        ("max-drop=1", "out of range; it must hold 0 ≤ max-drop < 1"),
        ("max_drop=0.1", "did you mean 'max-drop'"),
        ("ratio=0.5,macs=0.5", "combines ratio with others; ratio, threshold and max-drop stand alone"),
        ("macs=0.5,max-drop=0.01", "combines max-drop with others"),
        ("threshold=auto,macs=0.5", "combines threshold with others"),
        ("macs=0.5,macs=200M", "limits macs twice"),
        ("macs=0.5,", "'macs=0.5,' has an empty part"),
        ("macs=0.5,latency", "'latency' has no value"),
    ],
)
def test_wrong_targets(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "kind", "value", "is_share"),
    [
        ("ratio=0.5", "ratio", 0.5, False),
        ("threshold=0.2", "threshold", 0.2, False),
        ("max-drop=0", "max-drop", 0.0, False),
        ("max-drop=0.01", "max-drop", 0.01, False),
        ("macs=0.25", "macs", 0.25, True),
        ("macs=1", "macs", 1.0, True),
        ("macs=1k", "macs", 1e3, False),
        ("macs=250M", "macs", 250e6, False),
        ("macs=1.2G", "macs", 1.2e9, False),
        ("macs=300000000", "macs", 3e8, False),
        ("params=1.5M", "params", 1.5e6, False),
        ("latency=0.5", "latency", 0.5, True),
        ("latency=8ms", "latency", 8.0, False),
        ("latency=500us", "latency", 0.5, False),
        ("latency=0.01s", "latency", 10.0, False),
        ("size=0.3", "size", 0.3, True),
        ("size=100B", "size", 100.0, False),
        ("size=4KB", "size", 4e3, False),
        ("size=4MB", "size", 4e6, False),
        ("size=1.005GB", "size", 1.005e9, False),
        ("size=4KiB", "size", 4096.0, False),
        ("size=4MiB", "size", 4.0 * 2**20, False),
        ("size=2GiB", "size", 2.0**31, False),
    ],
)
def test_target_reads_and_writes(text: str, kind: str, value: float, is_share: bool) -> None:  # noqa: FBT001
    target = parse_target(text)
    (limit,) = target.limits
    assert (limit.kind, limit.value, limit.is_share) == (kind, value, is_share)
    assert (target.kind, target.value) == (kind, value)
    assert str(target) == text


def test_the_papers_threshold_has_no_number() -> None:
    target = parse_target("threshold=auto")
    assert target.kind == "threshold"
    assert np.isnan(target.value)
    assert str(target) == "threshold=auto"


def test_spaces_around_the_parts_of_a_target_are_no_matter() -> None:
    assert parse_target(" macs = 0.5 , latency = 8 ms ") == parse_target("macs=0.5,latency=8ms")


def test_a_target_of_several_limits() -> None:
    target = parse_target("macs=0.5,latency=8ms,size=4MiB")
    assert target.limits == (Limit("macs", 0.5, is_share=True), Limit("latency", 8.0, unit="ms"), *target.limits[2:])
    assert str(target.limits[2]) == "size=4MiB"
    assert str(target) == "macs=0.5,latency=8ms,size=4MiB"
    assert target.kind == "several"
    assert np.isnan(target.value)


def test_a_share_of_a_count_is_exact() -> None:
    # The product of the floats is less than 29.
    assert parse_target("macs=0.29").limits[0].absolute(100) == 29
    assert parse_target("macs=250M").limits[0].absolute(10**9) == 250 * 10**6


@pytest.mark.parametrize(
    ("text", "cost", "shown"),
    [
        ("macs=0.5", 3e8, "0.300"),
        ("macs=250M", 251_234_567.0, "251.3M"),
        ("macs=250M", 1_234_567_890.0, "1235M"),
        ("params=1000", 1234.0, "1234"),
        ("latency=8ms", 8.5, "8.500ms"),
        ("size=4KiB", 5000.0, "4.883KiB"),
        ("size=4MB", 0.0, "0MB"),
    ],
)
def test_costs_are_written_in_the_unit_of_the_limit(text: str, cost: float, shown: str) -> None:
    assert parse_target(text).limits[0].shown(cost, 1e9) == shown


def _group(width: int, blocks: int = 1) -> ChannelGroup:
    numbers = None if blocks == 1 else np.arange(width) // (width // blocks)
    return ChannelGroup("g", (), 0, width, numbers, minimum_width=blocks)


@pytest.mark.parametrize(
    ("width", "ratio", "round_to", "expected"),
    [
        (6, 0.4, 1, 4),
        (6, 0.5, 8, 3),
        (16, 0.5, 8, 8),
        (120, 0.5, 8, 64),
        (64, 0.3, 8, 48),
        (5, 0.99, 1, 1),
        (5, 0, 1, 5),
    ],
)
def test_uniform_widths(width: int, ratio: float, round_to: int, expected: int) -> None:
    assert uniform_widths([_group(width)], ratio, round_to) == (expected,)


@given(st.integers(1, 64), st.sampled_from([1, 2, 4]), st.floats(0, 0.999), st.sampled_from([1, 4, 8, 16]))
def test_widths_respect_limits(per_block: int, blocks: int, ratio: float, round_to: int) -> None:
    group = _group(per_block * blocks, blocks)
    (width,) = uniform_widths([group], ratio, round_to)
    assert group.minimum_width <= width <= group.width
    assert width % blocks == 0


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_cost_targets_are_met_by_the_real_model(kind: str) -> None:
    found = analysed(GRAPHS["residual"]())
    widths = planned(found, f"{kind}=0.5")
    kept = select_units(found.analysis, widths, np.arange(found.analysis.unit_count, dtype=np.float64))
    narrow = load_model(check_removal_equals_masking(found, kept))
    after = count_costs(narrow, infer_shapes(narrow, bind_inputs(narrow)))
    predicted = costs_of(found.model, found.analysis, kept)
    assert (after.macs, after.parameters) == (predicted.macs, predicted.parameters)
    full = count_costs(found.model, found.analysis.types)
    share = after.macs / full.macs if kind == "macs" else after.parameters / full.parameters
    assert 0.3 < share <= 0.5


def test_unreachable_target_names_the_smallest() -> None:
    found = analysed(GRAPHS["residual"]())
    with pytest.raises(TargetError, match=r"macs=0\.001 cannot be reached; the smallest possible is 0\.\d+"):
        planned(found, "macs=0.001")


def test_limits_in_operations_are_those_in_shares() -> None:
    found = analysed(GRAPHS["residual"]())
    full = count_costs(found.model, found.analysis.types)
    for kind, whole in (("macs", full.macs), ("params", full.parameters)):
        share = planned(found, f"{kind}=0.5")
        assert planned(found, f"{kind}={whole // 2}") == share


@pytest.mark.parametrize(("macs", "params"), [(0.3, 0.9), (0.9, 0.3), (0.6, 0.6)])
def test_several_limits_are_all_met_and_no_narrower_than_the_tighter_asks(macs: float, params: float) -> None:
    found = analysed(GRAPHS["residual"]())
    both, *alone = (
        planned(found, text) for text in (f"macs={macs},params={params}", f"macs={macs}", f"params={params}")
    )
    assert both == min(alone)
    after, full = (
        costs_of(found.model, found.analysis, first_units(found.analysis, widths))
        for widths in (both, tuple(group.width for group in found.analysis.groups))
    )
    assert after.macs <= macs * full.macs
    assert after.parameters <= params * full.parameters


def test_unreachable_limits_name_the_smallest_in_the_users_unit() -> None:
    found = analysed(GRAPHS["residual"]())
    narrowest = uniform_widths(found.analysis.groups, 0.999)
    least = costs_of(found.model, found.analysis, first_units(found.analysis, narrowest)).macs
    with pytest.raises(TargetError, match=rf"target macs=2 cannot be reached; the smallest possible is {least}\."):
        planned(found, "params=0.9,macs=2")
    with pytest.raises(TargetError, match=r"target macs=0\.002k cannot be.* is \d\.\d{3}k, and --round-to 1 reaches"):
        planned(found, "macs=0.002k", round_to=2)


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_polynomials_are_the_counted_costs(name: str) -> None:
    found = analysed(GRAPHS[name]())
    counter, generator = CostCounter(found.model, found.analysis), np.random.default_rng(0)
    macs, parameters = total(counter.macs_by_node().values()), counter.parameters()
    for _ in range(3):
        widths = [
            int(generator.integers(1, g.width // g.block_count + 1)) * g.block_count for g in found.analysis.groups
        ]
        expected = costs_of(found.model, found.analysis, first_units(found.analysis, widths))
        assert macs(widths) == pytest.approx(expected.macs, rel=1e-9)
        assert parameters(widths) == pytest.approx(expected.parameters, rel=1e-9)


def test_tables_sum_to_the_polynomial() -> None:
    cost = WidthPolynomial(7.0, {0: 2.0, 2: 3.0}, {(0, 1): 0.5, (1, 1): 0.25})
    candidates = [np.array([1, 4]), np.array([2, 3, 5]), np.array([6])]
    budget = cost.budget("macs", 10.0, candidates)
    for positions in itertools.product(*(range(len(c)) for c in candidates)):
        widths = [int(c[p]) for c, p in zip(candidates, positions, strict=True)]
        assert budget.cost(positions) == pytest.approx(cost(widths), rel=1e-12)
    assert (cost + cost)([1, 2, 3]) == pytest.approx(2 * cost([1, 2, 3]))
    assert (cost * 3)([1, 2, 3]) == pytest.approx(3 * cost([1, 2, 3]))


@given(st.integers(1, 300), st.integers(1, 16), st.integers(0, 8))
def test_candidates_are_aligned_and_within_the_group(width: int, round_to: int, minimum: int) -> None:
    group = ChannelGroup("g", ("g",), 0, width, minimum_width=min(minimum, width))
    (candidates,) = candidate_widths([group], round_to)
    assert (np.diff(candidates) > 0).all()
    assert candidates[-1] == width
    assert len(candidates) <= 34
    assert candidates[0] >= group.minimum_width
    inner = candidates[(candidates > group.minimum_width) & (candidates < width)]
    assert width < 2 * round_to or (inner % round_to == 0).all()


def test_selection_takes_the_highest_of_each_block() -> None:
    found = analysed(GRAPHS["conv_grouped"]())
    scores = np.random.default_rng(0).normal(size=found.analysis.unit_count)
    widths = uniform_widths(found.analysis.groups, 0.5)
    kept = select_units(found.analysis, widths, scores)
    for group, width in zip(found.analysis.groups, widths, strict=True):
        own, values = kept[group.units], scores[group.units]
        assert own.sum() == width
        blocks = np.zeros(group.width, dtype=np.int64) if group.blocks is None else group.blocks
        for block in np.unique(blocks):
            inside = blocks == block
            assert own[inside].sum() == width // group.block_count
            assert values[inside & own].min() >= values[inside & ~own].max()


def test_scores_must_be_finite() -> None:
    found = analysed(GRAPHS["residual"]())
    with pytest.raises(ValueError, match="finite"):
        select_units(found.analysis, (3, 4), np.full(found.analysis.unit_count, np.nan))


@pytest.mark.parametrize(
    ("width", "round_to", "multiple"),
    [(64, 16, 16), (32, 16, 16), (31, 16, 8), (16, 16, 8), (15, 16, 1), (40, 32, 16), (16, 8, 8), (15, 8, 1)],
)
def test_narrow_groups_take_a_smaller_multiple_and_the_narrowest_any(width: int, round_to: int, multiple: int) -> None:
    (candidates,) = candidate_widths([ChannelGroup("g", ("g",), 0, width, minimum_width=1)], round_to)
    steps = np.diff(candidates[:-1] if width % multiple else candidates)
    assert set(steps.tolist()) == {multiple}
    for ratio in (0.1, 0.3, 0.5, 0.8):
        (kept,) = uniform_widths([ChannelGroup("g", ("g",), 0, width, minimum_width=1)], ratio, round_to)
        assert kept % multiple == 0 or kept == width
