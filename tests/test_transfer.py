"""`oamip transfer`: a subnetwork learns other classes; what it is compared with is trained in the same way."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import failed, oamip
from graphs import image
from onnx import numpy_helper
from oracle import initializers
from test_last_layer import planes, scaled

import oamip_onnx
from oamip_onnx.calibration import Samples
from oamip_onnx.errors import DataError, ModelError, UsageError
from oamip_onnx.model import history, load_model
from oamip_onnx.report import DifferenceRecord, FinetuneReport, Result, TrainedRecord, TransferReport
from oamip_onnx.runtime import Session
from oamip_onnx.transferring.subnetwork import check_is_part, find_parent, load_result

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install 'oamip-onnx[torch]'"
)

FAST: dict[str, Any] = {"epochs": 1, "threads": 1}


@pytest.fixture
def pruned(work: Path) -> Path:
    """Return a folder with a residual network, a subnetwork with the same weights, and the result about it."""
    made = oamip_onnx.prune(
        *(work / "model.onnx", work / "data.npz"),
        target="ratio=0.5",
        round_to=1,
        importance="magnitude",
        repair="none",
        bench=False,
    )
    made.save(work / "small.onnx")
    (work / "result.json").write_text(made.report.model_dump_json())
    with np.load(work / "data.npz") as data:
        np.savez(work / "three.npz", x=data["x"], labels=data["labels"] % 3)
        np.savez(work / "unlabelled.npz", x=data["x"])
        np.savez(work / "narrow.npz", x=data["x"][..., :4], labels=data["labels"])
    return work


def samples(folder: Path) -> Samples:
    with np.load(folder / "data.npz") as data:
        return Samples({"x": data["x"]})


def shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in initializers(proto).items()}


def test_the_kept_units_are_found_again(pruned: Path) -> None:
    parent = find_parent(pruned / "model.onnx", load_result(pruned / "result.json"), samples(pruned))
    found, wanted = initializers(parent.subnetwork().proto), initializers(onnx.load(pruned / "small.onnx"))
    assert found.keys() == wanted.keys()
    assert all((found[name] == wanted[name]).all() for name in wanted)


def test_random_subnetworks_have_the_same_widths_and_other_units(pruned: Path) -> None:
    parent = find_parent(pruned / "model.onnx", load_result(pruned / "result.json"), samples(pruned))
    own = parent.subnetwork().proto
    drawn = [parent.random_subnetwork(seed).proto for seed in (0, 0, 1)]
    assert all(shapes(proto) == shapes(own) for proto in drawn)
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0] != own
    wide = initializers(onnx.load(pruned / "model.onnx"))
    first = next(node.input[1] for node in drawn[0].graph.node if node.op_type == "Conv")
    rows = {row.tobytes() for row in wide[first]}
    assert all(row.tobytes() in rows for row in initializers(drawn[0])[first])


def test_a_result_of_another_network_is_refused(pruned: Path) -> None:
    b = image()
    onnx.save(b.finish(b.gemm(b.add("Flatten", b.add("Relu", b.conv("x", 3, 7))), 448, 5)), pruned / "other.onnx")
    with pytest.raises(DataError, match="The result is of another network: the original has no group"):
        find_parent(pruned / "other.onnx", load_result(pruned / "result.json"), samples(pruned))


def test_merged_layers_are_no_units_of_the_original(pruned: Path) -> None:
    text = json.loads((pruned / "result.json").read_text())
    merge = {"first": "a", "second": "b", "units": 1, "macs_before": 2, "macs_after": 1}
    counts = dict.fromkeys(["inactive", "always_active", "by_interval", "by_linear", "by_integer", "undecided"], 0)
    text["lossless"] = {**counts, "seconds": 0.0, "exhausted": False, "input_range": [], "merged": [merge]}
    text["lossless"]["skipped"] = []
    with pytest.raises(UsageError, match="--lossless, which merged layers"):
        load_result(Result.model_validate(text))


def test_a_model_that_is_no_part_of_another_is_refused(pruned: Path) -> None:
    small, whole = (load_model(pruned / name) for name in ("small.onnx", "model.onnx"))
    check_is_part(small, whole)
    with pytest.raises(ModelError, match=r"no subnetwork of the original: its weight '.*' has the shape"):
        check_is_part(whole, small)
    with pytest.raises(ModelError, match="no subnetwork of the original: it has no"):
        check_is_part(load_model(scaled()), whole)


@needs_torch
def test_a_subnetwork_learns_other_images(fashion: Path, tmp_path: Path) -> None:
    small = oamip_onnx.prune(
        *(fashion / "lenet5.onnx", fashion / "calibration.npz"), target="macs=0.5", importance="magnitude", bench=False
    )
    found = oamip_onnx.transfer(
        small.model, "digits:train", evaluation="digits:test", epochs=8, learning_rate=0.003, threads=1
    )
    size = found.save(tmp_path / "out.onnx")
    assert size == (tmp_path / "out.onnx").stat().st_size
    (network,) = found.report.networks
    # Ten classes: guessing gives 0.1, of which 500 samples have a standard deviation of 0.013.
    assert network.mean > 0.8
    assert network.standard_error is None
    from oamip_onnx.calibration import load_samples

    judged = load_samples("digits:test", load_model(tmp_path / "out.onnx"))
    assert judged.labels is not None
    logits = Session(tmp_path / "out.onnx").run(dict(judged.feeds))["y"]
    assert network.accuracies == [pytest.approx(float((logits.argmax(1) == judged.labels).mean()))]
    assert [node.op_type for node in found.model.graph.node] == [node.op_type for node in small.model.graph.node]
    assert shapes(found.model) == shapes(small.model)
    assert (found.report.replaced, found.report.judged_on) == (False, "evaluation")


@needs_torch
def test_other_classes_bring_a_new_last_layer_and_a_step_of_the_history(pruned: Path) -> None:
    settings: dict[str, Any] = {**FAST, "epochs": 3, "batch_size": 8, "optimiser": "sgd", "seed": 4}
    result = oamip_onnx.transfer(pruned / "small.onnx", pruned / "three.npz", classes=3, **settings)
    model = result.model
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 3
    assert Session(model).run(dict(samples(pruned).feeds))["y"].shape == (40, 3)
    assert (result.report.replaced, result.report.classes_before, result.report.classes) == (True, 5, 3)
    assert result.report.training.max_rel_error <= result.report.training.tolerance
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["oamip.transfer"].startswith("weights=keep classes=3 epochs=3 optimiser=sgd ")
    assert "oamip.finetune" not in told
    steps = history(model)
    assert [step.command for step in steps] == ["prune", "transfer"]
    assert steps[-1].source_sha256 == load_model(pruned / "small.onnx").sha256
    options = ["--classes", "3", "--epochs", "3", "--batch-size", "8", "--set", "optimiser=sgd", "--seed", "4"]
    assert sorted(steps[-1].options) == sorted(options)


@needs_torch
def test_more_seeds_and_comparisons_leave_the_bytes_alone(pruned: Path) -> None:
    settings: dict[str, Any] = {**FAST, "classes": 3}
    one = oamip_onnx.transfer(pruned / "small.onnx", pruned / "three.npz", **settings)
    compared: dict[str, Any] = {"original": pruned / "model.onnx", "result": pruned / "result.json", "seeds": 3}
    three = oamip_onnx.transfer(pruned / "small.onnx", pruned / "three.npz", **settings, **compared)
    assert three.model.SerializeToString(deterministic=True) == one.model.SerializeToString(deterministic=True)
    report = three.report
    assert report.seeds == [0, 1, 2]
    assert [network.name for network in report.networks] == ["subnetwork", "unpruned", "random"]
    own, unpruned, random = report.networks
    assert own.parameters == random.parameters < unpruned.parameters
    assert own.accuracies[0] == one.report.networks[0].accuracies[0]
    assert own.mean == pytest.approx(np.mean(own.accuracies))
    assert own.standard_error == pytest.approx(np.std(own.accuracies, ddof=1) / np.sqrt(3))
    gaps = np.subtract(own.accuracies, unpruned.accuracies)
    assert report.differences[0].other == "unpruned"
    assert report.differences[0].mean == pytest.approx(gaps.mean())
    assert report.differences[0].standard_error == pytest.approx(gaps.std(ddof=1) / np.sqrt(3))
    assert report.samples == report.training.held_out_samples == 4
    assert report.judged_on == "held-out"


@needs_torch
def test_fresh_weights_forget_the_old_ones_and_have_no_random_subnetwork(pruned: Path) -> None:
    settings: dict[str, Any] = {"epochs": 0, "threads": 1, "weights": "fresh"}
    compared: dict[str, Any] = {"original": pruned / "model.onnx", "result": pruned / "result.json"}
    found = oamip_onnx.transfer(pruned / "small.onnx", pruned / "data.npz", **settings, **compared)
    assert [network.name for network in found.report.networks] == ["subnetwork", "unpruned"]
    assert any("a random subnetwork of the same widths is the same network" in note for note in found.report.notes)
    before, after = initializers(onnx.load(pruned / "small.onnx")), initializers(found.model)
    layers = [node for node in found.model.graph.node if node.op_type in {"Conv", "Gemm"}]
    assert all((before[node.input[1]] != after[node.input[1]]).all() for node in layers)
    assert found.report.replaced
    other = oamip_onnx.transfer(pruned / "small.onnx", pruned / "data.npz", **settings, seed=1)
    assert other.model.SerializeToString(deterministic=True) != found.model.SerializeToString(deterministic=True)


@needs_torch
def test_initial_weights_are_those_of_the_kept_units(pruned: Path) -> None:
    proto = onnx.load(pruned / "model.onnx")
    generator = np.random.default_rng(9)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            drawn = generator.normal(size=values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
    onnx.save(proto, pruned / "initial.onnx")
    files: dict[str, Any] = {"initial": pruned / "initial.onnx", "result": pruned / "result.json"}
    found = oamip_onnx.transfer(pruned / "small.onnx", pruned / "data.npz", epochs=0, threads=1, **files)
    parent = find_parent(proto, load_result(pruned / "result.json"), samples(pruned))
    wanted, after = initializers(parent.subnetwork().proto), initializers(found.model)
    assert all((after[name] == wanted[name]).all() for name in wanted)
    assert (found.report.weights, found.report.replaced) == ("initial", False)
    # Compared, the unpruned network and the random subnetwork start from the initial weights as well.
    compared = oamip_onnx.transfer(
        pruned / "small.onnx", pruned / "data.npz", epochs=0, threads=1, original=pruned / "model.onnx", **files
    )
    logits = Session(proto).run(dict(samples(pruned).feeds))["y"]
    with np.load(pruned / "data.npz") as data:
        from_initial = oamip_onnx.transfer(
            pruned / "small.onnx", data, evaluation=data, epochs=0, threads=1, original=pruned / "model.onnx", **files
        )
        assert from_initial.report.networks[1].mean == pytest.approx((logits.argmax(1) == data["labels"]).mean())
    assert [network.name for network in compared.report.networks] == ["subnetwork", "unpruned", "random"]


@needs_torch
def test_without_the_result_there_is_no_random_subnetwork(pruned: Path) -> None:
    found = oamip_onnx.transfer(
        pruned / "small.onnx", pruned / "three.npz", classes=3, original=pruned / "model.onnx", **FAST
    )
    assert [network.name for network in found.report.networks] == ["subnetwork", "unpruned"]
    assert any("give it with --result" in note for note in found.report.notes)


@needs_torch
def test_batch_norms_take_the_statistics_of_the_new_data() -> None:
    b = image()
    norm = [b.positive(4), b.weight(4), b.weight(4), b.positive(4)]
    x = b.add("Relu", b.add("BatchNormalization", b.conv("x", 3, 4), *norm))
    proto = b.finish(b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), 4, 5))
    # Images that are brighter by class, so that there is something to learn.
    labels = np.arange(80) % 2
    brighter = np.random.default_rng(0).normal(size=(80, 3, 8, 8)) + labels[:, None, None, None]
    data = {"x": brighter.astype(np.float32), "labels": labels}
    settings: dict[str, Any] = {"weights": "fresh", "epochs": 10, "batch_size": 8, "learning_rate": 0.01, "threads": 1}
    own, frozen = (
        oamip_onnx.transfer(proto, data, classes=2, **settings, **more) for more in ({}, {"batch_norm": "frozen"})
    )
    for found in (own, frozen):
        assert found.report.training.best_epoch > 0
    assert initializers(own.model)[norm[2]].any()
    assert not initializers(frozen.model)[norm[2]].any()
    assert "--batch-norm" not in history(own.model)[-1].options
    told = history(frozen.model)[-1].options
    assert told[told.index("--batch-norm") + 1] == "frozen"


@needs_torch
def test_command_shows_the_networks_and_writes_json(pruned: Path) -> None:
    ran = oamip(
        *("transfer", "small.onnx", "out.onnx", "--data", "three.npz", "--classes", "3", "--original", "model.onnx"),
        *("--result", "result.json", "--epochs", "1", "--seeds", "2", "--set", "threads=1", "--json", "r.json"),
        cwd=pruned,
    )
    assert ran.code == 0, ran.err
    assert "Subnetwork ahead by" in ran.out
    assert "Accuracy on 4 held-out samples, 2 seeds" in ran.out
    text = (pruned / "r.json").read_text()
    assert TransferReport.model_validate_json(text).classes == 3
    described = json.loads((Path(__file__).parent.parent / "docs/schemas/transfer.schema.json").read_text())
    assert set(json.loads(text)) == set(described["required"])
    assert onnx.load(pruned / "out.onnx").graph.output[0].type.tensor_type.shape.dim[1].dim_value == 3


@needs_torch
def test_an_interrupted_transfer_goes_on_to_the_same_result(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oamip_onnx.training import loop

    files: dict[str, Any] = {"original": pruned / "model.onnx", "result": pruned / "result.json"}
    arguments: dict[str, Any] = {**files, **FAST, "epochs": 2, "seeds": 2}
    whole = oamip_onnx.transfer(pruned / "small.onnx", pruned / "data.npz", **arguments)
    train, calls = loop.Trainer._train, 0

    def counted(trainer: Any, number: int, progress: Any) -> float:
        nonlocal calls
        calls += 1
        # The subnetwork is through with both seeds; the unpruned network is in its second epoch.
        if calls == 6:
            raise KeyboardInterrupt
        return float(train(trainer, number, progress))

    monkeypatch.setattr(loop.Trainer, "_train", counted)
    folder = pruned / "state"
    with pytest.raises(KeyboardInterrupt):
        oamip_onnx.transfer(pruned / "small.onnx", pruned / "data.npz", checkpoint=folder, **arguments)
    assert sorted(path.name for path in folder.iterdir()) == ["subnetwork-0", "subnetwork-1", "unpruned-0"]
    calls = -100
    resumed = oamip_onnx.transfer(pruned / "small.onnx", pruned / "data.npz", checkpoint=folder, **arguments)
    # What is left of twelve epochs: one of the first unpruned network, two of the second, four of the random ones.
    assert calls == -100 + 7
    assert resumed.model.SerializeToString(deterministic=True) == whole.model.SerializeToString(deterministic=True)
    assert [network.accuracies for network in resumed.report.networks] == [
        network.accuracies for network in whole.report.networks
    ]
    with pytest.raises(UsageError, match="is of another model, other data or other settings"):
        oamip_onnx.transfer(pruned / "small.onnx", pruned / "data.npz", checkpoint=folder, **{**arguments, "epochs": 3})


@needs_torch
def test_ctrl_c_names_the_folder_of_checkpoints(pruned: Path) -> None:
    command = [sys.executable, "-m", "oamip_onnx.cli.main", "transfer", "small.onnx", "out.onnx", "--data", "data.npz"]
    command += ["--epochs", "5000", "--set", "patience=5000", "--checkpoint", "state"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=pruned, env=environment, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while not (pruned / "state" / "subnetwork-0" / "checkpoint.pt").exists():
            assert running.poll() is None, running.stderr.read() if running.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "interrupted; 'state' was written before." in err
    assert not (pruned / "out.onnx").exists()


@needs_torch
def test_progress_tells_network_and_seed(pruned: Path) -> None:
    steps: list[Any] = []
    files: dict[str, Any] = {"original": pruned / "model.onnx", "result": pruned / "result.json"}
    oamip_onnx.transfer(pruned / "small.onnx", pruned / "data.npz", seeds=2, progress=steps.append, **files, **FAST)
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["load", "subnetwork", "unpruned", "random"]
    tasks = [step.task for step in steps if step.stage == "unpruned"]
    assert any(task.startswith("seed 0, epoch 1 of 1") for task in tasks)
    assert any(task.startswith("seed 1, epoch 1 of 1") for task in tasks)


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--data", "unlabelled.npz"], 3, "labels, and the data have none; give the key 'labels', or --labels."),
        (["--data", "data.npz", "--eval", "unlabelled.npz"], 3, "give the key 'labels' in --eval."),
        (["--data", "data.npz", "--classes", "3"], 3, "is out of range for 3 classes; give --classes 5."),
        (["--data", "data.npz", "--classes", "1"], 2, "at least two classes apart, not 1"),
        (["--data", "narrow.npz"], 3, "expects the shape (samples, 3, 8, 8)"),
        (["--data", "data.npz", "--weights", "old"], 2, "keep, fresh or initial, not 'old'"),
        (["--data", "data.npz", "--weights", "initial"], 2, "give its file with --initial"),
        (["--data", "data.npz", "--weights", "keep", "--initial", "model.onnx"], 2, "leave one out"),
        (["--data", "data.npz", "--initial", "model.onnx"], 2, "give it with --result"),
        (["--data", "data.npz", "--result", "result.json"], 2, "give that with --original as well"),
        (["--data", "data.npz", "--original", "other.onnx"], 3, "The model is no subnetwork of the original: "),
        (
            ["--data", "data.npz", "--original", "other.onnx", "--result", "result.json"],
            3,
            "The result is of another network",
        ),
        (
            ["--data", "data.npz", "--original", "model.onnx", "--result", "half.json"],
            3,
            "not the subnetwork of the original that the result tells of: they differ in the weight",
        ),
        (
            ["--data", "data.npz", "--original", "other.onnx", "--initial", "model.onnx", "--result", "result.json"],
            3,
            "The original is not the initial network: they differ in",
        ),
        (["--data", "data.npz", "--seeds", "0"], 2, "At least one seed is needed, not 0."),
        (["--data", "data.npz", "--set", "loss=distillation"], 2, "leave the loss out"),
        (["--data", "data.npz", "--set", "epoch=1"], 2, "There is no setting 'epoch'; did you mean 'epochs'"),
        (["--data", "data.npz", "--json", "out.onnx"], 3, "Two results would go to 'out.onnx'"),
        (["--data", "data.npz", "--original", "out.onnx"], 3, "would overwrite 'out.onnx', which is read"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], code: int, said: str, pruned: Path) -> None:
    onnx.save(scaled(), pruned / "other.onnx")
    text = json.loads((pruned / "result.json").read_text())
    for group in text["groups"]:
        group["kept"] = group["kept"][:1]
        group["after"] = 1
    (pruned / "half.json").write_text(json.dumps(text))
    failed(oamip("transfer", "small.onnx", "out.onnx", *arguments, cwd=pruned), code, said, pruned)


@needs_torch
def test_a_model_without_a_last_layer_is_refused(work: Path) -> None:
    onnx.save(planes(), work / "model.onnx")
    ran = oamip("transfer", "model.onnx", "out.onnx", "--data", "data.npz", "--classes", "3", cwd=work)
    failed(ran, 3, "there is no last layer to replace; transfer needs a classifier", work)
    assert "error[model]" in ran.err


def test_missing_torch_names_the_extra(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ran = oamip("transfer", "model.onnx", "out.onnx", "--data", "data.npz", "--classes", "5", cwd=work)
    failed(ran, 3, "Transfer needs the package torch, which is not installed; run: pip install", work)
    assert "error[missing-extra]" in ran.err


def test_the_table_shows_means_errors_and_differences() -> None:
    def record(name: str, mean: float, error: float | None) -> TrainedRecord:
        return TrainedRecord(
            name=name,
            parameters=1234,
            accuracies=[mean],
            mean=mean,
            standard_error=error,
            held_out_accuracies=[mean],
            best_epochs=[1],
            seconds=2.0,
        )

    training = FinetuneReport.model_construct(epochs=[])
    report = TransferReport.model_construct(
        classes=3,
        replaced=True,
        seeds=[0, 1],
        judged_on="evaluation",
        samples=2000,
        networks=[record("subnetwork", 0.91, 0.002), record("unpruned", 0.92, 0.001)],
        differences=[DifferenceRecord(other="unpruned", mean=-0.01, standard_error=0.0015)],
        training=training,
    )
    html = report._repr_html_()
    for text in ("1,234", "0.9100 ± 0.0020", "-1.00 ± 0.15", "2,000 evaluation samples, 2 seeds", "with a new last"):
        assert text in html
