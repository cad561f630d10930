"""`oamip finetune`: what is written is the same graph with better weights, repeatable, and never worse than before."""

import hashlib
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
from graphs import GRAPHS, image
from onnx import numpy_helper
from oracle import initializers

import oamip_onnx
from oamip_onnx.config import parse_settings
from oamip_onnx.errors import DataError, ModelError, OamipError, UsageError, VerificationError
from oamip_onnx.finetuning.comparison import _difference
from oamip_onnx.model import history
from oamip_onnx.report import FinetuneReport
from oamip_onnx.runtime import Session
from oamip_onnx.training import FinetuneSettings, make_finetune_settings, shaping_options
from oamip_onnx.training.epochs import Epoch, is_better

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install 'oamip-onnx[torch]'"
)

FAST: dict[str, Any] = {"epochs": 2, "threads": 1, "batch_size": 16}

# For graphs with 40 samples: enough steps to move.
LONGER: dict[str, Any] = {"epochs": 10, "patience": 10, "threads": 1, "batch_size": 8}


def without_weights(proto: onnx.ModelProto) -> bytes:
    """Return the bytes of a model without the values of weights and without what fine-tuning says about itself."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        tensor.ClearField("raw_data")
    kept = [one for one in copy.metadata_props if one.key not in {"oamip.finetune", "oamip.history"}]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    return copy.SerializeToString(deterministic=True)


@pytest.fixture
def pruned(work: Path, fashion: Path) -> Path:
    """Return a folder with LeNet-5, a narrower one, and samples with labels to train on."""
    (work / "model.onnx").unlink()
    with np.load(fashion / "calibration.npz") as data:
        np.savez(work / "train.npz", x=data["x"], labels=data["labels"])
        np.savez(work / "unlabelled.npz", x=data["x"])
    result = oamip_onnx.prune(
        *(fashion / "lenet5.onnx", fashion / "calibration.npz"),
        target="macs=0.3",
        importance="magnitude",
        repair="none",  # so that there is something to make up for
        bench=False,
    )
    result.save(work / "small.onnx")
    (work / "model.onnx").write_bytes((fashion / "lenet5.onnx").read_bytes())
    return work


def accuracy(path: Path, fashion: Path) -> float:
    with np.load(fashion / "test.npz") as data:
        logits = Session(path).run({"x": data["x"].astype(np.float32) / 255})["y"]
        return float((logits.argmax(1) == data["labels"]).mean())


@needs_torch
def test_distillation_brings_accuracy_back_and_changes_weights_only(pruned: Path, fashion: Path) -> None:
    before = onnx.load(pruned / "small.onnx")
    result = oamip_onnx.finetune(
        pruned / "small.onnx",
        pruned / "unlabelled.npz",
        original=pruned / "model.onnx",
        evaluation=fashion / "test.npz",
        epochs=6,
        threads=1,
    )
    size = result.save(pruned / "out.onnx")
    assert size == (pruned / "out.onnx").stat().st_size
    report = result.report
    assert (report.loss, report.metric) == ("distillation", "agreement")
    assert report.epochs[report.best_epoch].metric > report.epochs[0].metric
    assert report.evaluation is not None
    found, wanted = accuracy(pruned / "out.onnx", fashion), accuracy(pruned / "small.onnx", fashion)
    assert report.evaluation.after == pytest.approx(found)
    assert report.evaluation.before == pytest.approx(wanted)
    assert report.evaluation.original == pytest.approx(accuracy(pruned / "model.onnx", fashion))
    assert found > wanted
    after = onnx.load(pruned / "out.onnx")
    assert without_weights(after) == without_weights(before)
    changed = {name for name, values in initializers(after).items() if (values != initializers(before)[name]).any()}
    assert len(changed) == report.weights == 10
    assert report.max_rel_error <= report.tolerance


@needs_torch
@pytest.mark.parametrize("loss", ["labels", "both", "distillation"])
def test_every_loss_lowers_itself(loss: str, pruned: Path) -> None:
    report = oamip_onnx.finetune(
        pruned / "small.onnx", pruned / "train.npz", original=pruned / "model.onnx", loss=loss, **FAST
    ).report
    assert report.metric == "accuracy"
    assert min(epoch.loss for epoch in report.epochs[1:]) < report.epochs[0].loss
    assert (report.training_samples, report.held_out_samples) == (900, 100)


@needs_torch
def test_layers_that_both_models_have_are_compared(work: Path) -> None:
    original = GRAPHS["residual"]()
    small = onnx.ModelProto()
    small.CopyFrom(original)
    generator = np.random.default_rng(0)
    for tensor in small.graph.initializer:
        values = numpy_helper.to_array(tensor)
        noisy = values + generator.normal(0, 0.05, values.shape).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
    report = oamip_onnx.finetune(small, work / "data.npz", original=original, loss="layers", **LONGER).report
    contractions = [node.output[0] for node in original.graph.node if node.op_type in {"Conv", "Add", "Gemm"}]
    assert report.layers == contractions
    assert report.epochs[-1].loss < 0.9 * report.epochs[0].loss


@needs_torch
def test_layers_need_some_in_common(pruned: Path) -> None:
    model = onnx.load(pruned / "small.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in {"x", "y"} or name in initializers(model) else f"{name}!" for name in names]
    with pytest.raises(UsageError, match="No inner tensor has the same name and shape in both models"):
        oamip_onnx.finetune(model, pruned / "unlabelled.npz", original=pruned / "model.onnx", loss="layers", **FAST)


@needs_torch
def test_samples_that_are_mapped_train_as_those_in_memory(pruned: Path) -> None:
    with np.load(pruned / "train.npz") as data:
        np.save(pruned / "x.npy", data["x"])
        np.save(pruned / "labels.npy", data["labels"])
    usual = ("--epochs", "1", "--set", "threads=1", "--original", "model.onnx")
    for out, words in (("a.onnx", ["train.npz"]), ("b.onnx", ["x.npy", "--labels", "labels.npy"])):
        ran = oamip("finetune", "small.onnx", out, *usual, "--data", *words, cwd=pruned)
        assert ran.code == 0, ran.err
    assert (pruned / "a.onnx").read_bytes() == (pruned / "b.onnx").read_bytes()


@needs_torch
def test_without_epochs_the_bytes_are_the_same_but_for_metadata(pruned: Path) -> None:
    before = onnx.load(pruned / "small.onnx")
    ran = oamip("finetune", "small.onnx", "out.onnx", "--data", "train.npz", "--epochs", "0", cwd=pruned)
    assert ran.code == 0, ran.err
    after = onnx.load(pruned / "out.onnx")
    told = {one.key: one.value for one in after.metadata_props}
    assert told.pop("oamip.finetune").startswith("loss=labels epochs=0 ")
    steps, digest = history(after), hashlib.sha256((pruned / "small.onnx").read_bytes()).hexdigest()
    assert [step.command for step in steps] == ["prune", "finetune"]
    assert (steps[-1].options, steps[-1].source_sha256) == (("--epochs", "0"), digest)
    del told["oamip.history"]
    assert told.items() <= {one.key: one.value for one in before.metadata_props}.items()
    del after.metadata_props[:]
    after.metadata_props.extend(before.metadata_props)
    assert after.SerializeToString() == (pruned / "small.onnx").read_bytes()


@needs_torch
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(pruned: Path) -> None:
    models = [
        oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", seed=seed, **FAST).model for seed in (0, 0, 1)
    ]
    first, again, other = (model.SerializeToString(deterministic=True) for model in models)
    assert first == again
    assert first != other


@needs_torch
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_an_interrupted_run_goes_on_to_the_same_result(
    optimiser: str, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oamip_onnx.training import loop

    settings: dict[str, Any] = {**FAST, "epochs": 3, "optimiser": optimiser, "original": pruned / "model.onnx"}
    whole = oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", **settings)
    train = loop.Trainer._train

    def interrupted(trainer: Any, number: int, progress: Any) -> float:
        if number == 3:
            raise KeyboardInterrupt
        return float(train(trainer, number, progress))

    monkeypatch.setattr(loop.Trainer, "_train", interrupted)
    folder = pruned / "state"
    with pytest.raises(KeyboardInterrupt):
        oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", checkpoint=folder, **settings)
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]
    monkeypatch.undo()
    resumed = oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", checkpoint=folder, **settings)
    assert resumed.report.resumed_after == 2
    assert resumed.model.SerializeToString(deterministic=True) == whole.model.SerializeToString(deterministic=True)
    assert [(e.loss, e.metric, e.training_loss) for e in resumed.report.epochs] == [
        (e.loss, e.metric, e.training_loss) for e in whole.report.epochs
    ]
    # A run that is through is taken as it is.
    again = oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", checkpoint=folder, **settings)
    assert again.model.SerializeToString(deterministic=True) == whole.model.SerializeToString(deterministic=True)
    assert again.report.samples_per_second is None


@needs_torch
def test_a_checkpoint_of_another_run_is_refused(pruned: Path) -> None:
    arguments: dict[str, Any] = {**FAST, "epochs": 1, "checkpoint": pruned / "state"}
    oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", **arguments)
    with pytest.raises(UsageError, match="is of another model, other data or other settings"):
        oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", **{**arguments, "epochs": 2})
    (pruned / "state" / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"cannot be read: .*; remove it to start anew"):
        oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", **arguments)


@needs_torch
def test_a_checkpoint_holds_no_code(pruned: Path) -> None:
    import torch

    folder = pruned / "state"
    folder.mkdir()
    marker = pruned / "ran"

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"run": Harmful()}, folder / "checkpoint.pt")
    with pytest.raises(UsageError, match="cannot be read"):
        oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", checkpoint=folder, **FAST)
    assert not marker.exists()


@needs_torch
def test_ctrl_c_leaves_a_whole_checkpoint(pruned: Path) -> None:
    command = [sys.executable, "-m", "oamip_onnx.cli.main", "finetune", "small.onnx", "out.onnx"]
    command += ["--data", "train.npz", "--epochs", "5000", "--patience", "5000", "--checkpoint", "state"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=pruned, env=environment, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while not (pruned / "state" / "checkpoint.pt").exists():
            assert running.poll() is None, running.stderr.read() if running.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "interrupted; 'state' was written before." in err
    assert not (pruned / "out.onnx").exists()
    assert [path.name for path in (pruned / "state").iterdir()] == ["checkpoint.pt"]
    import torch

    state = torch.load(pruned / "state" / "checkpoint.pt", weights_only=True)
    assert len(state["epochs"]) >= 2


@needs_torch
def test_a_diverging_loss_stops_and_the_best_weights_stay(pruned: Path) -> None:
    settings: dict[str, Any] = {**FAST, "optimiser": "sgd", "learning_rate": 1e30, "clip_norm": 1e30}
    result = oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", **settings)
    assert result.report.stopped == "diverged"
    assert result.report.best_epoch == 0
    assert any("no longer finite in epoch 1" in note for note in result.report.notes)
    before = initializers(onnx.load(pruned / "small.onnx"))
    assert all((values == before[name]).all() for name, values in initializers(result.model).items())
    json.loads(result.report.model_dump_json())


@pytest.mark.parametrize(
    ("epochs", "best"),
    [
        # As (loss, metric); of 100 samples, the standard error of 0.9 is 0.03.
        ([(0.5, 0.90), (0.4, 0.88)], 0),
        ([(0.5, 0.90), (0.4, 0.90)], 1),
        ([(0.5, 0.90), (0.6, 0.92)], 0),
        ([(0.5, 0.90), (0.6, 0.94)], 1),
        ([(0.5, 0.90), (0.4, 0.93), (0.3, 0.92)], 2),
        ([(0.5, 0.90), (0.4, 0.95), (0.3, 0.92)], 1),
        ([(0.5, 0.90), (0.3, 0.91), (0.4, 0.95)], 2),
        ([(0.5, 0.90), (float("nan"), 0.95)], 0),
        ([(float("inf"), 0.10), (0.5, 0.05)], 1),
    ],
)
def test_the_loss_decides_what_the_metric_cannot_tell_apart(epochs: list[tuple[float, float]], best: int) -> None:
    made, found = [Epoch(k, None, loss, metric, 0.0) for k, (loss, metric) in enumerate(epochs)], 0
    for count in range(2, len(made) + 1):
        found = count - 1 if is_better(made[:count], found, 100) else found
    assert found == best


@needs_torch
def test_too_little_memory_of_a_gpu_is_said(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from oamip_onnx.training import loop

    def full(*_arguments: Any) -> float:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(loop.Trainer, "_train", full)
    with pytest.raises(UsageError, match="does not hold a step of 16 samples; take a smaller --batch-size"):
        oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", **FAST)


@needs_torch
def test_mixed_precision_trains_weights_in_single_precision(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU computes in bfloat16 as well, if slowly: the steps are those of a GPU."""
    import torch

    from oamip_onnx.training import loop

    seen = []
    wanted = loop.Objective.__call__

    def watched(objective: Any, found: Any, labels: Any, outputs: Any) -> Any:
        seen.append(found[objective.main].dtype)
        return wanted(objective, found, labels, outputs)

    monkeypatch.setattr(loop.Objective, "__call__", watched)
    settings: dict[str, Any] = {**LONGER, "original": pruned / "model.onnx"}
    whole = oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", **settings)
    assert set(seen) == {torch.float32}
    monkeypatch.setattr(loop, "bears_mixed_precision", lambda _device: True)
    mixed = oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", **settings)
    # Steps compute in bfloat16; what is judged and written does not.
    assert set(seen) == {torch.float32, torch.bfloat16}
    weights = initializers(mixed.model)
    assert all(values.dtype == initializers(whole.model)[name].dtype for name, values in weights.items())
    losses = [report.epochs[report.best_epoch].loss for report in (whole.report, mixed.report)]
    assert losses[0] < whole.report.epochs[0].loss
    # bfloat16 rounds to 2⁻⁹ of a number; after some hundred steps the losses agree to a few of those.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@needs_torch
