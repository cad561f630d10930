"""Targets, widths and selection."""

import numpy as np
import pytest
from graphs import GRAPHS
from hypothesis import given
from hypothesis import strategies as st
from oracle import analysed, check_removal_equals_masking

from oamip_onnx.budget import Target, costs_of, parse_target, plan_widths, uniform_widths
from oamip_onnx.channels import ChannelGroup, select_units
from oamip_onnx.errors import TargetError, UsageError
from oamip_onnx.model import bind_inputs, count_costs, infer_shapes, load_model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", "has no value"),
        ("ratoi=0.5", "'ratoi' is unknown; did you mean 'ratio'"),
        ("ratio=half", "needs a number"),
        ("ratio=1", "out of range"),
        ("ratio=-0.1", "out of range"),
        ("ratio=nan", "out of range"),
        ("macs=0", "out of range"),
        ("params=1.5", "out of range"),
    ],
)
def test_wrong_targets(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_target(text)


def test_target_reads_and_writes() -> None:
    assert parse_target("macs=0.25") == Target("macs", 0.25)
    assert str(parse_target("ratio=0.5")) == "ratio=0.5"


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
    widths = plan_widths(found.model, found.analysis, Target(kind, 0.5))
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
        plan_widths(found.model, found.analysis, Target("macs", 0.001))


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
