"""`oamip import`: what is written computes what the source computes, can be pruned, and is written only then."""

import importlib
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import joblib
import numpy as np
import onnx
import onnxruntime
import pytest
from command import FAST, failed, oamip
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from oamip_onnx import import_model
from oamip_onnx.converters import (  # type: ignore[import-not-found,unused-ignore]
    FrameworkModel,
    ImportOptions,
    InputSpec,
    cleaning,
)
from oamip_onnx.errors import MissingExtraError, ModelError, OamipError, UsageError, VerificationError
from oamip_onnx.exporting import export
from oamip_onnx.importing import sources
from oamip_onnx.importing.comparison import FLOAT16_TOLERANCE, FLOAT32_TOLERANCE
from oamip_onnx.report import ImportReport
from oamip_onnx.runtime import Session


def values(name: str, shape: tuple[int, ...], scale: float = 1.0, at: float = 0.0) -> onnx.TensorProto:
    """Return an initializer of random numbers, which its name decides."""
    generator = np.random.default_rng(sum(map(ord, name)))
    return numpy_helper.from_array((at + scale * generator.random(shape)).astype(np.float32), name)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, list[int | str]],
    outputs: Mapping[str, list[int | str]],
    weights: list[onnx.TensorProto],
    *,
    opset: int = 18,
    types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    ends = [
        [
            helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), shape)
            for name, shape in one.items()
        ]
        for one in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "net", ends[0], ends[1], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4 if opset < 9 else 8)