def test_what_gets_worse_is_not_returned_and_patience_ends_it(pruned: Path) -> None:
    settings: dict[str, Any] = {"threads": 1, "epochs": 9, "patience": 2, "learning_rate": 10.0}
    result = oamip_onnx.finetune(pruned / "model.onnx", pruned / "train.npz", **settings)
    report = result.report
    assert report.stopped == "patience"
    assert (report.best_epoch, len(report.epochs)) == (0, 3)
    assert any("No epoch was better" in note for note in report.notes)
    before = initializers(onnx.load(pruned / "model.onnx"))
    assert all((values == before[name]).all() for name, values in initializers(result.model).items())


def normalised(seed: int = 0) -> onnx.ModelProto:
    """Return a graph whose batch normalisation has statistics that do not fit its input."""
    b = image(seed=seed)
    x = b.add("BatchNormalization", b.conv("x", 3, 4), *(b.positive(4), b.weight(4), b.weight(4), b.positive(4)))
    return b.finish(b.gemm(b.add("Flatten", b.add("GlobalAveragePool", b.add("Relu", x))), 4, 5))


@needs_torch
@pytest.mark.parametrize("mode", ["frozen", "train", "re-estimate"])
def test_statistics_of_batch_norms(mode: str, work: Path) -> None:
    original = normalised()
    (node,) = [n for n in original.graph.node if n.op_type == "BatchNormalization"]
    settings: dict[str, Any] = {**LONGER, "original": normalised(1), "batch_norm": mode, "learning_rate": 0.01}
    with np.load(work / "data.npz") as data:
        samples = {"x": data["x"]}
    result = oamip_onnx.finetune(original, samples, **settings)
    assert result.report.best_epoch > 0
    before, after = initializers(original), initializers(result.model)
    mean, variance = node.input[3], node.input[4]
    assert (after[mean] == before[mean]).all() == (mode == "frozen")
    assert (after[variance] == before[variance]).all() == (mode == "frozen")
    if mode == "re-estimate":
        # The statistics are those of what the returned convolution makes of the training samples.
        from oamip_onnx.model import with_outputs
        from oamip_onnx.training.data import split_rows

        rows, _ = split_rows(40, 0.1, 0, 1)
        inner = Session(with_outputs(result.model, [node.input[0]])).run({"x": samples["x"][rows]})[node.input[0]]
        np.testing.assert_allclose(after[mean], inner.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after[variance], inner.var((0, 2, 3), ddof=1), rtol=1e-4)


