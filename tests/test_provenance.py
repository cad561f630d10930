"""What a model went through stands in its metadata, survives every stage, and is the same in every run."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import FAST, oamip
from graphs import GRAPHS
from hypothesis import given
from hypothesis import strategies as st

import oamip_onnx
from oamip_onnx.model import history, history_entry, load_model, with_metadata


def properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_of_a_model_is_that_of_its_file(work: Path) -> None:
    path = work / "model.onnx"
    assert load_model(path).sha256 == load_model(path.read_bytes()).sha256 == sha256(path)
    message = onnx.load(path)
    serialised = message.SerializeToString(deterministic=True)
    assert load_model(message).sha256 == hashlib.sha256(serialised).hexdigest()


def test_the_digest_of_a_model_in_several_files_covers_all_of_them(tmp_path: Path) -> None:
    for folder, scale in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        proto = GRAPHS["residual"]()
        for tensor in proto.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        path = tmp_path / folder / "m.onnx"
        onnx.save(proto, path, save_as_external_data=True, location="w", size_threshold=0, all_tensors_to_one_file=True)
    a, b = (tmp_path / folder for folder in "ab")
    assert sha256(a / "m.onnx") == sha256(b / "m.onnx")
    assert load_model(a / "m.onnx").sha256 != load_model(b / "m.onnx").sha256
    both = hashlib.sha256((a / "m.onnx").read_bytes() + (a / "w").read_bytes()).hexdigest()
    assert load_model(a / "m.onnx").sha256 == both


def test_every_stage_adds_its_step_and_keeps_what_was_there(work: Path) -> None:
    proto = onnx.load(work / "model.onnx")
    proto.metadata_props.add(key="license", value="MIT")
    onnx.save(proto, work / "model.onnx")
    assert oamip("prune", "model.onnx", "one.onnx", "--data", "data.npz", *FAST, cwd=work).code == 0
    target = ("--target", "macs=0.8")
    assert oamip("prune", "one.onnx", "two.onnx", "--data", "data.npz", *target, *FAST, cwd=work).code == 0
    ran = oamip("export", "two.onnx", "out.onnx", "--format", "fp16", "--no-bench", cwd=work)
    assert ran.code == 0, ran.err
    kept = properties(work / "out.onnx")
    assert (kept["license"], kept["oamip.target"], kept["oamip.export"]) == ("MIT", "macs=0.8", "fp16")
    steps = history(onnx.load(work / "out.onnx"))
    assert [step.command for step in steps] == ["prune", "prune", "export"]
    assert [step.source_sha256 for step in steps] == [
        sha256(work / name) for name in ("model.onnx", "one.onnx", "two.onnx")
    ]
    assert steps[0].options == ("--importance", "magnitude")
    assert steps[1].options == ("--target", "macs=0.8", "--importance", "magnitude")
    assert steps[2].options == ("--format", "fp16")
    assert {step.version for step in steps} == {oamip_onnx.__version__}


def test_inspect_tells_the_history(work: Path) -> None:
    assert "History" not in oamip("inspect", "model.onnx", cwd=work).out
    oamip("prune", "model.onnx", "small.onnx", "--data", "data.npz", *FAST, cwd=work)
    shown = " ".join(oamip("inspect", "small.onnx", cwd=work).out.split())
    digest = sha256(work / "model.onnx")
    want = f"1. oamip prune --importance magnitude (version {oamip_onnx.__version__}) of the file with SHA-256"
    assert f"History: {want} {digest[:12]}…" in shown
    (step,) = json.loads(oamip("inspect", "small.onnx", "--json", "-", cwd=work).out)["history"]
    assert (step["command"], step["source_sha256"]) == ("prune", digest)


# Not `ort`: ONNX Runtime writes a table of that format in an order that changes from run to run.
@pytest.mark.parametrize("export_format", ["fp16", "int8", "int8-dynamic"])
def test_the_same_inputs_give_the_same_bytes(work: Path, export_format: str) -> None:
    made = []
    for turn in ("a", "b"):
        # What does not shape the result leaves no trace: times, the names of files, the number of processes.
        more = ["--set", "workers=1"] if turn == "a" else []
        data = work / f"{turn}.npz"
        data.write_bytes((work / "data.npz").read_bytes())
        small, out = f"small-{turn}.onnx", f"out-{turn}.onnx"
        ran = oamip("prune", "model.onnx", small, "--data", data, "--no-bench", *more, cwd=work)
        assert ran.code == 0, ran.err
        ran = oamip("export", small, out, "--format", export_format, "--data", data, "--no-bench", cwd=work)
        assert ran.code == 0, ran.err
        made.append((sha256(work / small), sha256(work / out)))
    assert made[0] == made[1]


def test_timing_leaves_no_trace_in_the_model(work: Path) -> None:
    options = ["--data", "data.npz", "--importance", "magnitude"]
    oamip("prune", "model.onnx", "timed.onnx", *options, cwd=work)
    oamip("prune", "model.onnx", "untimed.onnx", *options, "--no-bench", cwd=work)
    assert sha256(work / "timed.onnx") == sha256(work / "untimed.onnx")


@given(st.text() | st.sampled_from(["[]", "{}", "[1]", '[{"command":"x"}]', "null", '[{"command":1,"options":2}]']))
def test_a_foreign_history_is_no_history_and_no_error(text: str) -> None:
    proto = onnx.ModelProto()
    proto.metadata_props.add(key="oamip.history", value=text)
    assert history(proto) == ()
    (entry,) = history_entry(proto, "prune", ["--target", "ratio=0.5"], "abc").items()
    entries = with_metadata(proto.metadata_props, dict([entry]))
    del proto.metadata_props[:]
    proto.metadata_props.extend(entries)
    (step,) = history(proto)
    assert (step.command, step.options, step.source_sha256) == ("prune", ("--target", "ratio=0.5"), "abc")
