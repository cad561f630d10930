"""`oamip export`: what is written loads, has the same inputs and outputs, and answers like the original."""

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from command import failed, oamip
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.calibration import BATCH_SIZE
from oamip_onnx.converters import to_ort  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.converters.formats import FORMATS  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.converters.to_mixed import layer_errors, layers_of  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import ModelError, TargetError
from oamip_onnx.exporting import export
from oamip_onnx.report import ExportReport
from oamip_onnx.runtime import Session

HERE = [name for name, one in FORMATS.items() if one.in_onnxruntime]

# Rounding to eleven bits of significand is noise of at most 2^-11 of each value, 66 dB; a few layers add some up. Seven
# bits of weight over a layer's range are steps of 1/64 of it: 36 dB for even values, less where few values are large.
LEAST_DB = {"ort": 100.0, "ort-native": 100.0, "fp16": 55.0, "int8": 25.0, "int8-dynamic": 20.0}


@pytest.fixture
def trained(fashion: Path, tmp_path: Path) -> Path:
    """Return the folder with a trained model that `oamip prune` could have written."""
    model = onnx.load(fashion / "lenet5.onnx")
    model.metadata_props.add(key="oamip.target", value="macs=0.5")
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path


def chain(scale: float, layers: int = 6) -> onnx.ModelProto:
    """Return matrix products of unnamed nodes, one of which makes large values and the next one small ones again."""
    generator = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for number in range(layers):
        values = generator.normal(size=(16, 16)) / 4 * {2: scale, 3: 1 / scale}.get(number, 1.0)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{number}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{number}"], [f"m{number}"]))
        name = "y" if number == layers - 1 else f"r{number}"
        nodes.append(helper.make_node("Relu", [f"m{number}"], [name]))
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["N", 16]) for end in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inputs_of_chain() -> dict[str, Any]:
    return {"x": np.abs(np.random.default_rng(1).normal(size=(64, 16))).astype(np.float32)}