@needs_torch
def test_frozen_weights_stay(pruned: Path) -> None:
    before = initializers(onnx.load(pruned / "small.onnx"))
    first = next(iter(before))
    result = oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", freeze=(first,), **FAST)
    after = initializers(result.model)
    assert result.report.best_epoch > 0
    assert {name for name in after if (after[name] == before[name]).all()} == {first}
    with pytest.raises(UsageError, match="No weight has a name like 'none"):
        oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", freeze=("none*",), **FAST)


@needs_torch
@pytest.mark.parametrize("element_type", [onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16])
def test_weights_keep_their_type(element_type: int, pruned: Path) -> None:
    model = onnx.load(pruned / "small.onnx")
    model.opset_import[0].version, model.ir_version = 22, 10
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = element_type
    del model.graph.value_info[:]
    with np.load(pruned / "train.npz") as data:
        x, labels = (data["x"].astype(np.float32) / 255).astype(dtype), data["labels"]
    result = oamip_onnx.finetune(model, {"x": x, "labels": labels}, **FAST)
    assert result.report.best_epoch > 0
    assert {t.data_type for t in result.model.graph.initializer if t.data_type != onnx.TensorProto.INT64} == {
        element_type
    }
    assert result.model.graph.input[0] == model.graph.input[0]


@needs_torch
def test_a_fixed_batch_is_kept(work: Path) -> None:
    model = GRAPHS["residual"]()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    del model.graph.value_info[:]
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    report = oamip_onnx.finetune(model, work / "data.npz", epochs=1, threads=1).report
    assert (report.training_samples, report.held_out_samples) == (36, 4)
    assert report.epochs[1].training_loss is not None


