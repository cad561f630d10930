"""Labels, engines, decoupling and settings of scores; removal that provably changes nothing."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import oamip
from graphs import Builder, image
from oracle import PLAIN
from scored import (
    IMAGES,
    MODEST,
    PRUNE,
    SCORE,
    convolutional,
    dense,
    found,
    plane_to_plane,
    predictions,
    refused,
    samples_of,
    scores_of,
)

import oamip_onnx
from oamip_onnx.config import make_config
from oamip_onnx.errors import UsageError
from oamip_onnx.runtime import Session
from oamip_onnx.tasks import cluster

# Labels


@pytest.mark.parametrize("form", ["shift", "gate"])
def test_predictions_stand_in_for_labels(form: str) -> None:
    proto = dense()
    predicted = predictions(proto, samples_of(proto))
    bare = scores_of(proto, form=form, images=4)
    labelled = scores_of(proto, predicted, form=form, images=4)
    np.testing.assert_array_equal(bare.values, labelled.values)
    assert not any("wrong" in note for note in bare.notes)
    assert bare.values.max() > bare.values.min()


@pytest.mark.parametrize("form", ["shift", "gate"])
def test_images_that_the_model_gets_wrong_are_counted(form: str) -> None:
    proto = dense()
    x = samples_of(proto, 6)
    labels = predictions(proto, x)
    labels[:2] = (labels[:2] + 1) % 4
    settings = {**MODEST, "form": form, "images": 6, "bench": False}
    result = oamip_onnx.prune(proto, {"x": x}, labels=labels, **settings)
    assert any("The model gets 2 of the 6 images wrong" in note for note in result.report.notes)
    assert result.report.verification.passed
    assert result.report.drift.metric is not None
    assert result.report.drift.metric.original == pytest.approx(4 / 6)
    # Where there are enough right ones, these alone enter.
    fewer = oamip_onnx.prune(proto, {"x": x}, labels=labels, **{**settings, "images": 3})
    assert not any("wrong" in note for note in fewer.report.notes)


@pytest.mark.parametrize("form", ["shift", "gate"])
def test_classes_without_images_are_said(form: str) -> None:
    proto = dense()
    x = samples_of(proto, 200)
    predicted = predictions(proto, x)
    present = np.unique(predicted)
    assert len(present) == 4
    settings = {**MODEST, "form": form, "bench": False}
    few = oamip_onnx.prune(proto, {"x": x}, images=2, **settings)
    assert any(
        "has 2 images, fewer than there are classes (4); 2 of the 4 classes have none" in n for n in few.report.notes
    )
    rest = x[predicted > 1][:20]
    absent = oamip_onnx.prune(proto, {"x": rest}, images=4, **settings)
    assert any("has 4 images; 2 of the 4 classes have none" in note for note in absent.report.notes)


# Engines, workers, cache


def test_engine_that_is_not_installed_is_refused(dense_work: Path) -> None:
    arguments = [*PRUNE, "--set", "form=layerwise", "--set", "solver=mosek"]
    refused(arguments, 2, "The solver 'mosek' is not installed; found: clarabel, ", dense_work)
    refused([*arguments[:-1], "solver=clarabell"], 2, "did you mean 'clarabel'", dense_work)


@pytest.mark.parametrize(("solver", "engine"), [("scs", "SCS "), ("SCS", "SCS "), ("scip", "SCIP ")])
def test_engine_by_name_solves_every_program(dense_work: Path, solver: str, engine: str) -> None:
    arguments = [*PRUNE, "--set", "form=layerwise", "--set", "images=12", "--json", "-"]
    report = found(oamip(*arguments, "--set", f"solver={solver}", cwd=dense_work))
    assert [solve["engine"].startswith(engine) for solve in report["solver"]] == [True, True]
    usual = found(oamip(*arguments, cwd=dense_work))
    assert all(solve["engine"].startswith("CLARABEL") for solve in usual["solver"])
    for one, other in zip(report["solver"], usual["solver"], strict=True):
        assert one["objective"] == pytest.approx(other["objective"], rel=1e-2)


def test_scheduler_that_does_not_answer_is_named(dense_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    arguments = [*SCORE, "--form", "layerwise", "--scheduler", "tcp://127.0.0.1:1", "--no-cache", "--out", "s.json"]
    refused(arguments, 3, "No Dask scheduler answers at 'tcp://127.0.0.1:1'", dense_work)


def test_damaged_cache_is_computed_again(dense_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = dense_work / "cache"
    monkeypatch.setenv("OAMIP_CACHE_DIR", str(cache))
    arguments = [*SCORE, "--form", "layerwise", "--json", "-"]

    def values() -> list[list[float]]:
        return [group["importance"] for group in found(oamip(*arguments, cwd=dense_work))["groups"]]

    first = values()
    entries = sorted(cache.rglob("*.npz"))
    assert len(entries) == 4  # a head and a program for each of two layers
    for number, entry in enumerate(entries):
        whole = entry.read_bytes()
        entry.write_bytes([b"", whole[: len(whole) // 2], bytes(len(whole)), whole[:-200] + bytes(200)][number])
    assert values() == first
    assert all(entry.stat().st_size > 200 for entry in entries)


def test_pool_of_processes_gives_the_same_bits() -> None:
    proto = convolutional()
    here, pool = (
        scores_of(proto, form="layerwise", workers=workers, cache=False, images=20).values for workers in (1, 2)
    )
    np.testing.assert_array_equal(here, pool)
    assert here.max() > here.min()


# Decoupling and heads


@pytest.mark.parametrize("form", ["response", "layerwise", "shift"])
def test_scores_by_class(form: str) -> None:
    proto = dense()
    settings = {"form": form, "target": "threshold=0.2", "images": 20, "loss_weight": 30.0}
    joint, mean, largest = (scores_of(proto, by_class=name, **settings) for name in ("none", "mean", "max"))
    for scores in (joint, mean, largest):
        assert np.isfinite(scores.values).all()
        assert ((scores.values >= 0) & (scores.values <= 1)).all()
    assert (largest.values >= mean.values - 1e-12).all()
    assert (largest.values > mean.values + 1e-3).any()
    assert np.abs(mean.values - joint.values).max() > 1e-3
    assert len(mean.solver) > len(joint.solver)


@pytest.mark.parametrize("by_class", ["mean", "max"])
@pytest.mark.parametrize("form", ["response", "layerwise", "shift"])
def test_pruning_by_class_meets_the_widths(form: str, by_class: str) -> None:
    proto = dense()
    settings = {**MODEST, "form": form, "by_class": by_class, "images": 12, "bench": False}
    result = oamip_onnx.prune(proto, {"x": samples_of(proto)}, **settings)
    assert [group.after for group in result.report.groups] == [4, 4]
    assert result.report.verification.passed


@pytest.mark.parametrize("head", ["linear", "hidden", "pooled"])
@pytest.mark.parametrize("model", [convolutional, plane_to_plane])
def test_heads_score_what_classifies_and_what_does_not(model: Callable[[], onnx.ModelProto], head: str) -> None:
    scores = scores_of(model(), form="layerwise", head=head, images=20)
    assert any(f"{head} head" in note for note in scores.notes)
    assert np.isfinite(scores.values).all()
    assert scores.values.max() > scores.values.min() + 0.1
    assert all(solve.objective is not None for solve in scores.solver)


def test_heads_differ() -> None:
    values = [
        scores_of(convolutional(), form="layerwise", head=head, images=20).values
        for head in ("linear", "hidden", "pooled")
    ]
    for one, other in itertools.combinations(values, 2):
        assert np.abs(one - other).max() > 1e-3


# Lossless removal


def with_proven_units() -> onnx.ModelProto:
    """Return a network over [0, 1]⁴ whose third unit never fires and whose second layer always does."""
    b = Builder(["N", 4], seed=3)
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    # Half of the box on either side, so that the other units are live and not always active.
    bias = -weight.sum(axis=1) / 2
    bias[2] = -50.0
    x = b.add("Relu", b.add("Gemm", "x", b.constant(weight), b.constant(bias), transB=1))
    x = b.add("Relu", b.add("Gemm", x, b.weight(10, 6), b.constant(np.full(10, 9.0, np.float32)), transB=1))
    return b.finish(b.gemm(x, 10, 3))


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Return a folder with a network that has units to prove something about, and samples in its box."""
    onnx.save(with_proven_units(), tmp_path / "model.onnx")
    x = np.random.default_rng(0).uniform(0, 1, (IMAGES, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    return tmp_path


@pytest.mark.parametrize("ranges", [["0,1"], ["x=0,1"], ["x=0,1", "-9,9"], ["-9,9", "x=0,1"]], ids=" ".join)
def test_lossless_pruning_changes_nothing_in_the_box(boxed: Path, ranges: list[str]) -> None:
    given_ranges = [argument for text in ranges for argument in ("--input-range", text)]
    report = found(oamip(*PRUNE, "--lossless", *given_ranges, "--json", "-", cwd=boxed))
    record = report["lossless"]
    assert (record["inactive"], record["always_active"]) == (1, 10)
    assert record["by_interval"] + record["by_linear"] + record["by_integer"] == 11
    assert [merged["units"] for merged in record["merged"]] == [10]
    assert record["merged"][0]["macs_after"] < record["merged"][0]["macs_before"]
    assert (record["undecided"], record["exhausted"]) == (0, False)
    assert record["input_range"] == ranges
    assert report["groups"][0]["kept"] == [0, 1, 3, 4, 5]
    assert report["pruned"]["macs"] < report["original"]["macs"]
    inputs = np.random.default_rng(1).uniform(0, 1, (64, 4)).astype(np.float32)
    inputs[:16] = inputs[:16] > 0.5
    before, after = (
        Session(onnx.load(boxed / name), PLAIN).run({"x": inputs})["y"] for name in ("model.onnx", "out.onnx")
    )
    np.testing.assert_allclose(after, before, atol=1e-5 * float(np.abs(before).max()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lossless"], "needs the range of the input 'x'"),
        (["--input-range", "0,1"], "add --lossless, or leave --input-range out"),
        (["--lossless", "--input-range", "0,inf"], "'0,inf' must have finite ends"),
        (["--lossless", "--input-range", "nan,1"], "'nan,1' must have finite ends"),
        (["--lossless", "--input-range", "1,0"], "'1,0' is empty; write the smaller number first"),
        (["--lossless", "--input-range", "0"], "'0' is not of the form 0,1 or name=0,1"),
        (["--lossless", "--input-range", "0,1,2"], "'0,1,2' is not of the form"),
        (["--lossless", "--input-range", "low,high"], "'low,high' is not of the form"),
        (["--lossless", "--input-range", "z=0,1"], "There is no input 'z'"),
        (["--lossless", "--input-range", "0,1", "--scores", "scores.json"], "needs no scores"),
    ],
)
def test_lossless_settings_that_make_no_sense(boxed: Path, arguments: list[str], message: str) -> None:
    refused([*PRUNE, *arguments], 2, message, boxed)


# Settings, batches and branches


def test_unknown_form_of_a_program_is_refused() -> None:
    with pytest.raises(UsageError, match="'form' does not take 'respons'"):
        make_config({"form": "respons"})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"form": "response", "anchor": 0.5}, "anchor"),
        ({"form": "gate", "reweightings": 2}, "reweightings"),
        ({"preset": "paper", "reweightings": 2}, "reweightings"),
        ({"form": "shift", "tighten_seconds": 1.0}, "tighten_seconds"),
        ({"form": "layerwise", "certificates": True}, "certificates"),
    ],
)
def test_a_setting_that_the_form_does_not_read_is_refused(settings: dict[str, Any], named: str) -> None:
    proto = dense()
    with pytest.raises(UsageError, match=f"setting '{named}' has no effect"):
        oamip_onnx.prune(proto, {"x": samples_of(proto, 20)}, bench=False, **settings)


