"""The main job end to end, on the shipped networks."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import GRAPHS, head, image
from oracle import feeds_for, relative

import oamip_onnx
from oamip_onnx import pipeline
from oamip_onnx.calibration import Samples, load_samples
from oamip_onnx.cli.main import run
from oamip_onnx.errors import DataError, VerificationError
from oamip_onnx.model import load_model
from oamip_onnx.repair import REPAIRS
from oamip_onnx.runtime import Session

NETWORKS = ["lenet5", "resnet8"]


def draw(fashion: Path, name: str, seed: int, count: int = 1000) -> Samples:
    """Return unlabelled calibration images, drawn with replacement, so that every draw differs."""
    samples = load_samples(fashion / "calibration.npz", load_model(fashion / f"{name}.onnx"))
    rows = np.random.default_rng(seed).choice(samples.count, count, replace=True)
    return Samples({key: values[rows] for key, values in samples.feeds.items()})


def accuracy(result: oamip_onnx.PruneResult) -> float:
    """Return the pruned model's accuracy."""
    assert result.report.drift.metric is not None
    return result.report.drift.metric.pruned


@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_networks_keep_what_their_readme_says(fashion: Path, name: str) -> None:
    model = load_model(fashion / f"{name}.onnx")
    test = load_samples(fashion / "test.npz", model)
    calibration = load_samples(fashion / "calibration.npz", model)
    assert (calibration.count, test.count) == (1000, 2000)
    predicted = Session(model.proto).run(test.feeds)["y"].argmax(axis=1)
    expected = {"lenet5": 0.903, "resnet8": 0.918}[name]
    assert (predicted == test.labels).mean() == pytest.approx(expected, abs=0.002)
    assert sum(p.stat().st_size for p in fashion.iterdir() if p.is_file()) < 4e6


@pytest.mark.parametrize("importance", ["magnitude", "random"])
@pytest.mark.parametrize("name", NETWORKS)
def test_repair_gains_accuracy_and_the_oracle_holds(fashion: Path, name: str, importance: str) -> None:
    def pruned(repair: str) -> oamip_onnx.PruneResult:
        return oamip_onnx.prune(
            fashion / f"{name}.onnx",
            fashion / "calibration.npz",
            evaluation=fashion / "test.npz",
            target="ratio=0.3",
            importance=importance,
            repair=repair,
            threads=1,
            bench=False,
        )

    bare, repaired = pruned("none"), pruned("least-squares")
    for result in (bare, repaired):
        assert result.report.verification.passed
        assert result.report.verification.max_rel_error <= 1e-4
        assert result.report.pruned.macs < 0.6 * result.report.original.macs
        onnx.checker.check_model(result.model, full_check=True)
    assert accuracy(repaired) > accuracy(bare)


def test_residual_sums_share_their_channels(fashion: Path) -> None:
    result = oamip_onnx.prune(
        fashion / "resnet8.onnx",
        fashion / "calibration.npz",
        target="ratio=0.3",
        importance="magnitude",
        round_to=1,
        bench=False,
    )
    streams = [g for g in result.report.groups if len(g.tensors) > 1]
    assert len(streams) == 3
    assert [(g.before, g.after) for g in streams] == [(16, 11), (32, 22), (64, 45)]


def test_half_of_lenet_keeps_its_accuracy(fashion: Path) -> None:
    result = oamip_onnx.prune(
        fashion / "lenet5.onnx",
        fashion / "calibration.npz",
        evaluation=fashion / "test.npz",
        target="ratio=0.5",
        importance="oamip",
        round_to=1,
        threads=1,
        bench=False,
    )
    # Whichever form the repair makes most of.
    assert result.report.importance in {"oamip (response)", "oamip (layerwise)"}
    (reason,) = (note for note in result.report.notes if "gave the scores: after the repair" in note)
    losses = [float(number) for number in re.findall(r"0\.\d{4}", reason)]
    assert losses[0] == min(losses)
    assert accuracy(result) >= 0.86
    assert result.report.pruned.macs <= 0.4 * result.report.original.macs
    assert all(s.status in {"optimal", "optimal_inaccurate"} for s in result.report.solver)
    assert result.report.seconds["score"] < 120