@needs_torch
def test_outputs_that_are_no_classes_are_distilled(work: Path) -> None:
    def planes(seed: int) -> onnx.ModelProto:
        b = image(seed=seed)
        return b.finish(b.conv(b.add("Relu", b.conv("x", 3, 6)), 6, 2))

    report = oamip_onnx.finetune(planes(0), work / "data.npz", original=planes(1), **LONGER).report
    assert (report.loss, report.metric) == ("distillation", "cosine")
    assert report.epochs[-1].metric > report.epochs[0].metric
    assert any("labels were not used" in note for note in report.notes)
    with pytest.raises(DataError, match="needs labels, and the output is no vector of classes"):
        oamip_onnx.finetune(planes(0), work / "data.npz", loss="labels", **FAST)


@needs_torch
def test_the_loss_is_taken_before_the_last_softmax(work: Path) -> None:
    b = image()
    logits = b.gemm(b.add("Flatten", b.add("GlobalAveragePool", b.conv("x", 3, 4))), 4, 5)
    with_softmax = b.finish(b.add("Softmax", logits))
    plain = onnx.ModelProto()
    plain.CopyFrom(with_softmax)
    (node,) = [n for n in plain.graph.node if n.op_type == "Softmax"]
    node.op_type = "Identity"
    del node.attribute[:]
    losses = [
        [epoch.loss for epoch in oamip_onnx.finetune(model, work / "data.npz", **FAST).report.epochs]
        for model in (with_softmax, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@needs_torch
def test_the_original_runs_anew_where_its_outputs_do_not_fit(pruned: Path) -> None:
    settings: dict[str, Any] = {**FAST, "original": pruned / "model.onnx"}
    kept, anew = (
        oamip_onnx.finetune(pruned / "small.onnx", pruned / "unlabelled.npz", memory_limit=limit, **settings)
        for limit in (1 << 30, 0)
    )
    # Other batches of the original round otherwise.
    assert [e.loss for e in anew.report.epochs] == pytest.approx([e.loss for e in kept.report.epochs], rel=1e-3)


@needs_torch
def test_wrong_weights_are_not_written(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oamip_onnx.training.interpreter import Network

    changed = Network.changed
    monkeypatch.setattr(
        Network, "changed", lambda network: {name: 2 * values for name, values in changed(network).items()}
    )
    monkeypatch.setattr("oamip_onnx.finetuning.comparison.load_rounded", lambda _network, _values: None)
    with pytest.raises(VerificationError, match="computes other outputs in PyTorch than in ONNX Runtime"):
        oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", **FAST)


@needs_torch
def test_command_shows_epochs_and_writes_json(pruned: Path) -> None:
    ran = oamip(
        *("finetune", "small.onnx", "out.onnx", "--data", "train.npz", "--original", "model.onnx"),
        *("--epochs", "1", "--set", "threads=1", "--json", "r.json"),
        cwd=pruned,
    )
    assert ran.code == 0, ran.err
    assert "Held-out accuracy" in ran.out
    assert "Returned: epoch " in ran.out
    text = (pruned / "r.json").read_text()
    report = FinetuneReport.model_validate_json(text)
    assert (report.loss, report.settings["epochs"]) == ("both", 1)
    described = json.loads((Path(__file__).parent.parent / "docs/schemas/finetune.schema.json").read_text())
    assert set(json.loads(text)) == set(described["required"])


@needs_torch
def test_progress_tells_epoch_loss_and_metric(pruned: Path) -> None:
    steps: list[Any] = []
    oamip_onnx.finetune(pruned / "small.onnx", pruned / "train.npz", progress=steps.append, **FAST)
    trained = [step for step in steps if step.task.startswith("epoch")]
    assert len(trained) == 2 * round(900 / 16)
    assert {step.stage for step in trained} == {"train"}
    assert all("held-out metric 0." in step.task and "loss " in step.task for step in trained)


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--data", "unlabelled.npz"], 3, "needs something to aim at: give labels"),
        (["--data", "train.npz", "--loss", "distillation"], 2, "give it with --original"),
        (["--data", "unlabelled.npz", "--loss", "labels"], 3, "needs labels, and there are none"),
        (["--data", "wrong.npz"], 3, "expects the shape (samples, 1, 28, 28)"),
        (["--data", "classes.npz"], 3, "The label 10 of sample 0 is out of range; the model has 10 classes."),
        (["--data", "one.npz"], 3, "1 are too few, give at least 2"),
        (["--data", "train.npz", "--epochs", "-1"], 2, "The setting 'epochs' does not take -1"),
        (["--data", "train.npz", "--set", "epoch=1"], 2, "There is no setting 'epoch'; did you mean 'epochs'"),
        (["--data", "train.npz", "--optimiser", "adam"], 2, "The setting 'optimiser' does not take 'adam'"),
        (
            ["--data", "train.npz", "--original", "residual.onnx"],
            3,
            "The original has the inputs {'x': (3, 8, 8)}, the model",
        ),
        (["--data", "train.npz", "--json", "out.onnx"], 3, "Two results would go to 'out.onnx'"),
        (["--data", "train.npz", "--checkpoint", "none/state"], 3, "Checkpoints cannot be written to 'none/state'"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], code: int, said: str, pruned: Path) -> None:
    x = np.zeros((1, 1, 28, 28), np.float32)
    np.savez(pruned / "wrong.npz", x=np.zeros((4, 1, 8, 8), np.float32), labels=np.zeros(4, np.int64))
    np.savez(pruned / "classes.npz", x=np.repeat(x, 4, 0), labels=np.full(4, 10))
    np.savez(pruned / "one.npz", x=x, labels=np.zeros(1, np.int64))
    onnx.save(GRAPHS["residual"](), pruned / "residual.onnx")
    failed(oamip("finetune", "small.onnx", "out.onnx", *arguments, cwd=pruned), code, said, pruned)


@needs_torch
def test_operators_that_cannot_be_trained_are_named(work: Path) -> None:
    onnx.save(GRAPHS["quantised_weights_and_activations"](), work / "model.onnx")
    ran = oamip("finetune", "model.onnx", "out.onnx", "--data", "data.npz", cwd=work)
    failed(ran, 3, "cannot be trained: there is no function for DequantizeLinear ('DequantizeLinear_1', ", work)
    assert "error[model]" in ran.err


@needs_torch
def test_inputs_without_an_axis_of_samples_are_refused() -> None:
    model = GRAPHS["lstm_peepholes_and_states"]()
    model.graph.input.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, []))
    data = [{"x": np.zeros((5, 2, 6), np.float32), "s": np.float32(0)} for _ in range(4)]
    with pytest.raises(ModelError, match="share no axis of samples"):
        oamip_onnx.finetune(model, data, original=model, **FAST)


