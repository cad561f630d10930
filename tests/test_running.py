"""`oamip run`: stages in order, only what has changed runs again, and the result is held to what the file asks for."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import failed, oamip

import oamip_onnx
from oamip_onnx.errors import OamipError, UsageError
from oamip_onnx.model import history, load_model
from oamip_onnx.progress import Step
from oamip_onnx.running import stages as stages_module
from oamip_onnx.running.store import stage_key
from oamip_onnx.runtime import Session

PIPELINE = """
model = "model.onnx"
data = "data.npz"
folder = "out"

[prune]
target = "macs=0.8"
importance = "magnitude"

[[export]]
format = "fp16"

[[export]]
format = "ort"
name = "phone.ort"

[bench]
seconds = 0.02
runs = 5
threads = [1]
"""

EVERYTHING = ["prune", "export fp16", "export phone", "bench"]


@pytest.fixture
def project(work: Path) -> Path:
    (work / "pipeline.toml").write_text(PIPELINE)
    # The original is right by definition, so that accuracy and agreement are the same.
    x = np.load(work / "data.npz")["x"]
    (logits,) = Session(work / "model.onnx").run({"x": x}).values()
    np.savez(work / "data.npz", x=x, labels=logits.argmax(1))
    return work


def ran(project: Path, *more: str, code: int = 0) -> dict[str, Any]:
    found = oamip("run", "pipeline.toml", "--json", "-", *more, cwd=project)
    assert found.code == code, found.err
    report: dict[str, Any] = json.loads(found.out)
    assert json.loads((project / "out" / "run.json").read_text()) == report
    return report


def fresh(report: dict[str, Any]) -> list[str]:
    """Return the stages that ran anew."""
    return [stage["name"] for stage in report["stages"] if not stage["cached"]]


def edited(project: Path, old: str, new: str) -> None:
    text = (project / "pipeline.toml").read_text()
    assert old in text
    (project / "pipeline.toml").write_text(text.replace(old, new))


def test_a_pipeline_makes_every_file_and_shows_the_models_side_by_side(project: Path) -> None:
    report = ran(project)
    assert [stage["name"] for stage in report["stages"]] == EVERYTHING == fresh(report)
    files = {name for stage in report["stages"] for name in stage["files"]}
    assert files | {"run.json", "stages.json"} == {path.name for path in (project / "out").iterdir()}
    original, pruned, half, phone = report["models"]
    assert [model["stage"] for model in report["models"]] == ["original", *EVERYTHING[:3]]
    assert pruned["size_bytes"] < original["size_bytes"]
    assert half["size_bytes"] < pruned["size_bytes"]
    assert (original["agreement"], original["speedup"]) == (None, None)
    assert pruned["speedup"]["median"] > 0
    # The benchmark takes ONNX files; ONNX Runtime's own format is timed by its export.
    assert (phone["latency_ms"], phone["accuracy"]) == (None, pruned["accuracy"])
    assert [step.command for step in history(onnx.load(project / "out" / half["path"].split("/")[-1]))] == [
        "prune",
        "export",
    ]
    shown = oamip("run", "pipeline.toml", cwd=project).out
    for word in (*EVERYTHING, "cached", "phone.ort", "Speed-up"):
        assert word in shown


def test_what_has_not_changed_does_not_run_again(project: Path) -> None:
    ran(project)
    assert fresh(ran(project)) == []
    assert fresh(ran(project, "--force")) == EVERYTHING
    # The same content under another date, and the folder in another place.
    shutil.copy(project / "data.npz", project / "copy.npz")
    shutil.move(project / "copy.npz", project / "data.npz")
    assert fresh(ran(project)) == []
    moved = project.parent / f"{project.name}-moved"
    shutil.move(project, moved)
    assert fresh(ran(moved)) == []


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda p: edited(p, 'target = "macs=0.8"', 'target = "macs=0.7"'), EVERYTHING),
        # A setting that leads to the same model: what comes after reads the same content.
        (lambda p: edited(p, 'importance = "magnitude"', 'importance = "magnitude"\nworkers = 1'), ["prune"]),
        (lambda p: edited(p, 'format = "fp16"', 'format = "fp16"\nmin-sqnr = 20'), ["export fp16", "bench"]),
        (lambda p: edited(p, "runs = 5", "runs = 6"), ["bench"]),
        (lambda p: (p / "out" / "phone.ort").unlink(), ["export phone"]),
        (lambda p: (p / "out" / "phone.ort").write_bytes(b"damaged"), ["export phone"]),
        (lambda p: (p / "out" / "stages.json").write_text("damaged"), EVERYTHING),
        (lambda p: np.savez(p / "data.npz", x=np.load(p / "data.npz")["x"][:30], labels=np.arange(30) % 5), EVERYTHING),
    ],
)
def test_a_change_runs_what_depends_on_it(
    project: Path, change: Callable[[Path], object], again: Sequence[str]
) -> None:
    ran(project)
    change(project)
    assert fresh(ran(project)) == list(again)


def test_the_same_model_comes_out_again(project: Path) -> None:
    first = ran(project)["stages"]
    second = ran(project, "--force")["stages"]
    for name in ("pruned.onnx", "exported-fp16.onnx"):
        digests = [
            {file: sha for stage in stages for file, sha in stage["files"].items()}[name] for stages in (first, second)
        ]
        assert digests[0] == digests[1], name


def test_an_interrupted_pipeline_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = stages_module.export

    def interrupted(model: Path, out: Path, **more: Any) -> Any:
        if out.suffix == ".ort":
            raise KeyboardInterrupt
        return original(model, out, **more)

    with monkeypatch.context() as patch:
        patch.setattr(stages_module, "export", interrupted)
        assert oamip("run", "pipeline.toml", cwd=project).code == 130
    assert not (project / "out" / "phone.ort").exists()
    assert fresh(ran(project)) == ["export phone", "bench"]


def test_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {stage_key("prune", {"seed": seed}, {"model": digest}) for seed in (0, 1) for digest in "ab"}
    assert len(keys) == 4
    before = stage_key("prune", {}, {})
    monkeypatch.setattr("oamip_onnx.running.store.package_version", lambda _: "9.9")
    assert stage_key("prune", {}, {}) != before


def test_python_takes_a_mapping_and_tells_the_stages(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    steps: list[Step] = []
    pipeline = {
        "model": "model.onnx",
        "data": "data.npz",
        "prune": {"importance": "magnitude"},
        "export": {"format": "fp16"},
    }
    report = oamip_onnx.run_pipeline(pipeline, progress=steps.append)
    assert [stage.name for stage in report.stages] == ["prune", "export fp16"]
    assert report.folder == "build"
    assert {(step.stage, step.stage_number, step.stage_count) for step in steps} == {
        ("prune", 1, 2),
        ("export fp16", 2, 2),
    }
    assert load_model("build/pruned.onnx").sha256 == report.stages[0].files["pruned.onnx"]


def test_an_imported_model_is_the_original(project: Path) -> None:
    pytest.importorskip("onnxslim", reason="needs pip install 'oamip-onnx[onnx]'")
    edited(project, 'model = "model.onnx"\n', "")
    edited(project, "[prune]", '[import]\nsource = "model.onnx"\nfrom = "onnx"\n\n[prune]')
    report = ran(project)
    assert fresh(report) == ["import", *EVERYTHING]
    assert report["models"][0]["path"].endswith("imported.onnx")
    assert fresh(ran(project)) == []


def test_a_pipeline_trains_further_and_an_interrupted_training_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'oamip-onnx[torch]'")
    edited(project, '[[export]]\nformat = "fp16"', '[finetune]\nepochs = 2\n\n[[export]]\nformat = "fp16"')
    report = ran(project)
    assert fresh(report) == ["prune", "finetune", *EVERYTHING[1:]]
    steps = history(onnx.load(project / "out" / "exported-fp16.onnx"))
    assert [step.command for step in steps] == ["prune", "finetune", "export"]
    # The last model is the trained one: it is what exports read.
    assert steps[2].source_sha256 == load_model(project / "out" / "finetuned.onnx").sha256
    assert fresh(ran(project)) == []
    trained = (project / "out" / "finetuned.onnx").read_bytes()
    # Interrupted after the first epoch, and with other settings in between, it comes to the same end.
    edited(project, "epochs = 2", "epochs = 1")
    ran(project)
    edited(project, "epochs = 1", "epochs = 2")

    def interrupt(step: Step) -> None:
        if step.stage == "finetune" and "epoch 2" in step.task:
            raise KeyboardInterrupt

    monkeypatch.chdir(project)
    with pytest.raises(KeyboardInterrupt):
        oamip_onnx.run_pipeline("pipeline.toml", progress=interrupt)
    assert list((project / "out").glob("checkpoint-*"))
    ran(project)
    assert (project / "out" / "finetuned.onnx").read_bytes() == trained
    assert not list((project / "out").glob("checkpoint-*"))


# --- what the result must reach


@pytest.mark.parametrize(
    ("check", "missed"),
    [
        ("min-accuracy = 1.0", 3),
        ("max-drop = 0.0", 3),
        ("min-agreement = 1.0", 3),
        ("max-size-bytes = 10", 3),
        # ONNX Runtime's own format is not in the benchmark.
        ("min-speedup = 100", 2),
        ("min-accuracy = 0.0\nmax-drop = 1.0\nmin-agreement = 0\nmin-speedup = 0.001", 0),
    ],
)
def test_what_is_missed_ends_the_run_with_1_and_is_named(project: Path, check: str, missed: int) -> None:
    with (project / "pipeline.toml").open("a") as file:
        file.write(f"\n[check]\n{check}\n")
    # Half of the channels at random leave other answers than the original's.
    edited(project, 'importance = "magnitude"', 'importance = "random"\nrepair = "none"')
    edited(project, "macs=0.8", "ratio=0.7")
    found = oamip("run", "pipeline.toml", cwd=project)
    assert found.code == (1 if missed else 0), found.err
    report = json.loads((project / "out" / "run.json").read_text())
    failed_ones = [one for one in report["requirements"] if not one["passed"]]
    assert len(failed_ones) == missed
    for one in failed_ones:
        assert f"{one['path']} misses {one['name'].replace('_', '-')} =" in found.err
    # The files are there all the same, and a second run says the same at once.
    assert (project / "out" / "pruned.onnx").exists()
    assert oamip("run", "pipeline.toml", cwd=project).code == found.code


def test_a_slower_model_than_in_an_earlier_report_ends_the_run_with_1(project: Path) -> None:
    ran(project)
    report = json.loads((project / "out" / "bench.json").read_text())
    for entry in report["models"]:
        latency = entry["latency_ms"]
        for name in ("p50", "p90", "p99"):
            latency[name] /= 10
        latency["percentiles"] = [value / 10 for value in latency["percentiles"]]
        entry["median_interval_ms"] = [value / 10 for value in entry["median_interval_ms"]]
        entry["samples_per_second"] *= 10
        yardstick = entry["yardstick"]
        yardstick.update({name: yardstick[name] / 10 for name in ("ratio", "low", "high")})
    (project / "before.json").write_text(json.dumps(report))
    edited(project, "[bench]", '[bench]\ncompare = "before.json"')
    found = oamip("run", "pipeline.toml", cwd=project)
    assert found.code == 1
    assert "Slower than in" in found.err


# --- what cannot run is said before anything runs


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[prune]", "[purne]", "has no place for 'purne'; did you mean 'prune'"),
        ("importance =", "importanse =", "There is no setting 'importanse'; did you mean 'importance'"),
        ('"fp16"', '"fp17"', "There is no format 'fp17'; did you mean 'fp16'"),
        ('"phone.ort"', '"sub/phone.ort"', "a file name without a folder that ends in .ort"),
        ('"phone.ort"', '"phone.bin"', "a file name without a folder that ends in .ort"),
        ("seconds = 0.02", "seconds = -1", "cannot be used at 'bench.seconds'"),
        ("seconds = 0.02", "second = 1", "cannot be used at 'bench.second'"),
        ('model = "model.onnx"', "", 'name the model with model = "…"'),
        ("[bench]", '[import]\nsource = "x.onnx"\n[bench]', "one of both"),
        ("[bench]", "[check]\nmin-speedup = 2\n[bench2]", "has no place for 'bench2'"),
        ("[bench]\nseconds = 0.02\nruns = 5\nthreads = [1]", "[check]\nmin-speedup = 2", "add [bench]"),
        ("[bench]", "[[bench]]", "write a table: [bench]"),
        ('format = "ort"\nname = "phone.ort"', 'format = "fp16"', "two exports would go to one file"),
        ("macs=0.8", "macs=", "macs"),
        ("[prune]", "[prune", "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(project: Path, old: str, new: str, message: str) -> None:
    edited(project, old, new)
    failed(oamip("run", "pipeline.toml", cwd=project), 2, message)
    assert not (project / "out" / "pruned.onnx").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"data.npz"', '"none.npz"', "What the stage 'prune' reads as data, 'none.npz' does not exist"),
        ('"model.onnx"', '"none.onnx"', "'none.onnx' does not exist"),
        ('data = "data.npz"\n', "", "The stage 'prune' needs samples"),
        ('"fp16"', '"coreml"', "needs coremltools"),
        ('folder = "out"', 'folder = "model.onnx"', "cannot be made"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(project: Path, old: str, new: str, message: str) -> None:
    edited(project, old, new)
    failed(oamip("run", "pipeline.toml", cwd=project), 3, message)
    assert not (project / "out" / "pruned.onnx").exists()


def test_an_empty_pipeline_and_a_missing_file_are_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no stage"):
        oamip_onnx.run_pipeline({"model": str(project / "model.onnx"), "folder": str(tmp_path)})
    failed(oamip("run", "none.toml", cwd=project), 2, "cannot be read")
    shutil.copy(project / "model.onnx", project / "pruned.onnx")
    pipeline = {"model": f"{project}/pruned.onnx", "data": f"{project}/data.npz", "folder": str(project), "prune": {}}
    with pytest.raises(OamipError, match="would overwrite"):
        oamip_onnx.run_pipeline(pipeline)
