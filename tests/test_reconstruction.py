"""Group optimal brain surgery: costs are those of a refit, and units come back as they went."""

import importlib
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import GRAPHS, Builder, image
from hypothesis import given
from hypothesis import strategies as st
from oracle import analysed
from test_importance import context_of

import oamip_onnx
from oamip_onnx.channels import select_units
from oamip_onnx.importance import CRITERIA, ImportanceContext, MomentStore, score
from oamip_onnx.importance.readers import find_readers
from oamip_onnx.importance.surgeon import LayerState, Reader

FloatArray = npt.NDArray[np.float64]

UNITS, SIZE, OUTPUTS = 5, 2, 3


def layer(seed: int, rows: int = 60) -> tuple[LayerState, FloatArray, FloatArray]:
    """Return a layer of five units with two features each, its features with a column of ones, and its weights."""
    generator = np.random.default_rng(seed)
    width = UNITS * SIZE
    x = np.hstack([generator.normal(size=(rows, width)) @ generator.normal(size=(width, width)), np.ones((rows, 1))])
    weights = np.vstack([generator.normal(size=(width, OUTPUTS)), np.zeros(OUTPUTS)])
    unit_of = np.repeat(np.arange(UNITS), SIZE)
    reader = Reader(0, "x", None, weights, unit_of)  # type: ignore[arg-type]
    return LayerState(reader, x.T @ x), x, weights


def refit_error(state: LayerState, weights: FloatArray, gone: set[int]) -> float:
    """Return the smallest error without some units, from the normal equations themselves."""
    rows = np.arange(len(weights))
    away = np.isin(np.append(state.unit_of, -1), list(gone))
    here = rows[~away]
    change = np.zeros_like(weights)
    change[away] = -weights[away]
    moments = state.moments
    change[here] = np.linalg.solve(moments[np.ix_(here, here)], moments[np.ix_(here, rows[away])] @ weights[away])
    return float(np.trace(change.T @ moments @ change)) / state.energy


@given(st.integers(0, 50), st.sets(st.integers(0, UNITS - 1), max_size=UNITS - 2))
def test_costs_and_gains_are_those_of_a_refit(seed: int, gone: set[int]) -> None:
    state, _, weights = layer(seed)
    for unit in sorted(gone):
        state.remove([unit])
    before = refit_error(state, weights, gone)
    here = [unit for unit in range(UNITS) if unit not in gone]
    np.testing.assert_allclose(
        before + state.costs(here), [refit_error(state, weights, gone | {u}) for u in here], rtol=1e-6, atol=1e-9
    )
    if gone:
        away = sorted(gone)
        fallen = [before - refit_error(state, weights, gone - {u}) for u in away]
        np.testing.assert_allclose(state.gains(away), fallen, rtol=1e-6, atol=1e-9)


def test_a_unit_comes_back_as_it_went() -> None:
    state, _, _ = layer(7)
    state.remove([3])
    inverse, weights = state.inverse.copy(), state.weights.copy()
    state.remove([1])
    assert not state.inverse[2:4].any()
    assert not state.weights[2:4].any()
    state.restore(1)
    np.testing.assert_allclose(state.inverse, inverse, atol=1e-9 * np.abs(inverse).max())
    np.testing.assert_allclose(state.weights, weights, atol=1e-9)


def test_the_error_is_relative_to_the_outputs_energy_about_their_mean() -> None:
    state, x, weights = layer(2)
    y = x @ weights
    assert state.energy == pytest.approx(((y - y.mean(axis=0)) ** 2).sum())


def test_a_copy_of_a_channel_goes_first() -> None:
    b = image(seed=4)
    hidden = b.conv("x", 3, 6)
    kernels = next(t for t in b.constants if t.name == b.nodes[-1].input[1])
    values = onnx.numpy_helper.to_array(kernels).copy()
    bias = next(t for t in b.constants if t.name == b.nodes[-1].input[2])
    shift = onnx.numpy_helper.to_array(bias).copy()
    values[5], shift[5] = 2 * values[2], 2 * shift[2]  # the same channel twice as large
    kernels.CopyFrom(onnx.numpy_helper.from_array(values, kernels.name))
    bias.CopyFrom(onnx.numpy_helper.from_array(shift, bias.name))
    proto = b.finish(b.gemm(b.add("Flatten", b.add("Relu", hidden)), 6 * 64, 5))
    context = context_of(analysed(proto), count=400, share=5 / 6)
    found = score("reconstruction", context)
    assert int(np.argmin(found.values)) in {2, 5}
    assert found.values.min() < 0.5 <= np.sort(found.values)[1]


def subset_error(context: ImportanceContext, kept: npt.NDArray[np.bool_]) -> float:
    """Return the error of the layer behind a single group, refit on its features in numpy."""
    from oamip_onnx.importance.moments import gather_moments
    from oamip_onnx.importance.readers import find_readers

    readers, _ = find_readers(context)
    (moments,) = gather_moments(
        context.model, context.analysis.types, readers, context.samples, context.options, context.seed
    )
    state = LayerState(readers[0], moments)
    return refit_error(state, readers[0].matrix, set(np.flatnonzero(~kept).tolist()))