@pytest.mark.slow
def test_oamip_beats_chance_without_repair(fashion: Path) -> None:
    accuracies: dict[str, list[float]] = {"oamip": [], "random": []}
    for importance, found in accuracies.items():
        for seed in range(3):
            result = oamip_onnx.prune(
                fashion / "lenet5.onnx",
                draw(fashion, "lenet5", seed),
                evaluation=fashion / "test.npz",
                target="ratio=0.4",
                importance=importance,
                repair="none",
                round_to=1,
                seed=seed,
                threads=1,
                bench=False,
            )
            found.append(accuracy(result))
    assert np.mean(accuracies["oamip"]) >= 0.80, accuracies
    assert np.mean(accuracies["oamip"]) >= np.mean(accuracies["random"]) + 0.15, accuracies


def test_saved_model_is_the_returned_one(fashion: Path, tmp_path: Path) -> None:
    result = oamip_onnx.prune(
        fashion / "lenet5.onnx", fashion / "calibration.npz", importance="random", samples=100, bench=False
    )
    size = result.save(tmp_path / "small.onnx")
    assert size == result.report.pruned.size_bytes == (tmp_path / "small.onnx").stat().st_size
    feeds = feeds_for(load_model(result.model), 0)
    saved, returned = Session(tmp_path / "small.onnx").run(feeds), Session(result.model).run(feeds)
    assert np.array_equal(saved["y"], returned["y"])
    metadata = {p.key: p.value for p in result.model.metadata_props}
    assert metadata["oamip.importance"] == "random"


def test_zero_ratio_changes_nothing() -> None:
    proto = GRAPHS["residual"]()
    feeds = feeds_for(load_model(proto), 0, 20)
    result = oamip_onnx.prune(proto, feeds, target="ratio=0", importance="magnitude", bench=False)
    assert result.report.pruned.macs == result.report.original.macs
    assert result.report.drift.top1_agreement == 1
    assert relative(Session(result.model).run(feeds)["y"], Session(proto).run(feeds)["y"]) < 1e-5