def metadata(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


@pytest.mark.parametrize("name", HERE)
def test_what_is_written_answers_like_the_original(name: str, trained: Path, fashion: Path) -> None:
    before = (trained / "model.onnx").read_bytes()
    out = trained / f"out{FORMATS[name].suffix}"
    report = export(
        trained / "model.onnx",
        out,
        format=name,
        data=fashion / "calibration.npz",
        evaluation=fashion / "test.npz",
        bench=False,
    )
    assert (trained / "model.onnx").read_bytes() == before
    assert sorted(path.name for path in trained.iterdir()) == sorted(["model.onnx", out.name])
    original, written = Session(trained / "model.onnx"), Session(out)
    assert (written.inputs, written.outputs) == (original.inputs, original.outputs)
    kept = metadata(out)
    assert [step["command"] for step in json.loads(kept.pop("oamip.history"))] == ["export"]
    assert kept == {"oamip.target": "macs=0.5", "oamip.export": name}
    assert report.exported.size_bytes == out.stat().st_size
    assert report.original.size_bytes == len(before)
    drift = report.drift
    assert drift is not None
    assert drift.metric is not None
    assert drift.sqnr_db >= LEAST_DB[name]
    assert drift.data == "evaluation"
    with np.load(fashion / "test.npz") as data:
        x, labels = data["x"].astype(np.float32) / 255, data["labels"]
    # Dynamic ranges are those of a batch: these are the batches of the export.
    parts = [x[start : start + BATCH_SIZE] for start in range(0, len(x), BATCH_SIZE)]
    wanted, found = (np.concatenate([s.run({"x": part})["y"] for part in parts]) for s in (original, written))
    noise = 10 * np.log10((wanted**2).sum() / max(((wanted - found) ** 2).sum(), 1e-30))
    assert np.isinf(drift.sqnr_db) or drift.sqnr_db == pytest.approx(noise, abs=0.01)
    assert drift.metric.pruned == pytest.approx(float((found.argmax(1) == labels).mean()))


def test_smaller_formats_are_smaller(trained: Path, fashion: Path) -> None:
    sizes = {
        name: export(
            trained / "model.onnx",
            trained / "out.onnx",
            format=name,
            data=fashion / "calibration.npz",
            bench=False,
        ).exported.size_bytes
        for name in ("fp16", "int8")
    }
    whole = (trained / "model.onnx").stat().st_size
    assert sizes["fp16"] < 0.6 * whole
    assert sizes["int8"] < 0.4 * whole


def test_layers_out_of_the_range_of_float16_stay_in_float32(tmp_path: Path) -> None:
    report = export(chain(1e6), tmp_path / "out.onnx", format="fp16", data=inputs_of_chain(), bench=False)
    # The layer that makes values beyond 65504, and the one that reads them.
    assert report.kept_float32 == ["MatMul#4", "MatMul#6"]
    assert report.drift is not None
    assert report.drift.sqnr_db >= 40
    model = onnx.load(tmp_path / "out.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT} == {"w2", "w3"}
    # Nothing between the two goes through float16: in and out of the model, and of the pair.
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 4


def test_a_model_within_range_has_no_float32_layers(tmp_path: Path) -> None:
    report = export(chain(1.0), tmp_path / "out.onnx", format="fp16", data=inputs_of_chain(), bench=False)
    assert report.kept_float32 == []


def test_a_last_layer_in_float32_keeps_its_output(tmp_path: Path) -> None:
    model = chain(1.0, layers=2)
    large = numpy_helper.to_array(model.graph.initializer[1]) * np.float32(1e6)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(large, "w1"))
    report = export(model, tmp_path / "out.onnx", format="fp16", data=inputs_of_chain(), bench=False)
    assert report.kept_float32 == ["MatMul#2"]
    assert report.drift is not None
    assert report.drift.sqnr_db >= 40


def test_a_layer_that_int8_ruins_stays_in_float32(tmp_path: Path) -> None:
    model = chain(1.0, layers=4)
    first, second = (numpy_helper.to_array(model.graph.initializer[number]).copy() for number in (0, 1))
    # A unit that never fires, and large weights behind it: of the scale that these need, the others are roundings.
    first[:, 3], second[3, :] = -1, 200
    for number, values in enumerate((first, second)):
        model.graph.initializer[number].CopyFrom(numpy_helper.from_array(values, f"w{number}"))
    report = export(model, tmp_path / "out.onnx", format="int8", data=inputs_of_chain(), bench=False)
    assert report.kept_float32 == ["MatMul#2"]
    assert report.drift is not None
    assert report.drift.sqnr_db >= 20


def test_no_more_than_a_quarter_of_the_layers_stays_in_float32(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"format": "int8", "data": inputs_of_chain(), "bench": False}
    model = chain(1.0, layers=8)
    with pytest.raises(TargetError, match=r"not to 80 dB, so nothing was written; lower --min-sqnr"):
        export(model, tmp_path / "out.onnx", min_sqnr_db=80, **arguments)
    assert list(tmp_path.iterdir()) == []
    # Two of the eight layers could have stayed; even so the bound is out of reach.
    plain = export(model, tmp_path / "out.onnx", **arguments)
    assert plain.kept_float32 == []


def test_the_error_of_a_layer_does_not_travel_on() -> None:
    plain, coarse = chain(1.0), chain(1.0)
    weight = coarse.graph.initializer[2]
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.round(values * 4) / np.float32(4), weight.name))
    x = inputs_of_chain()
    errors = layer_errors(plain, coarse, x, lambda model, feeds: Session(model).run(feeds))
    wrong = layers_of(plain)[2]
    assert errors[wrong] > 0.01
    assert all(error < 1e-5 for layer, error in errors.items() if layer != wrong)


def test_drift_without_data_is_that_of_random_samples(trained: Path) -> None:
    report = export(trained / "model.onnx", trained / "out.onnx", format="int8-dynamic", bench=False)
    assert any("drawn at random" in note for note in report.notes)


