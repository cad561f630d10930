"""Converters are found by name, load without their framework, and write what ONNX Runtime runs."""

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from oamip_onnx.converters import (  # type: ignore[import-not-found,unused-ignore]
    Converter,
    TorchConverter,
    load_converter,
)
from oamip_onnx.errors import MissingExtraError, ModelError, OutputError, UsageError
from oamip_onnx.runtime import Session

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install 'oamip-onnx[torch]'"
)
X = {"x": np.zeros((2, 1, 8, 8), np.float32)}


def test_torch_converter_is_registered_as_an_entry_point() -> None:
    (point,) = entry_points(group="oamip_onnx.converters", name="torch")
    assert point.load() is TorchConverter


def test_converter_is_loaded_by_name() -> None:
    converter = load_converter("torch")
    assert isinstance(converter, TorchConverter)
    assert isinstance(converter, Converter)
    assert (converter.name, converter.extra) == ("torch", "torch")


def test_unknown_converter_names_the_close_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'torch'"):
        load_converter("pytorch")


def test_converters_import_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import oamip_onnx.converters as c; c.load_converter('torch')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'oamip-onnx\[torch\]'"):
        TorchConverter().convert(object(), tmp_path / "m.onnx", inputs=X)
    assert list(tmp_path.iterdir()) == []


def network() -> Any:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'oamip-onnx[torch]'")
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    model[1].running_mean.uniform_(-1, 1)
    return model


@needs_torch
def test_export_computes_what_the_module_computes(tmp_path: Path) -> None:
    import torch

    model = network()
    path = tmp_path / "m.onnx"
    TorchConverter().convert(model, path, inputs=X, outputs=["logits"])
    x = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    found = np.asarray(Session(path).run({"x": x})["logits"], np.float32)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


@needs_torch
def test_export_has_the_opset_a_free_batch_and_folded_batch_norms(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    TorchConverter().convert(network(), path, inputs=X)
    model = onnx.load(path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"


@needs_torch
def test_export_with_a_fixed_batch(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    TorchConverter().convert(network(), path, inputs=X, dynamic_batch=False)
    assert Session(path).inputs[0].shape == (2, 1, 8, 8)


@needs_torch
def test_export_leaves_the_training_modes_alone(tmp_path: Path) -> None:
    model = network().train()
    model[1].eval()
    TorchConverter().convert(model, tmp_path / "m.onnx", inputs=X)
    assert [part.training for part in model.modules()] == [True, True, False, True, True, True]


@needs_torch
@pytest.mark.parametrize(
    ("source", "inputs", "error", "message"),
    [
        (42, X, UsageError, "has the type int, but must be a torch.nn.Module"),
        (None, {}, UsageError, "needs one example array"),
        (None, {"x": np.zeros((2, 3), np.float32)}, ModelError, "cannot export the module Sequential to opset 17"),
    ],
)
def test_wrong_arguments_leave_the_target_untouched(
    source: object, inputs: Mapping[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("before")
    with pytest.raises(error, match=message):
        TorchConverter().convert(source or network(), path, inputs=inputs)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


@needs_torch
def test_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="choose a folder that exists"):
        TorchConverter().convert(network(), tmp_path / "none" / "m.onnx", inputs=X)