def test_weights_in_external_data_stay_there(tmp_path: Path) -> None:
    onnx.save(GRAPHS["residual"](), tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    feeds = feeds_for(load_model(tmp_path / "m.onnx"), 0, 20)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    result = oamip_onnx.prune(tmp_path / "m.onnx", feeds, importance="magnitude", bench=False)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    (tmp_path / "out").mkdir()
    result.save(tmp_path / "out" / "m.onnx")
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert relative(Session(tmp_path / "out" / "m.onnx").run(feeds)["y"], Session(result.model).run(feeds)["y"]) == 0


def test_failed_verification_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pipeline.cut

    def wrong(*arguments: object) -> onnx.ModelProto:
        proto = honest(*arguments)  # type: ignore[arg-type]
        weight = proto.graph.initializer[0]
        values = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weight.name))
        return proto

    monkeypatch.setattr(pipeline, "cut", wrong)
    feeds = feeds_for(load_model(GRAPHS["residual"]()), 0, 20)
    with pytest.raises(VerificationError, match="Nothing was written"):
        oamip_onnx.prune(GRAPHS["residual"](), feeds, importance="magnitude", bench=False)

    onnx.save(GRAPHS["residual"](), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **feeds)  # type: ignore[arg-type]
    command = ["oamip", "prune", "m.onnx", "out.onnx", "--data", "d.npz", "--importance", "magnitude", "--no-bench"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", command)
    assert run() == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npz", "m.onnx"]


def test_repair_that_makes_things_worse_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = REPAIRS["least-squares"]

    def harmful(context: object) -> object:
        repaired = honest(context)  # type: ignore[arg-type]
        worse = {name: values * 100 for name, values in repaired.updates.items()}
        from oamip_onnx.model import with_initializers
        from oamip_onnx.repair import Repaired

        return Repaired(with_initializers(repaired.proto, worse), worse, repaired.steps)

    monkeypatch.setitem(REPAIRS, "least-squares", harmful)
    feeds = feeds_for(load_model(GRAPHS["residual"]()), 0, 50)
    settings = {"importance": "magnitude", "bench": False}
    result = oamip_onnx.prune(GRAPHS["residual"](), feeds, repair="least-squares", **settings)
    bare = oamip_onnx.prune(GRAPHS["residual"](), feeds, repair="none", **settings)
    assert any("repair was left out" in note for note in result.report.notes)
    assert relative(Session(result.model).run(feeds)["y"], Session(bare.model).run(feeds)["y"]) < 1e-5


def test_no_data() -> None:
    with pytest.raises(DataError, match="--random-data"):
        oamip_onnx.prune(GRAPHS["residual"]())


def test_importing_the_package_does_not_load_solvers_or_training_frameworks() -> None:
    import subprocess
    import sys

    script = "import sys, oamip_onnx.cli.main; print(sorted({'cvxpy', 'pyscipopt', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_half_precision_models_are_pruned_and_stay_so() -> None:
    b = image(dtype=onnx.TensorProto.FLOAT16)
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("Relu", b.add("Add", x, b.conv(b.add("Relu", b.conv(x, 8, 6)), 6, 8)))
    proto = head(b, x, 8)
    feeds = {"x": np.random.default_rng(0).normal(size=(60, 3, 8, 8)).astype(np.float16)}
    result = oamip_onnx.prune(proto, feeds, importance="oamip", images=40, round_to=1, bench=False)
    assert result.report.verification.passed
    assert result.report.verification.tolerance >= 5e-3
    weights = [t for t in result.model.graph.initializer if len(t.dims) > 1]
    assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}
    assert result.report.pruned.macs < 0.5 * result.report.original.macs


def test_model_that_does_not_classify() -> None:
    b = image()
    x = b.add("Relu", b.conv(b.add("Relu", b.conv("x", 3, 8)), 8, 8))
    proto = b.finish(b.conv(x, 8, 2))
    feeds = feeds_for(load_model(proto), 0, 60)
    result = oamip_onnx.prune(proto, feeds, importance="oamip", images=40, round_to=1, bench=False)
    assert result.report.importance.startswith("oamip")
    assert result.report.drift.top1_agreement is None
    assert any("squared error" in note for note in result.report.notes) or result.report.importance.endswith("wise)")
    assert result.report.pruned.macs < 0.5 * result.report.original.macs


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in GRAPHS if not n.startswith(("pointwise", "single"))])
def test_every_graph_goes_through_the_whole_job(name: str) -> None:
    proto = GRAPHS[name]()
    shapes = {v.name: tuple(d.dim_value or 2 for d in v.type.tensor_type.shape.dim) for v in proto.graph.input}
    settings = {"images": 12, "samples": 24, "round_to": 1, "bench": False, "threads": 1, "allow_inexact": True}
    result = oamip_onnx.prune(proto, random_data=True, input_shapes=shapes, **settings)
    assert result.report.verification.passed
    assert result.report.pruned.parameters < result.report.original.parameters


@pytest.mark.parametrize(("round_to", "is_said"), [(8, True), (1, False)])
def test_rounding_that_removes_much_more_than_asked_is_said(fashion: Path, round_to: int, *, is_said: bool) -> None:
    result = oamip_onnx.prune(
        fashion / "resnet8.onnx",
        fashion / "calibration.npz",
        target="macs=0.7",
        importance="magnitude",
        repair="none",
        samples=20,
        round_to=round_to,
        widths="uniform",
        bench=False,
    )
    said = [note for note in result.report.notes if note.startswith(f"Widths in multiples of {round_to} leave")]
    assert bool(said) == is_said
    left = result.report.pruned.macs / result.report.original.macs
    assert (left < 0.65) == is_said
    assert not said or f"{left:.1%} of the MACs where macs=0.7 allows 70.0%" in said[0]