def test_command_prints_a_table_and_json(trained: Path, fashion: Path) -> None:
    arguments = ["export", "model.onnx", "out.onnx", "--format", "fp16", "--data", fashion / "calibration.npz"]
    ran = oamip(*arguments, "--set", "threads=1", "--no-bench", "--json", "r.json", cwd=trained)
    assert ran.code == 0, ran.err
    assert "fp16" in ran.out
    assert "SQNR" in ran.out
    text = (trained / "r.json").read_text()
    found = ExportReport.model_validate_json(text)
    assert found.exported.path == "out.onnx"
    described = json.loads((Path(__file__).parent.parent / "docs/schemas/export.schema.json").read_text())
    assert set(json.loads(text)) == set(described["required"])


def test_both_models_are_timed(tmp_path: Path) -> None:
    report = export(chain(1.0), tmp_path / "out.onnx", format="int8", data=inputs_of_chain(), threads=1)
    assert report.speedup is not None
    assert report.original.latency_ms is not None
    assert report.exported.latency_ms is not None
    assert report.original.latency_ms.runs == report.exported.latency_ms.runs
    assert report.speedup.low <= report.speedup.median <= report.speedup.high


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("openvino", "needs openvino, which is not installed; run: pip install openvino"),
        ("coreml", "run: pip install coremltools torch onnx2torch"),
        ("tflite", "run: pip install onnx2tf tensorflow"),
        ("tensorrt", "trtexec --onnx=model.onnx --saveEngine=out.engine"),
    ],
)
def test_a_missing_tool_is_named_with_what_brings_it(
    name: str, said: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in FORMATS[name].packages:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("PATH", str(trained))
    out = f"out{FORMATS[name].suffix}"
    ran = oamip("export", "model.onnx", out, "--format", name, cwd=trained)
    failed(ran, 3, said, trained)
    assert "error[missing-extra]" in ran.err
    assert [path.name for path in trained.iterdir()] == ["model.onnx"]


def test_trtexec_is_called_where_it_is_there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = trained / "bin"
    tools.mkdir()
    tool = tools / "trtexec"
    tool.write_text(
        '#!/bin/sh\nfor word in "$@"; do case $word in --saveEngine=*) echo engine > "${word#*=}";; esac; done'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    report = export(trained / "model.onnx", trained / "out.engine", format="tensorrt")
    assert (trained / "out.engine").read_text() == "engine\n"
    assert report.drift is None
    assert any("neither compared nor timed" in note for note in report.notes)
    tool.write_text("#!/bin/sh\necho '[E] no GPU'; exit 1")
    with pytest.raises(ModelError, match=r"trtexec cannot build an engine of the model: \[E\] no GPU"):
        export(trained / "model.onnx", trained / "other.engine", format="tensorrt")


class TensorRt:
    """TensorRT's Python package, as far as it is used: it notes the shapes that it is told."""

    ERROR = 1
    NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0)

    def __init__(self, reads: bool = True, builds: bool = True) -> None:  # noqa: FBT001, FBT002 - a stub
        self.reads, self.builds = reads, builds
        self.profiles: list[tuple[object, ...]] = []
        self.Logger = lambda level: level
        self.Logger.ERROR = 1  # type: ignore[attr-defined]

    def Builder(self, _logger: int) -> Any:  # noqa: N802 - the package's name
        profile = SimpleNamespace(set_shape=lambda *shapes: self.profiles.append(shapes))
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(
                flags=flags, num_inputs=1, get_input=lambda _: SimpleNamespace(name="x", shape=(-1, 1, 28, 28))
            ),
            create_builder_config=lambda: SimpleNamespace(add_optimization_profile=lambda _: None),
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda network, _: b"engine" if self.builds and network.flags == 1 else None,
        )

    def OnnxParser(self, _network: object, _logger: int) -> Any:  # noqa: N802 - the package's name
        error = SimpleNamespace(desc=lambda: "no kernel for Spin")
        return SimpleNamespace(
            parse_from_file=lambda path: self.reads and onnx.load(path) is not None, get_error=lambda _: error
        )