def test_exchanges_end_near_the_best_subset() -> None:
    b = Builder(["N", 10], seed=9)
    proto = b.finish(b.gemm(b.add("Relu", b.gemm("x", 10, 8)), 8, 4))
    context = context_of(analysed(proto), count=200, share=0.5)
    kept = select_units(context.analysis, [4], score("reconstruction", context).values)
    errors = []
    for chosen in combinations(range(8), 4):
        mask = np.zeros(8, dtype=np.bool_)
        mask[list(chosen)] = True
        errors.append(subset_error(context, mask))
    own = subset_error(context, kept)
    # No single exchange improves a local optimum; the best of all 70 subsets is at most a little below.
    assert own <= 1.1 * min(errors)


@pytest.mark.parametrize(
    "name",
    [
        "residual",
        "concat_branches",
        "conv_grouped",
        "shared_weight",
        "attention_heads",
        "split_halves",
        "lstm_between_layers",
    ],
)
def test_every_kind_of_graph_gets_finite_scores_that_keep_the_planned_widths(name: str) -> None:
    context = context_of(analysed(GRAPHS[name]()), count=16)
    found = score("reconstruction", context)
    assert np.isfinite(found.values).all()
    kept = select_units(context.analysis, context.widths or (), found.values)
    # What stays is what the elimination left.
    for group, width in zip(context.analysis.groups, context.widths or (), strict=True):
        assert int(kept[group.units].sum()) == width
        assert (found.values[group.units][kept[group.units]] >= 0.5).all()


def test_layers_without_a_closed_form_are_named() -> None:
    found = score("reconstruction", context_of(analysed(GRAPHS["lstm_between_layers"]()), count=16))
    assert any("no closed form" in note for note in found.notes)


def test_repeatable() -> None:
    first, second = (score("reconstruction", context_of(analysed(GRAPHS["residual"]()))).values for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert "reconstruction" in CRITERIA


def test_auto_is_the_reconstruction_where_weights_are_refit(work: Path) -> None:
    result = oamip_onnx.prune(work / "model.onnx", work / "data.npz", round_to=1, bench=False)
    assert result.report.importance == "reconstruction"


def test_auto_takes_what_the_repair_makes_most_of(work: Path) -> None:
    result = oamip_onnx.prune(work / "model.onnx", work / "data.npz", round_to=1, bench=False, repair="bias")
    (reason,) = (note for note in result.report.notes if note.startswith("Of the criteria"))
    losses = [float(number) for number in re.findall(r"\d\.\d{4}", reason)]
    assert losses[0] == min(losses)
    chosen = "reconstruction" if "the reconstruction gave" in reason else "oamip"
    assert result.report.importance.startswith(chosen)


def test_auto_is_oamip_where_a_refit_says_nothing(work: Path) -> None:
    arguments = {"round_to": 1, "bench": False}
    for settings in ({"repair": "none"}, {"form": "layerwise"}, {"target": "threshold=0.2"}):
        result = oamip_onnx.prune(work / "model.onnx", work / "data.npz", **arguments, **settings)
        assert result.report.importance.startswith("oamip ("), settings
        assert not any(note.startswith("Of the criteria") for note in result.report.notes)


def test_layers_that_are_too_wide_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("oamip_onnx.importance.readers")
    context = context_of(analysed(GRAPHS["residual"]()))
    monkeypatch.setattr(module, "LARGEST_READER", 60)
    found = score("reconstruction", context)
    assert any("do not count in the reconstruction error" in note for note in found.notes)
    assert np.isfinite(found.values).all()


def test_passes_over_the_samples_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("oamip_onnx.importance.readers")
    context = context_of(analysed(GRAPHS["concat_branches"]()))
    at_once = score("reconstruction", context).values
    monkeypatch.setattr(module, "_PASS_BYTES", 1)
    np.testing.assert_array_equal(score("reconstruction", context).values, at_once)


def test_moments_that_are_kept_are_those_that_are_gathered() -> None:
    context = context_of(analysed(GRAPHS["concat_branches"]()))
    plain = score("reconstruction", context).values
    store = MomentStore(1 << 20)
    keeping = replace(context, moments=store)
    first, again = (score("reconstruction", keeping).values for _ in range(2))
    np.testing.assert_array_equal(first, plain)
    np.testing.assert_array_equal(again, plain)
    readers, _ = find_readers(context)
    assert all(store.get(reader) is not None for reader in readers)
    assert MomentStore(0).get(readers[0]) is None


def same_samples() -> dict[str, npt.NDArray[np.float32]]:
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8))
    return {"x": np.repeat(1e3 * x, 6, axis=0).astype(np.float32)}


def test_samples_that_are_all_the_same_give_finite_scores(work: Path) -> None:
    result = oamip_onnx.prune(work / "model.onnx", same_samples(), importance="reconstruction", round_to=1, bench=False)
    assert all(np.isfinite(group.importance).all() for group in result.report.groups)
