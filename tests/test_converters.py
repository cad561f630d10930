"""Converters are found by name, load without their framework, and say what they read, take and need."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.converters import (  # type: ignore[import-not-found,unused-ignore]
    Converter,
    ImportOptions,
    InputSpec,
    TorchConverter,
    load_converter,
)
from oamip_onnx.converters.base import (  # type: ignore[import-not-found,unused-ignore]
    converter_points,
    install_command,
    require_packages,
)
from oamip_onnx.converters.common import name_ends, silent  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.converters.windows import use_plain_windows  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import MissingExtraError, ModelError, UsageError
from oamip_onnx.runtime import Session

NAMES = ["jax", "keras", "onnx", "paddle", "sklearn", "tensorflow", "torch"]
FRAMEWORKS = ["flax", "jax", "keras", "onnxslim", "paddle", "skl2onnx", "tensorflow", "tf2onnx", "torch"]


def test_converters_are_registered_as_entry_points() -> None:
    assert set(NAMES) <= set(converter_points())
    (point,) = entry_points(group="oamip_onnx.converters", name="torch")
    assert point.load() is TorchConverter


@pytest.mark.parametrize("name", NAMES)
def test_a_converter_is_loaded_by_its_name_and_has_what_is_promised(name: str) -> None:
    converter = load_converter(name)
    assert isinstance(converter, Converter)
    assert converter.name == name
    assert converter.sources
    assert "onnxslim" in converter.packages
    assert "pip install" in install_command(converter)


def test_an_unknown_converter_names_the_close_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'torch'"):
        load_converter("pytorch")


def test_converters_look_at_sources_without_their_frameworks(tmp_path: Path) -> None:
    (tmp_path / "net.xyz").write_text("?")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({FRAMEWORKS}))\n"
        "from pathlib import Path; from oamip_onnx.converters import load_converter\n"
        f"found = [load_converter(name) for name in {NAMES}]\n"
        f"assert not any(one.reads(Path({str(tmp_path / 'net.xyz')!r})) or one.takes(3) for one in found)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    converter = load_converter(name)
    for package in converter.packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match="run: pip install ") as caught:
        require_packages(converter)
    assert all(package in str(caught.value) for package in converter.packages)


def named(name: str, content: bytes = b"") -> Any:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return make


def saved_model(folder: Path) -> Path:
    named("saved/saved_model.pb")(folder)
    return folder / "saved"


def paddle_model(folder: Path) -> Path:
    named("net.pdiparams")(folder)
    return Path(named("net.json")(folder))


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (named("net.pt2"), ["torch"]),
        (named("net.PT"), ["torch"]),
        (named("net.keras"), ["keras"]),
        (saved_model, ["tensorflow"]),
        (named("net.bin", b"\x1c\0\0\0TFL3more"), ["tensorflow"]),
        (named("net.tflite", b"short"), []),
        (named("net.joblib"), ["sklearn"]),
        (named("net.skops"), ["sklearn"]),
        (named("net.onnx"), ["onnx"]),
        (paddle_model, ["paddle"]),
        (named("settings.json"), []),
        (lambda folder: folder, []),
    ],
)
def test_one_converter_reads_a_source(make: Any, wanted: list[str], tmp_path: Path) -> None:
    path = make(tmp_path)
    assert [name for name in NAMES if load_converter(name).reads(path)] == wanted


def made_by(*modules: str) -> object:
    """Return an object whose classes stand in these modules, the first of them its own."""
    kind: type = object
    for module in reversed(modules):
        kind = type("Model", (kind,), {"__module__": module, "__call__": lambda self: self, "fit": None})
    return kind()


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (made_by("users", "torch.nn.modules.module"), ["torch"]),
        (made_by("users", "keras.src.models", "torch.nn.modules.module"), ["keras"]),
        (made_by("users", "keras.src.models", "tensorflow.python.module"), ["keras"]),
        (made_by("tensorflow.python.eager"), ["tensorflow"]),
        (made_by("users", "flax.linen.module"), ["jax"]),
        (made_by("jaxlib._jax"), ["jax"]),
        (made_by("sklearn.pipeline", "sklearn.base"), ["sklearn"]),
        (onnx.ModelProto(), ["onnx"]),
        (42, []),
        ({"weights": 1}, []),
    ],
)
def test_one_converter_takes_an_object(source: object, wanted: list[str]) -> None:
    assert [name for name in NAMES if load_converter(name).takes(source)] == wanted


def test_a_plain_function_is_of_jax_where_jax_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    converter = load_converter("jax")

    def function(x: object) -> object:
        return x

    monkeypatch.delitem(sys.modules, "jax", raising=False)
    assert not converter.takes(function)
    monkeypatch.setitem(sys.modules, "jax", sys)
    assert converter.takes(function)


def test_a_layer_of_paddle_has_to_be_saved_first() -> None:
    with pytest.raises(ModelError, match=r"has to be saved before it is imported: paddle\.jit\.save"):
        load_converter("paddle").takes(made_by("users", "paddle.nn.layer"))


@pytest.mark.parametrize(
    ("said", "dynamic", "shape"),
    [
        (None, True, (None, 3, None)),
        (None, False, (1, 3, None)),
        ((7, 3, 5), True, (None, 3, 5)),
        ((7, 3, 5), False, (7, 3, 5)),
    ],
)
def test_what_users_say_fills_in_what_is_free(said: Any, dynamic: bool, shape: Any) -> None:  # noqa: FBT001 - a case
    inputs = {} if said is None else {"x": InputSpec("x", said)}
    options = ImportOptions(inputs=inputs, dynamic_batch=dynamic)
    (found,) = options.described([InputSpec("x", (None, 3, None), np.dtype(np.int64))])
    assert (found.shape, found.dtype) == (shape, np.int64)


def test_a_batch_that_the_framework_fixes_stays() -> None:
    (found,) = ImportOptions(inputs={"x": InputSpec("x", (7, 3))}).described([InputSpec("x", (2, 3))])
    assert found.shape == (2, 3)


def test_samples_are_drawn_by_type() -> None:
    generator = np.random.default_rng(0)
    numbers = InputSpec("ids", (None, 50), np.dtype(np.int64), largest=9).draw(20, generator)
    assert (numbers.shape, numbers.dtype, numbers.min(), numbers.max()) == ((20, 50), np.int64, 0, 9)
    values = InputSpec("x", (2, 1000)).draw(20, generator)
    assert (values.shape, values.dtype) == ((2, 1000), np.float32)
    # Two thousand standard normals: the mean is within five of its standard deviations.
    assert abs(values.mean()) < 5 / np.sqrt(2000)


def test_what_libraries_write_past_python_is_kept_away(capfd: pytest.CaptureFixture[str]) -> None:
    import os

    with silent():
        os.write(1, b"loud")
        os.write(2, b"louder")
    os.write(1, b"heard")
    found = capfd.readouterr()
    assert (found.out, found.err) == ("heard", "")


def test_ends_get_other_names_and_what_has_them_makes_way() -> None:
    nodes = [helper.make_node("Relu", ["in:0"], ["y"]), helper.make_node("Neg", ["y"], ["out:0"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("in:0", "out:0")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]), ir_version=8)
    model.opset_import[0].version = 18
    name_ends(model, ["x"], ["y"])
    x = np.array([[-1, 2]], np.float32)
    assert Session(model).run({"x": x})["y"].tolist() == [[0, -2]]
    with pytest.raises(ValueError, match="zip"):
        name_ends(model, ["x", "z"], ["y"])


def windowed(kind: str, kernel: list[int], **attributes: Any) -> onnx.ModelProto:
    """Return a window over all axes of images with channels last, as jax2onnx writes it."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["a"]),
        helper.make_node("Unsqueeze", ["a", "one"], ["b"]),
        helper.make_node(kind, ["b"] if kind == "MaxPool" else ["b", "ones"], ["c"], **attributes),
        helper.make_node("Squeeze", ["c", "both"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(axes, np.int64), name)
        for name, axes in {"zero": [0], "one": [1], "both": [0, 1]}.items()
    ]
    weights.append(numpy_helper.from_array(np.ones((1, 1, *kernel), np.float32), "ones"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None, None, None]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


def reduced(x: Any, reduce: Any, fill: float) -> Any:
    """Return what a window of 3 × 2 with steps of 2 × 1 makes of images; the plane is padded by one row in front."""
    x = np.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=fill)
    rows = [
        np.stack([reduce(x[:, top : top + 3, left : left + 2], axis=(1, 2)) for left in range(x.shape[2] - 1)], 1)
        for top in range(0, x.shape[1] - 2, 2)
    ]
    return np.stack(rows, 1)