@pytest.mark.parametrize("form", ["response", "layerwise", "shift", "gate"])
def test_a_fixed_batch_takes_any_number_of_images(form: str) -> None:
    proto = dense()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 16
    data = {"x": samples_of(proto, 64)}
    result = oamip_onnx.prune(proto, data, form=form, images=5, round_to=1, bench=False, cache=False)
    assert result.report.verification.passed


def test_a_branch_that_vanishes_is_scored_to_the_end() -> None:
    b = image(seed=5)
    x = b.add("Relu", b.conv("x", 3, 6))
    y = b.conv(b.add("Relu", b.conv(x, 6, 8)), 8, 6)
    proto = b.finish(b.gemm(b.add("Flatten", b.add("Add", x, y)), 384, 4))
    data = {"x": np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)}
    result = oamip_onnx.prune(proto, data, form="response", target="ratio=0.95", round_to=1, bench=False, cache=False)
    assert 0 in [group.after for group in result.report.groups]


def test_a_named_engine_keeps_binaries_where_it_can() -> None:
    proto = dense()
    settings: dict[str, Any] = {"form": "gate", "images": 2, "binary_scores": True, "cache": False, "bench": False}
    relaxed = oamip_onnx.prune(proto, {"x": samples_of(proto, 20)}, solver="clarabel", **settings)
    assert "relaxed" in relaxed.report.solver[0].advice
    exact = oamip_onnx.prune(proto, {"x": samples_of(proto, 20)}, solver="scip", **settings)
    assert exact.report.solver[0].engine.startswith("SCIP")