def trained(opset: int = 9) -> onnx.ModelProto:
    """Return a network as exporters wrote it years ago: Dropout, Identity, a batch norm behind each layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "s1", "b1", "m1", "v1"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Identity", ["r1"], ["i1"]),
        helper.make_node("ConvTranspose", ["i1", "w2", "bias"], ["c2"]),
        helper.make_node("BatchNormalization", ["c2", "s2", "b2", "m2", "v2"], ["n2"]),
        helper.make_node("Relu", ["n2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Dropout", ["f"], ["d"]),
        helper.make_node("Gemm", ["d", "w3", "bias3"], ["g"]),
        helper.make_node("BatchNormalization", ["g", "s3", "b3", "m3", "v3"], ["n3"]),
        helper.make_node("Relu", ["n3"], ["r3"]),
        helper.make_node("MatMul", ["r3", "w4"], ["last"]),
        helper.make_node("Identity", ["last"], ["y"]),
    ]
    weights = [
        *(values("w1", (8, 3, 3, 3), at=-0.5), values("w2", (8, 6, 2, 2), at=-0.5), values("bias", (6,))),
        *(values("w3", (6, 12), at=-0.5), values("bias3", (12,)), values("w4", (12, 4), at=-0.5)),
    ]
    for number, width in ((1, 8), (2, 6), (3, 12)):
        weights += [values(f"{kind}{number}", (width,), at=0.5) for kind in ("s", "b", "m", "v")]
    return model_of(nodes, {"x": ["batch", 3, 8, 8]}, {"y": ["batch", 4]}, weights, opset=opset)


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def run(model: Path | onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def image(count: int = 3) -> dict[str, Any]:
    return {"x": np.random.default_rng(7).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def close(found: Any, wanted: Any) -> None:
    # Sums of some hundred float32 terms in another order differ by less than this share of the largest value.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_an_old_model_is_lifted_folded_and_computes_the_same(tmp_path: Path) -> None:
    before = trained()
    onnx.save(before, tmp_path / "old.onnx")
    report = import_model(tmp_path / "old.onnx", tmp_path / "new.onnx")
    assert kinds(tmp_path / "new.onnx") == [
        *("Conv", "Relu", "ConvTranspose", "Relu", "GlobalAveragePool", "Flatten", "Gemm", "Relu", "MatMul")
    ]
    assert (report.opset_before, report.opset_after) == (9, 18)
    assert (report.nodes_before, report.nodes_after) == (15, 9)
    # Every layer but the last, whose channels are the output.
    assert (report.groups, report.prunable_channels) == (3, 8 + 6 + 12)
    for count in (1, 3):
        close(run(tmp_path / "new.onnx", image(count))["y"], run(before, image(count))["y"])
    (difference,) = report.differences
    assert difference.name == "y"
    assert difference.max_rel_error <= report.tolerance == FLOAT32_TOLERANCE
    assert report.batch_sizes == [1, 5]
    written = onnx.load(tmp_path / "new.onnx")
    assert written.ir_version <= 10
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in written.graph.input] == ["batch"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.onnx", "old.onnx"]


def test_the_same_source_gives_the_same_bytes_and_says_where_it_came_from(tmp_path: Path) -> None:
    source = trained()
    source.metadata_props.add(key="author", value="someone")
    source.graph.node[0].doc_string = "/home/someone/net.py:12"
    onnx.save(source, tmp_path / "old.onnx")
    for name in ("a.onnx", "b.onnx"):
        import_model(tmp_path / "old.onnx", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert b"/home/" not in (tmp_path / "a.onnx").read_bytes()
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert metadata["author"] == "someone"
    assert metadata["oamip.import"] == f"onnx: onnx {onnx.__version__}"
    (step,) = json.loads(metadata["oamip.history"])
    assert (step["command"], step["options"]) == ("import", ["--from", "onnx"])


def test_an_imported_model_is_pruned_better_than_its_source(tmp_path: Path) -> None:
    onnx.save(trained(), tmp_path / "old.onnx")
    import_model(tmp_path / "old.onnx", tmp_path / "new.onnx")
    np.savez(tmp_path / "data.npz", **image(32))
    ran = oamip("prune", "new.onnx", "small.onnx", "--data", "data.npz", *FAST, "--set", "round_to=1", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert len(onnx.load(tmp_path / "small.onnx").graph.node) <= 9
    assert (tmp_path / "small.onnx").stat().st_size < (tmp_path / "new.onnx").stat().st_size


def test_a_model_older_than_onnx_runtime_takes_is_compared_with_onnx_itself(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    source = model_of(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 8]}, [values("w1", (8, 3, 3, 3), at=-0.5)], opset=6)
    source.ir_version = 3
    source.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [8, 3, 3, 3]))
    report = import_model(source, tmp_path / "new.onnx")
    assert (report.opset_before, report.opset_after) == (6, 18)
    assert list(report.inputs) == ["x"]
    assert Session(tmp_path / "new.onnx").run(image())["y"].shape == (3, 8)


def losses() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "w3", "bias3"], ["h"]),
        helper.make_node(
            "BatchNormalization", ["h", "s", "b", "m", "v"], ["n", "new_mean", "new_variance"], training_mode=1
        ),
        helper.make_node("Dropout", ["n", "ratio", "training"], ["d"]),
        helper.make_node("Relu", ["d"], ["r"]),
        helper.make_node("MatMul", ["r", "w4"], ["scores"]),
        helper.make_node("SoftmaxCrossEntropyLoss", ["scores", "labels"], ["loss"]),
    ]
    weights = [
        *(values("w3", (6, 12), at=-0.5), values("bias3", (12,)), values("w4", (12, 4), at=-0.5)),
        *(values(name, (12,), at=0.5) for name in ("s", "b", "m", "v")),
        numpy_helper.from_array(np.array(0.5, np.float32), "ratio"),
        numpy_helper.from_array(np.array(True), "training"),
    ]
    outputs: dict[str, list[int | str]] = {"loss": [], "new_mean": [12], "new_variance": [12]}
    inputs: dict[str, list[int | str]] = {"x": ["N", 6], "labels": ["N"]}
    return model_of(nodes, inputs, outputs, weights, types={"labels": TensorProto.INT64})


def test_what_only_training_needs_is_removed_and_said(tmp_path: Path) -> None:
    source = losses()
    arrays = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in source.graph.initializer}
    report = import_model(source, tmp_path / "new.onnx")
    assert kinds(tmp_path / "new.onnx") == ["Gemm", "Relu", "MatMul"]
    assert (list(report.inputs), list(report.outputs)) == (["x"], ["scores"])
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    hidden = x @ arrays["w3"] + arrays["bias3"]
    normed = (hidden - arrays["m"]) / np.sqrt(arrays["v"] + 1e-5) * arrays["s"] + arrays["b"]
    close(run(tmp_path / "new.onnx", {"x": x})["scores"], np.maximum(normed, 0) @ arrays["w4"])
    told = " ".join(report.notes)
    assert "The loss 'loss' was removed, with the inputs 'labels'; 'scores' is an output." in told
    assert "A batch norm computed the statistics of each batch; now the learnt ones are used." in told
    assert "1 Dropout node was removed." in told


def test_an_identity_between_an_input_and_an_output_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["y"], ["z"]),
    ]
    shape: list[int | str] = ["N", 3]
    source = model_of(nodes, {"x": shape}, {"same": shape, "y": shape, "z": shape}, [])
    import_model(source, tmp_path / "new.onnx")
    x = np.array([[-1, 0, 2]], np.float32)
    found = run(tmp_path / "new.onnx", {"x": x})
    assert {name: value.tolist() for name, value in found.items()} == {
        "same": [[-1, 0, 2]],
        "y": [[0, 0, 2]],
        "z": [[0, 0, 2]],
    }


def test_bodies_of_control_flow_read_on_what_was_renamed(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["same"], ["inner"])],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["N", 3])],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["same"], ["inner2"])],
        "else",
        [],
        [helper.make_tensor_value_info("inner2", TensorProto.FLOAT, ["N", 3])],
    )
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["same"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=other),
    ]
    source = model_of(nodes, {"x": ["N", 3], "flag": []}, {"y": ["N", 3]}, [], types={"flag": TensorProto.BOOL})
    import_model(source, tmp_path / "new.onnx")
    assert "Identity" not in kinds(tmp_path / "new.onnx")
    x = np.array([[-1, 0, 2]], np.float32)
    for flag, wanted in ((True, [[1, 0, 2]]), (False, [[-1, 0, -2]])):
        assert run(tmp_path / "new.onnx", {"x": x, "flag": np.array(flag)})["y"].tolist() == wanted


def test_free_sizes_are_fixed_where_that_is_asked_for(tmp_path: Path) -> None:
    source = trained(18)
    for dimension in source.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "size"
    with pytest.raises(UsageError, match=r"Dimension 2 of the input 'x' is free; .* --input x=1,3,…,…"):
        import_model(source, tmp_path / "new.onnx")
    report = import_model(source, tmp_path / "new.onnx", inputs={"x": (4, 3, 8, 8)})
    assert report.inputs == {"x": ["batch", 3, 8, 8]}
    report = import_model(source, tmp_path / "new.onnx", inputs={"x": "4,3,8,8"}, fixed_batch=True)
    assert (report.inputs, report.outputs) == ({"x": [4, 3, 8, 8]}, {"y": [4, 4]})
    assert report.batch_sizes == [4]
    # Samples say which sizes to try; they stay free.
    report = import_model(source, tmp_path / "new.onnx", data=image(6))
    assert report.inputs == {"x": ["batch", 3, "size", "size"]}
    assert report.samples == 6


def test_the_opset_is_what_was_asked_for_or_a_note_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert import_model(trained(), tmp_path / "new.onnx", opset=15).opset_after == 15
    assert import_model(trained(18), tmp_path / "new.onnx", opset=17).opset_after == 17

    def broken(_model: onnx.ModelProto, _opset: int) -> onnx.ModelProto:
        raise RuntimeError("no adapter for Foo")

    monkeypatch.setattr(onnx.version_converter, "convert_version", broken)
    report = import_model(trained(), tmp_path / "new.onnx")
    assert report.opset_after == 9
    assert "The opset stays 9, because ONNX's converter cannot bring it to 18: no adapter for Foo." in report.notes


@pytest.mark.parametrize("fault", ["raises", "other ends"])
def test_the_graph_is_simplified_less_where_onnxslim_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slim(model: onnx.ModelProto) -> onnx.ModelProto:
        if fault == "raises":
            raise ValueError("no pattern")
        model.graph.node[-1].output[0] = model.graph.output[0].name = "other"
        return model

    monkeypatch.setattr(importlib.import_module("onnxslim"), "slim", slim)
    source = trained(18)
    cleaned = cleaning.clean(source, None, [])
    assert "Identity" not in {node.op_type for node in cleaned.model.graph.node}
    told = {
        "raises": "onnxslim cannot simplify the graph, so it was simplified less: no pattern.",
        "other ends": "onnxslim changed inputs or outputs, so its graph was not taken.",
    }
    assert cleaned.notes[-1] == told[fault]
    close(run(cleaned.model, image())["y"], run(trained(18), image())["y"])


def test_half_precision_has_a_tolerance_of_its_own(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float16), "w")
    half = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    source = model_of(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, [weight], types=half)
    assert import_model(source, tmp_path / "new.onnx").tolerance == FLOAT16_TOLERANCE


def digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def network(scaler: Any, labels: Any = None) -> Any:
    x, classes = digits()
    made = make_pipeline(scaler, MLPClassifier((48, 32), max_iter=30, tol=0, n_iter_no_change=30, random_state=0))
    with pytest.warns(UserWarning, match="Maximum iterations"):
        return made.fit(x, classes if labels is None else labels)


def test_a_pipeline_of_sklearn_is_imported_pruned_and_exported(tmp_path: Path) -> None:
    pipeline = network(MinMaxScaler())
    joblib.dump(pipeline, tmp_path / "net.joblib")
    x, classes = digits()
    np.savez(tmp_path / "data.npz", x=x.astype(np.float32), labels=classes)
    ran = oamip("import", "net.joblib", "net.onnx", "--json", "r.json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    report = ImportReport.model_validate_json((tmp_path / "r.json").read_text())
    assert (report.converter, report.inputs) == ("sklearn", {"x": ["N", 64]})
    assert report.outputs == {"label": ["N"], "probabilities": ["N", 10]}
    assert (report.groups, report.prunable_channels) == (2, 80)
    found = run(tmp_path / "net.onnx", {"x": x.astype(np.float32)})
    np.testing.assert_array_equal(found["label"], pipeline.predict(x))
    # float32 against float64: a few units of the last place of probabilities up to 1.
    np.testing.assert_allclose(found["probabilities"], pipeline.predict_proba(x), rtol=0, atol=1e-5)
    ran = oamip(
        *("prune", "net.onnx", "small.onnx", "--data", "data.npz", "--target", "ratio=0.5", "--no-bench"),
        *("--json", "p.json"),
        cwd=tmp_path,
    )
    assert ran.code == 0, ran.err
    pruned = json.loads((tmp_path / "p.json").read_text())
    assert pruned["verification"]["passed"]
    assert pruned["drift"]["metric"]["pruned"] > 0.9  # ten classes: by chance 0.1
    kinds = [("ort", ".ort", 100.0), ("int8", ".onnx", 20.0)]
    if importlib.util.find_spec("openvino") is not None:
        kinds.append(("openvino", ".xml", 100.0))
    for name, suffix, least in kinds:
        exported = export(
            tmp_path / "small.onnx", tmp_path / f"out{suffix}", format=name, data=tmp_path / "data.npz", bench=False
        )
        assert exported.drift is not None
        assert exported.drift.sqnr_db >= least


def test_scalers_and_classes_become_operators_that_every_runtime_has(tmp_path: Path) -> None:
    x, classes = digits()
    words = np.array(["even", "odd"])[classes % 2]
    pipeline = network(StandardScaler(), words)
    report = import_model(pipeline, tmp_path / "net.onnx", data={"x": x[:200].astype(np.float32)})
    assert report.samples == 200
    written = onnx.load(tmp_path / "net.onnx")
    assert {one.domain for one in written.opset_import} == {""}
    assert set(run(tmp_path / "net.onnx", {"x": x[:50].astype(np.float32)})["label"]) == {"even", "odd"}
    numbers = import_model(network(StandardScaler()), tmp_path / "numbers.onnx")
    assert {one.domain for one in onnx.load(tmp_path / "numbers.onnx").opset_import} == {""}
    assert [one.exact for one in numbers.differences] == [True, False]


def test_a_regressor_and_a_scaler_alone_are_imported(tmp_path: Path) -> None:
    x, y = digits()
    with pytest.warns(UserWarning, match="Maximum iterations"):
        regressor = MLPRegressor(hidden_layer_sizes=(16,), max_iter=5, random_state=0).fit(x, y)
    report = import_model(regressor, tmp_path / "net.onnx", fixed_batch=True)
    assert report.inputs == {"x": [1, 64]}
    assert (report.groups, report.prunable_channels) == (1, 16)
    report = import_model(MinMaxScaler().fit(x), tmp_path / "net.onnx")
    assert report.groups == 0


FACTORY = """
import numpy as np
from helper import LAYER