@pytest.mark.parametrize(("kind", "reduce", "fill"), [("MaxPool", np.max, -np.inf), ("Conv", np.sum, 0.0)])
def test_windows_over_all_axes_become_pooling_over_the_plane(kind: str, reduce: Any, fill: float) -> None:
    shape = {"kernel_shape": [1, 3, 2, 1]} if kind == "MaxPool" else {}
    model = windowed(kind, [1, 3, 2, 1], strides=[1, 2, 1, 1], pads=[0, 1, 0, 0, 0, 0, 0, 0], **shape)
    use_plain_windows(model)
    assert {"MaxPool": "MaxPool", "Conv": "AveragePool"}[kind] in {node.op_type for node in model.graph.node}
    assert not {"Unsqueeze", "Squeeze", "Conv"} & {node.op_type for node in model.graph.node}
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    # Sums of six float32 numbers: at most some units of the last place, 1.2e-7 of values below 10.
    np.testing.assert_allclose(Session(model).run({"x": x})["y"], reduced(x, reduce, fill), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [1, 2, 2, 3]},  # over channels as well
        {"kernel_shape": [1, 2, 2, 1], "strides": [2, 1, 1, 1]},
        {"kernel_shape": [1, 2, 2, 1], "dilations": [1, 2, 1, 1]},
    ],
)
def test_other_windows_stay_as_they_are(attributes: dict[str, Any]) -> None:
    model = windowed("MaxPool", [1, 2, 2, 1], **attributes)
    before = model.SerializeToString(deterministic=True)
    use_plain_windows(model)
    assert model.SerializeToString(deterministic=True) == before
