"""Removal equals masking on whole random graphs.

The default run draws `DEFAULT_EXAMPLES` graphs, the same ones each time; `make test-slow` draws as many as the
environment variable `OAMIP_EXAMPLES` says (2000 unless it is set):

    OAMIP_EXAMPLES=5000 python -m pytest tests/test_random_graphs.py -m slow

A run also counts what its graphs held, and fails if they are too poor: see `Tally`.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import PLAIN, VISIBLE, Analysed, analysed, relative
from random_graphs import BLOCKS, RandomGraph, dependence, random_graphs, samples

from oamip_onnx.budget import costs_of, uniform_widths
from oamip_onnx.channels import FIXED, BoolArray, ChannelAnalysis, IntArray, lookup, select_units
from oamip_onnx.channels.labels import axes_of
from oamip_onnx.channels.rules import Family, find_rule
from oamip_onnx.masking import MaskedSession
from oamip_onnx.model import bind_inputs, count_costs, infer_shapes, load_model
from oamip_onnx.runtime import Session
from oamip_onnx.surgery import cut

DEFAULT_EXAMPLES = 200
EXAMPLES_PER_BLOCK = 10
SLOW_EXAMPLES = int(os.environ.get("OAMIP_EXAMPLES", "2000"))

# What the requirement asks of 2000 graphs: each family between removed channels and their consumer at least 50 times.
FAMILIES = (Family.CONTRACTION, Family.BROADCAST, Family.MOVEMENT, Family.REDUCTION)
FAMILY_SHARE = 50 / 2000
REMOVING_SHARE = 0.8
INVISIBLE_SHARE = 0.02

# One rounding of float32 grows by the root of the number of terms, and of layers in a row (1000 and 10 at most), and
# tenfold where a normalisation divides by the smallest deviation, the root of its epsilon.
TOLERANCE = 10 * math.sqrt(1000 * 10) * 2.0**-24


@dataclass
class Tally:
    """What the graphs of a run held.

    Attributes
    ----------
    examples
        How many graphs were drawn.
    removing
        In how many something was removed that the outputs show.
    invisible
        In how many the outputs do not show what was removed: the units were dead, or a slice drops what reads them.
    families
        For each family, in how many a node of it took narrowed channels in and gave narrowed channels out.
    blocks
        In how many each block was drawn.
    """

    examples: int = 0
    removing: int = 0
    invisible: int = 0
    families: Counter[Family] = field(default_factory=Counter)
    blocks: Counter[str] = field(default_factory=Counter)

    def add(self, drawn: RandomGraph, found: Analysed, kept: BoolArray, *, visible: bool) -> None:
        """Count one graph."""
        self.examples += 1
        self.removing += visible
        self.invisible += not visible and not kept.all()
        self.families.update(_families_between(found, kept) if visible else ())
        self.blocks.update(set(drawn.blocks))

    def check(self) -> None:
        """Assert that the graphs were rich enough."""
        assert self.removing >= REMOVING_SHARE * self.examples, self
        assert self.invisible <= INVISIBLE_SHARE * self.examples, self
        for family in FAMILIES:
            assert self.families[family] >= FAMILY_SHARE * self.examples, self


def _families_between(found: Analysed, kept: BoolArray) -> set[Family]:
    """Return the families of the nodes that lie between a producer of removed channels and a consumer."""
    model, labels = found.model, found.analysis.labels

    def loses(name: str) -> bool:
        return name in labels and not labels[name].alive(kept).all()

    families = set()
    for node in model.graph.node:
        row = find_rule(node, model.opsets[""])
        entering = any(loses(name) for name in node.input if not model.is_constant(name))
        if row is not None and entering and any(loses(name) for name in node.output):
            families.add(row.family)
    return families


def with_channels(model: onnx.ModelProto, seed: int) -> Analysed:
    """Return a model with its channels; attention loses whole heads, or dimensions of every head."""
    return analysed(model, heads=("whole", "dimension")[seed % 2])


def kept_units(analysis: ChannelAnalysis, seed: int, least: int = 0) -> BoolArray:
    """Return random units that stay: of each group a share of its own, equally many a block, `least` a block."""
    generator = np.random.default_rng(seed)
    widths = []
    for group in analysis.groups:
        block = group.width // group.block_count
        fewest = max(-(-group.minimum_width // group.block_count), min(least, block))
        widths.append(int(np.clip(round(block * generator.uniform(0, 0.9)), fewest, block)) * group.block_count)
    return select_units(analysis, widths, generator.random(analysis.unit_count))


def check_removal(drawn: RandomGraph, seed: int, tally: Tally) -> None:
    """Assert that cutting equals masking and costs what was said; count what the graph held."""
    before = drawn.model.SerializeToString(deterministic=True)
    found = with_channels(drawn.model, seed)
    model, analysis = found.model, found.analysis
    kept = kept_units(analysis, seed)
    narrow = cut(model, analysis, kept)
    assert drawn.model.SerializeToString(deterministic=True) == before, "the input was modified"
    onnx.checker.check_model(narrow, full_check=True)
    assert list(narrow.graph.input) == list(drawn.model.graph.input)
    assert list(narrow.graph.output) == list(drawn.model.graph.output)
    masked, session = MaskedSession(model, analysis, PLAIN), Session(narrow, PLAIN)
    everything = np.ones(analysis.unit_count, dtype=np.bool_)
    feeds = samples(model.proto, seed)
    original, full, less, got = (
        Session(drawn.model, PLAIN).run(feeds),
        masked.run(feeds, everything),
        masked.run(feeds, kept),
        session.run(feeds),
    )
    for name in model.output_names:
        assert got[name].shape == less[name].shape
        assert relative(got[name], less[name]) <= TOLERANCE
        assert relative(full[name], original[name]) <= TOLERANCE
        assert dependence(original[name]) > VISIBLE, "the output does not depend on the input"
    check_costs(found, kept)
    visible = any(relative(less[name], full[name]) > VISIBLE for name in full)
    tally.add(drawn, found, kept, visible=visible)


def check_costs(found: Analysed, kept: BoolArray) -> None:
    """Assert that the costs counted without cutting are those of the cut model."""
    expected = costs_of(found.model, found.analysis, kept)
    narrow = load_model(cut(found.model, found.analysis, kept))
    got = count_costs(narrow, infer_shapes(narrow, bind_inputs(narrow)))
    assert (got.macs, got.parameters) == (expected.macs, expected.parameters)


def check_uniform_widths(found: Analysed, ratio: float, round_to: int) -> None:
    """Assert that planned widths can be cut, and are what is cut."""
    groups = found.analysis.groups
    widths = uniform_widths(groups, ratio, round_to)
    scores = np.random.default_rng(0).random(found.analysis.unit_count)
    kept = select_units(found.analysis, widths, scores)
    for group, width in zip(groups, widths, strict=True):
        assert group.minimum_width <= width <= group.width
        assert kept[group.units].sum() == width
    Session(cut(found.model, found.analysis, kept), PLAIN).run(samples(found.model.proto, 0))
    check_costs(found, kept)


def check_nothing_changes(found: Analysed) -> None:
    """Assert that nothing changes when nothing is pruned."""
    same = cut(found.model, found.analysis, np.ones(found.analysis.unit_count, dtype=np.bool_))
    assert list(same.graph.node) == list(found.model.graph.node)
    used = found.model.uses
    left, right = (
        {t.name: t.SerializeToString() for t in graph.initializer if t.name in used}
        for graph in (found.model.graph, same.graph)
    )
    assert left == right


def _old_numbers(before: ChannelAnalysis, kept: BoolArray, after: ChannelAnalysis) -> IntArray:
    """Return the number that each unit of the cut model had, read off the channels of every tensor."""
    numbers = np.full(after.unit_count, FIXED, dtype=np.int64)
    for name, labels in after.labels.items():
        for factor in labels.factors:
            axes = axes_of(factor)
            wide = before.labels[name].factor_over(min(axes)) if name in before.labels else None
            if wide is not None and len(axes) == 1 and axes_of(wide) == axes:
                old, new = wide[lookup(kept, wide)], factor.ravel()
                numbers[new[new != FIXED]] = old[new != FIXED]
    assert sorted(numbers) == list(np.flatnonzero(kept))
    return numbers


def check_twice(found: Analysed, seed: int) -> None:
    """Assert that cutting twice equals cutting the union.

    Two units a block stay in the first cut: a single channel is no longer an axis that could be narrowed.
    """
    once = kept_units(found.analysis, seed, least=2)
    middle = with_channels(cut(found.model, found.analysis, once), seed)
    assert middle.analysis.unit_count == once.sum()
    again = kept_units(middle.analysis, seed + 1)
    union = np.zeros_like(once)
    union[_old_numbers(found.analysis, once, middle.analysis)[again]] = True
    twice, at_once = cut(middle.model, middle.analysis, again), cut(found.model, found.analysis, union)
    left, right = (
        {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer if not t.name.startswith("oamip_")}
        for m in (twice, at_once)
    )
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert np.array_equal(values, right[name]), name
    feeds = samples(found.model.proto, seed)
    expected, got = Session(at_once, PLAIN).run(feeds), Session(twice, PLAIN).run(feeds)
    for name, values in expected.items():
        assert np.array_equal(got[name], values)


def run_examples(count: int, check: Callable[[RandomGraph, int], None], only: Sequence[str] = ()) -> None:
    """Check that many random graphs, the same ones in every run."""

    @settings(max_examples=count, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
    @given(random_graphs(only=only), st.integers(0, 2**16))
    def drawn(graph: RandomGraph, seed: int) -> None:
        check(graph, seed)

    drawn()


def removal_equals_masking(count: int) -> None:
    """Check the main property on that many graphs, and that they were rich enough."""
    tally = Tally()

    def check(drawn: RandomGraph, seed: int) -> None:
        check_removal(drawn, seed, tally)

    run_examples(count, check)
    tally.check()


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str) -> None:
    """Each block by itself, with operators of its family between removed channels and their consumer."""
    tally = Tally()

    def check(drawn: RandomGraph, seed: int) -> None:
        check_removal(drawn, seed, tally)

    run_examples(EXAMPLES_PER_BLOCK, check, [name])
    assert BLOCKS[name].pins or tally.families[BLOCKS[name].family] > 0, tally


def further_properties(count: int) -> None:
    """Check the properties of repeated, planned and empty removal on that many graphs."""

    def check(drawn: RandomGraph, seed: int) -> None:
        found = with_channels(drawn.model, seed)
        check_nothing_changes(found)
        check_twice(found, seed)
        check_uniform_widths(found, ratio=seed % 100 / 100, round_to=(1, 4, 8)[seed % 3])

    run_examples(count, check)


def test_removal_equals_masking() -> None:
    removal_equals_masking(DEFAULT_EXAMPLES)


def test_repeated_planned_and_empty_removal() -> None:
    further_properties(DEFAULT_EXAMPLES // 3)


@pytest.mark.slow
def test_removal_equals_masking_on_many_graphs() -> None:
    removal_equals_masking(SLOW_EXAMPLES)


@pytest.mark.slow
def test_repeated_planned_and_empty_removal_on_many_graphs() -> None:
    further_properties(SLOW_EXAMPLES // 3)