def test_the_package_of_tensorrt_builds_where_trtexec_is_missing(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(trained))
    package = TensorRt()
    module = types.ModuleType("tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    for name in ("Logger", "Builder", "OnnxParser", "NetworkDefinitionCreationFlag"):
        setattr(module, name, getattr(package, name))
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    export(trained / "model.onnx", trained / "out.engine", format="tensorrt")
    assert (trained / "out.engine").read_bytes() == b"engine"
    # From one sample on, up to as many as were drawn.
    ((name, least, usual, most),) = package.profiles
    assert (name, least, usual == most, usual[0] > 1) == ("x", (1, 1, 28, 28), True, True)
    package.builds = False
    with pytest.raises(ModelError, match="TensorRT cannot build an engine"):
        export(trained / "model.onnx", trained / "other.engine", format="tensorrt")
    package.reads = False
    with pytest.raises(ModelError, match="TensorRT cannot read the model: no kernel for Spin"):
        export(trained / "model.onnx", trained / "other.engine", format="tensorrt")
    assert not (trained / "other.engine").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["out.onnx", "--format", "int8"], 3, "error[data]: The format 'int8' measures the ranges of activations"),
        (["model.onnx", "--format", "fp16"], 3, "error[output]: The result would overwrite 'model.onnx'"),
        (["out.onnx", "--format", "fp61"], 2, "There is no format 'fp61'; did you mean 'fp16'"),
        (["out.onnx", "--format", "ort"], 2, "kept in files that end in .ort"),
        (["none/out.onnx", "--format", "fp16"], 3, "does not exist; create it first"),
        (["out.engine", "--format", "tensorrt", "--min-sqnr", "20"], 2, "leave --min-sqnr out"),
        (["out.onnx", "--format", "fp16", "--min-sqnr", "nan"], 2, "cannot be nan dB"),
        (["out.onnx", "--format", "fp16", "--json", "out.onnx"], 3, "Two results would go to 'out.onnx'"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(arguments: list[str], code: int, said: str, trained: Path) -> None:
    failed(oamip("export", "model.onnx", *arguments, cwd=trained), code, said, trained)


@pytest.mark.parametrize(("first", "what"), [("int8-dynamic", "quantised"), ("fp16", "in float16")])
@pytest.mark.parametrize("second", ["fp16", "int8", "int8-dynamic"])
def test_a_model_that_was_converted_before_is_refused(first: str, what: str, second: str, tmp_path: Path) -> None:
    export(chain(1.0), tmp_path / "first.onnx", format=first, bench=False)
    with pytest.raises(ModelError, match=rf"is {what} already, so it cannot become {second}; export the float32 model"):
        export(tmp_path / "first.onnx", tmp_path / "out.onnx", format=second, data=inputs_of_chain(), bench=False)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.frameworks
def test_openvino_is_verified_and_timed_in_openvino(trained: Path, fashion: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")
    out, data = trained / "out.xml", fashion / "calibration.npz"
    report = export(
        trained / "model.onnx", out, format="openvino", data=data, evaluation=fashion / "test.npz", threads=1
    )
    assert sorted(path.name for path in trained.iterdir()) == ["model.onnx", "out.bin", "out.xml"]
    assert report.drift is not None
    # The same float32 weights in other kernels: sums of some hundred products differ in their last bits.
    assert report.drift.sqnr_db > 100
    assert report.drift.top1_agreement == 1.0
    assert report.speedup is not None
    assert report.exported.latency_ms is not None
    with pytest.raises(TargetError, match="not to 300 dB, so nothing was written"):
        export(trained / "model.onnx", trained / "other.xml", format="openvino", data=data, min_sqnr_db=300.0)
    assert not (trained / "other.xml").exists()
    # What OpenVINO cannot load is an error of this package.
    out.write_text("<net/>")
    with pytest.raises(ModelError, match="OpenVINO does not load"):
        FORMATS["openvino"].load(out, 1)


def test_a_result_that_the_runtime_rejects_is_not_written(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_ort, "_write", lambda _model, path, _disabled: path.write_bytes(b"no model"))
    with pytest.raises(ModelError, match=r"The model as ort does not load on cpu, and nothing was written\."):
        export(trained / "model.onnx", trained / "out.ort", format="ort", bench=False)
    assert [path.name for path in trained.iterdir()] == ["model.onnx"]