def broken():
    raise RuntimeError("the weights are gone\\nsecond line")

def number():
    return 42

def fitted():
    from sklearn.preprocessing import MinMaxScaler
    print("fitting")
    return MinMaxScaler().fit(np.eye(LAYER))

def unfitted():
    from sklearn.neural_network import MLPClassifier
    return MLPClassifier()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(trained(), tmp_path / "old.onnx")
    (tmp_path / "net.py").write_text(FACTORY)
    (tmp_path / "helper.py").write_text("LAYER = 4\n")
    (tmp_path / "syntax.py").write_text("def model(:\n")
    (tmp_path / "model.xyz").write_text("?")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07no model")
    (tmp_path / "broken.joblib").write_bytes(b"no pickle")
    joblib.dump({"a": 1}, tmp_path / "dict.joblib")
    (tmp_path / "folder").mkdir()
    return tmp_path


def test_a_factory_may_import_what_is_beside_it_and_print(folder: Path) -> None:
    ran = oamip("import", "net.py:fitted", "out.onnx", "--json", "-", cwd=folder)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["inputs"] == {"x": ["N", 4]}
    assert "fitting" in ran.err
    assert str(folder.resolve()) not in sys.path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["none.onnx"], 3, "error[model]: The source 'none.onnx' does not exist; check the path."),
        (["none.py:f"], 3, "error[model]: The file 'none.py' of the model does not exist"),
        (["model.xyz"], 3, "error[model]: No converter reads 'model.xyz'; jax reads file.py:factory"),
        (["model.xyz"], 3, "torch reads .pt2 (exported program), .pt, .pth, .ts (TorchScript), file.py:factory"),
        (["folder"], 3, "No converter reads 'folder'"),
        (["net.py:broken"], 3, "The function broken() in 'net.py' failed: RuntimeError: the weights are gone\n"),
        (["net.py:number"], 3, "What number() in 'net.py' returned, of the type int, is no model"),
        (["net.py:absent"], 2, "The file 'net.py' has no function 'absent'"),
        (["net.py"], 2, "The file 'net.py' has no function 'model'"),
        (["syntax.py"], 3, "The function model() in 'syntax.py' failed: SyntaxError"),
        (["net.py:unfitted"], 2, "does not say how many features it takes, or it was not fitted"),
        (["broken.onnx"], 3, "is no ONNX model, or it is truncated"),
        (["broken.joblib"], 3, "The converter 'sklearn' cannot read 'broken.joblib'"),
        (["dict.joblib"], 3, "holds a dict, which is no estimator"),
        (["old.onnx", "--from", "tourch"], 2, "No converter is called 'tourch'; did you mean 'torch'"),
        (["old.onnx", "--state", "model.xyz"], 2, "An ONNX model holds its weights; leave --state out."),
        (["old.onnx", "--input", "z=1,3,8,8"], 2, "There is no input 'z'; the model has 'x'"),
        (["old.onnx", "--input", "x=1,4,8,8"], 2, "has the shape …,3,8,8, which 1,4,8,8 does not fit"),
        (["old.onnx", "--input", "x"], 2, "The input 'x' is not of the form x=1,3,224,224"),
        (["old.onnx", "--input", "x=1,-3"], 2, "The shape '1,-3' of the input 'x' is not of the form"),
        (["old.onnx", "--input", "x=1,3,8,8:floot32"], 2, "There is no type 'floot32' for the input 'x'; did you mean"),
        (["old.onnx", "--opset", "9"], 2, "The opset 9 is not between 13 and"),
        (["old.onnx", "--tolerance", "0"], 2, "The tolerance cannot be 0.0"),
        (["old.onnx", "--data", "none.npz"], 3, "error[data]"),
        (["old.onnx", "--json", "out.onnx"], 3, "Two results would go to 'out.onnx'"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: list[str], code: int, said: str, folder: Path) -> None:
    failed(oamip("import", arguments[0], "out.onnx", *arguments[1:], cwd=folder), code, said, folder)