def test_missing_torch_names_the_extra(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ran = oamip("finetune", "model.onnx", "out.onnx", "--data", "data.npz", cwd=work)
    failed(ran, 3, "run: pip install 'oamip-onnx[torch]'", work)
    assert "error[missing-extra]" in ran.err


def test_settings_are_checked_without_torch() -> None:
    assert make_finetune_settings({"learning-rate": 0.1}, {"epochs": 3}) == FinetuneSettings(
        learning_rate=0.1, epochs=3
    )
    assert (FinetuneSettings().largest_rate, FinetuneSettings(optimiser="sgd").largest_rate) == (1e-3, 1e-2)
    with pytest.raises(OamipError, match="did you mean 'batch_size'"):
        make_finetune_settings({"batchsize": 3})


def test_a_step_of_the_history_tells_what_is_not_usual() -> None:
    assert shaping_options(FinetuneSettings(threads=2, device="cpu")) == []
    settings = FinetuneSettings(learning_rate=0.003, batch_norm="train", freeze=("a*",), mixed_precision=False)
    told = ["--learning-rate", "0.003", "--batch-norm", "train", "--set", 'freeze=["a*"]']
    assert shaping_options(settings) == [*told, "--set", "mixed_precision=false"]
    assert make_finetune_settings(parse_settings(['freeze=["a*"]', "mixed_precision=false"])).freeze == ("a*",)


def test_the_package_imports_without_torch() -> None:
    code = """
import importlib.abc, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(name)

sys.meta_path.insert(0, NoTorch())
import oamip_onnx
oamip_onnx.finetune, oamip_onnx.FinetuneResult
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("found", "wanted", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([np.inf, np.nan], [np.inf, np.nan], 0.0),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([1.0, np.inf], [1.0, 2.0], np.inf),
        ([1.0, 2.0], [1.0, np.inf], np.inf),
    ],
)
def test_values_that_are_not_finite_are_no_agreement(found: Any, wanted: Any, difference: float) -> None:
    assert _difference(np.array(found), np.array(wanted)) == difference