def test_the_source_is_not_overwritten(folder: Path) -> None:
    before = (folder / "old.onnx").read_bytes()
    ran = oamip("import", "old.onnx", "old.onnx", cwd=folder)
    failed(ran, 3, "error[output]: The result would overwrite 'old.onnx', which is read", folder)
    assert (folder / "old.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "packages"),
    [("old.onnx", ["onnxslim"]), ("net.pt2", ["torch"]), ("net.keras", ["keras"]), ("net.tflite", ["tensorflow"])],
)
def test_missing_packages_are_named_with_what_brings_them(
    source: str, packages: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (folder / source).exists():
        (folder / source).write_bytes(b"....TFL3")
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    ran = oamip("import", source, "out.onnx", cwd=folder)
    failed(ran, 3, "error[missing-extra]: The converter ", folder)
    assert "run: pip install 'oamip-onnx[" in ran.err


def test_the_command_prints_what_was_done(folder: Path) -> None:
    ran = oamip("import", "old.onnx", "out.onnx", "--json", "r.json", cwd=folder)
    assert ran.code == 0, ran.err
    assert "26 channels in 3 groups" in ran.out
    assert "Compared with the framework on 12 samples in batches of 1 and 5" in ran.out
    assert "note: 1 Dropout node was removed." in ran.err
    text = (folder / "r.json").read_text()
    described = json.loads((Path(__file__).parent.parent / "docs/schemas/import.schema.json").read_text())
    assert set(json.loads(text)) == set(described["required"])


class Doubled(FrameworkModel):  # type: ignore[misc,unused-ignore]
    """Twice its input by numpy; ONNX as a test wants it."""

    framework = "numpy 0"

    def __init__(self, made: Mapping[str, Callable[[], onnx.ModelProto]]) -> None:
        self.ways = tuple(made)
        self.inputs = (InputSpec("x", (None, 4)),)
        self._made = made

    def convert(self, path: Path, way: str = "") -> None:
        onnx.save(self._made[way](), path)

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        return [2 * feeds["x"]]


def scaled(factor: float, shape: tuple[int | str, ...] = ("N", 4), extra: int = 0) -> Callable[[], onnx.ModelProto]:
    """Return what makes a model: a product, behind it as many nodes as wanted."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["h0"])]
    nodes += [helper.make_node("Neg", [f"h{number}"], [f"h{number + 1}"]) for number in range(2 * extra)]
    nodes.append(helper.make_node("Reshape" if len(shape) == 1 else "Abs", [f"h{2 * extra}"], ["a"]))
    if len(shape) == 1:
        nodes[-1].input.append("flat")
    nodes.append(helper.make_node("Sign", ["x"], ["s"]))
    nodes.append(
        helper.make_node("Mul", ["a", "s"], ["y"]) if len(shape) > 1 else helper.make_node("Neg", ["a"], ["y"])
    )
    weights = [
        numpy_helper.from_array(np.array(factor, np.float32), "factor"),
        numpy_helper.from_array(np.array([-1]), "flat"),
    ]
    return lambda: model_of(nodes, {"x": ["N", 4]}, {"y": list(shape)}, weights)


class Registered:
    """A converter that another package could register: one file, one entry point."""

    name: ClassVar[str] = "doubled"
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("numpy",)
    sources: ClassVar[str] = ".doubled"

    def __init__(self) -> None:
        self.options: list[ImportOptions] = []

    def reads(self, path: Path) -> bool:
        return path.suffix == ".doubled"

    def takes(self, source: object) -> bool:
        return isinstance(source, Doubled)

    def load(self, source: Any, options: ImportOptions) -> FrameworkModel:
        self.options.append(options)
        return source if isinstance(source, Doubled) else Doubled({"": scaled(2)})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Registered:
    converter = Registered()
    monkeypatch.setattr(sources, "converter_points", lambda: {"doubled": None})
    monkeypatch.setattr(sources, "load_converter", lambda _name: converter)
    return converter


def test_a_converter_of_another_package_is_found(registered: Registered, tmp_path: Path) -> None:
    (tmp_path / "net.doubled").write_text("")
    report = import_model(tmp_path / "net.doubled", tmp_path / "out.onnx", opset=17, fixed_batch=True)
    assert (report.converter, report.framework, report.opset_after) == ("doubled", "numpy 0", 17)
    assert [(options.opset, options.dynamic_batch) for options in registered.options] == [(17, False)]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (scaled(2.001), r"The output 'y' of the ONNX model differs from what numpy 0 computes by .* and above the"),
        (scaled(np.nan), r"The output 'y' is not finite where the framework's is"),
        (scaled(-2, ("M",)), r"has the shape \(4,\) for a batch of 1, where the framework's has \(1, 4\)"),
    ],
)
@pytest.mark.usefixtures("registered")
def test_a_model_that_differs_is_not_written(made: Callable[[], onnx.ModelProto], said: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=said) as caught:
        import_model(Doubled({"": made}), tmp_path / "out.onnx")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def of_one_batch() -> onnx.ModelProto:
    """Return a model that declares a free batch and takes only one sample."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["h"]), helper.make_node("Mul", ["h", "factor"], ["y"])]
    weights = [
        numpy_helper.from_array(np.array([1, 4]), "shape"),
        numpy_helper.from_array(np.array(2, np.float32), "factor"),
    ]
    return model_of(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, weights)


@pytest.mark.usefixtures("registered")
def test_a_model_of_one_batch_is_not_written_as_one_of_any(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("before")
    said = r"does not run on a batch of 5, which numpy 0 takes, and nothing was written; .* give --fixed-batch"
    with pytest.raises(VerificationError, match=said):
        import_model(Doubled({"": of_one_batch}), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.usefixtures("registered")
def test_a_difference_may_be_allowed(tmp_path: Path) -> None:
    report = import_model(Doubled({"": scaled(2.001)}), tmp_path / "out.onnx", tolerance=1e-3)
    # One part in two thousand.
    assert report.differences[0].max_rel_error == pytest.approx(0.0005, rel=1e-3)


@pytest.mark.usefixtures("registered")
def test_of_several_ways_the_best_that_is_right_is_taken(tmp_path: Path) -> None:
    def broken() -> onnx.ModelProto:
        raise RuntimeError("no such operator\nmore")

    ways = {"wordy": scaled(2, extra=2), "short but wrong": scaled(3), "short": scaled(2), "broken": broken}
    report = import_model(Doubled(ways), tmp_path / "out.onnx")
    assert report.way == "short"
    told = "\n".join(report.notes)
    assert "Another exporter was tried: The broken of numpy 0 cannot convert the model: RuntimeError: no such" in told
    assert "The graph of another exporter was not taken: The output 'y' of the ONNX model differs" in told
    assert "more" not in told.replace("more than", "")
    with pytest.raises(ModelError, match="The broken of numpy 0 cannot convert the model: RuntimeError: no such"):
        import_model(Doubled({"broken": broken}), tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()


def test_errors_of_this_package_pass_through_a_converter() -> None:
    with pytest.raises(MissingExtraError), sources.own_failures("x"):
        raise MissingExtraError("y")
    with pytest.raises(ModelError, match="x: KeyError: 'z'"), sources.own_failures("x"):
        raise KeyError("z")
    assert issubclass(ModelError, OamipError)


def test_the_converter_that_the_page_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "converters.md").read_text(encoding="utf-8")
    (code,) = [block for block in page.split("```python\n")[1:] if "class MyConverter" in block]

    class Network:
        features = 4

        def write_onnx(self, path: Path, opset: int) -> None:
            del opset
            onnx.save(scaled(2)(), path)

        def __call__(self, x: Any) -> Any:
            return 2 * x

    framework = types.ModuleType("mine")
    framework.load = lambda _path: Network()  # type: ignore[attr-defined]
    framework.__spec__ = importlib.machinery.ModuleSpec("mine", None)
    monkeypatch.setitem(sys.modules, "mine", framework)
    names: dict[str, Any] = {}
    exec(code.partition("```")[0], names)  # noqa: S102 - what readers copy
    monkeypatch.setattr(sources, "converter_points", lambda: {"mine": None})
    monkeypatch.setattr(sources, "load_converter", lambda _name: names["MyConverter"]())
    (tmp_path / "net.mine").write_text("")
    report = import_model(tmp_path / "net.mine", tmp_path / "out.onnx")
    assert (report.framework, report.inputs) == ("mine 1.0", {"x": ["N", 4]})
