"""Real models of each framework: imported, pruned, exported, and compared with the framework at each step.

Each test is skipped where its framework is missing, with the command that installs it. Frameworks may need environments
of their own, because they pin other versions of shared packages.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import failed, oamip

from oamip_onnx import import_model
from oamip_onnx.calibration.scripts import import_file
from oamip_onnx.converters import (  # type: ignore[import-not-found,unused-ignore]
    ImportOptions,
    InputSpec,
    load_converter,
)
from oamip_onnx.exporting import export
from oamip_onnx.report import ImportReport
from oamip_onnx.runtime import Session

pytestmark = [
    pytest.mark.frameworks,
    # What the frameworks warn about is theirs.
    pytest.mark.filterwarnings("ignore"),
]


def needs(extra: str, *modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}: pip install 'oamip-onnx[{extra}]'")


needs_torch = needs("torch", "torch", "onnxscript", "onnxslim")
needs_jax = needs("jax", "jax", "flax", "jax2onnx", "onnxslim")
needs_tensorflow = needs("tensorflow", "tensorflow", "tf2onnx", "onnxslim")
needs_keras = needs("keras", "keras", "onnxslim")

# Images whose class is the brighter quarter: learnt in a few steps, and none of it by chance above a quarter.
SIZE, CLASSES = 8, 4


def images(count: int, seed: int, *, channels_last: bool) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    x = generator.normal(0, 0.5, (count, SIZE, SIZE)).astype(np.float32)
    half = SIZE // 2
    for one, label in zip(x, labels, strict=True):
        row, column = divmod(int(label), 2)
        one[row * half : (row + 1) * half, column * half : (column + 1) * half] += 1
    return (x[..., None] if channels_last else x[:, None]), labels


def pruned_and_exported(folder: Path, name: str, *, channels_last: bool) -> None:
    """Prune an imported model to half, and write it for three runtimes; each step is verified."""
    x, labels = images(256, 1, channels_last=channels_last)
    np.savez(folder / "data.npz", **{name: x}, labels=labels)
    ran = oamip(
        *("prune", "net.onnx", "small.onnx", "--data", "data.npz", "--target", "ratio=0.5", "--no-bench"),
        *("--set", "round_to=1", "--json", "p.json"),
        cwd=folder,
    )
    assert ran.code == 0, ran.err
    result = json.loads((folder / "p.json").read_text())
    assert result["verification"]["passed"]
    assert result["pruned"]["parameters"] < 0.7 * result["original"]["parameters"]
    assert result["drift"]["metric"]["pruned"] > 0.9
    kinds = [("ort", "out.ort", 100.0), ("int8", "quantised.onnx", 20.0)]
    if importlib.util.find_spec("openvino") is not None:
        kinds.append(("openvino", "out.xml", 100.0))
    for kind, file, least in kinds:
        report = export(folder / "small.onnx", folder / file, format=kind, data=folder / "data.npz", bench=False)
        assert report.drift is not None
        assert report.drift.sqnr_db >= least


def imported(folder: Path, *arguments: str) -> ImportReport:
    ran = oamip("import", *arguments, "--json", "r.json", cwd=folder)
    assert ran.code == 0, ran.err
    report = ImportReport.model_validate_json((folder / "r.json").read_text())
    assert all(one.max_rel_error <= report.tolerance for one in report.differences)
    return report


TORCH = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(16 * 16, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x):
        return self.head(self.second(self.first(x)))

def make():
    return Net()

def with_example():
    return Net(), {"image": torch.zeros(1, 1, 8, 8)}

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(50, 8), nn.Linear(12, 6)

    def forward(self, ids, extra):
        h = torch.relu(self.layer(torch.cat([self.table(ids).mean(1), extra], 1)))
        return {"sum": h.sum(1), "all": (h, ids)}

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)

def branching():
    torch.manual_seed(0)
    return Branching(), {"x": torch.zeros(1, 4)}

def two():
    torch.manual_seed(0)
    return Two(), {"ids": torch.tensor([[3, 49, 7]]), "extra": torch.zeros(1, 4)}
"""


@pytest.fixture(scope="module")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a trained network as code with weights, exported program and TorchScript."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("torch")
    (folder / "net.py").write_text(TORCH)
    torch.manual_seed(0)
    model = import_file(folder / "net.py", "test").make()
    x, labels = (torch.from_numpy(one) for one in images(512, 0, channels_last=False))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.jit.save(torch.jit.trace(model, x[:2]), folder / "scripted.pt")
    free = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (x[:2],), dynamic_shapes=free), folder / "program.pt2")
    torch.export.save(torch.export.export(model, (x[:2],)), folder / "fixed.pt2")
    torch.save(model, folder / "pickled.pt")
    with torch.no_grad():
        np.savez(folder / "expected.npz", x=x[:50].numpy(), y=model(x[:50]).numpy())
    return folder


@needs_torch
@pytest.mark.parametrize(
    ("source", "arguments", "name"),
    [
        ("net.py:make", ["--state", "weights.pt", "--input", "x=1,1,8,8"], "x"),
        ("net.py:with_example", ["--state", "weights.pt"], "image"),
        ("scripted.pt", ["--input", "x=1,1,8,8"], "x"),
        ("program.pt2", [], "x"),
    ],
)
def test_every_form_of_a_torch_model_is_imported(
    source: str, arguments: list[str], name: str, torch_folder: Path
) -> None:
    report = imported(torch_folder, source, "net.onnx", *arguments)
    assert (report.converter, report.inputs[name], report.outputs) == ("torch", ["N", 1, 8, 8], {"y": ["N", 4]})
    # Two convolutions and a linear layer, batch norms in the weights.
    assert (report.groups, report.prunable_channels) == (3, 12 + 16 + 24)
    written = onnx.load(torch_folder / "net.onnx")
    assert "BatchNormalization" not in {node.op_type for node in written.graph.node}
    assert str(torch_folder).encode() not in (torch_folder / "net.onnx").read_bytes()
    with np.load(torch_folder / "expected.npz") as expected:
        found = Session(torch_folder / "net.onnx").run({name: expected["x"]})["y"]
        np.testing.assert_allclose(found, expected["y"], rtol=0, atol=1e-5 * np.abs(expected["y"]).max())


@needs_torch
def test_a_torch_model_is_imported_pruned_and_exported(torch_folder: Path) -> None:
    report = imported(torch_folder, "net.py:make", "net.onnx", "--state", "weights.pt", "--input", "x=1,1,8,8")
    assert report.way in {"tracing exporter", "torch.export exporter"}
    assert any("was taken" in note and "against" in note for note in report.notes), report.notes
    pruned_and_exported(torch_folder, "x", channels_last=False)


@needs_torch
def test_a_torch_model_of_several_inputs_and_outputs(torch_folder: Path) -> None:
    report = imported(torch_folder, "net.py:two", "two.onnx")
    assert report.inputs == {"ids": ["N", 3], "extra": ["N", 4]}
    assert report.outputs == {"y0": ["N"], "y1": ["N", 6], "y2": ["N", 3]}
    assert [one.exact for one in report.differences] == [False, False, True]


@needs_torch
def test_a_module_keeps_its_training_modes_and_its_exporter_the_opset(torch_folder: Path) -> None:
    module = import_file(torch_folder / "net.py", "modes").make().train()
    module.first[1].eval()
    before = [part.training for part in module.modules()]
    options = ImportOptions(inputs={"x": InputSpec("x", (2, 1, 8, 8))}, opset=17)
    load_converter("torch").load(module, options).convert(torch_folder / "plain.onnx")
    assert [part.training for part in module.modules()] == before
    written = onnx.load(torch_folder / "plain.onnx")
    assert [(one.domain, one.version) for one in written.opset_import] == [("", 17)]
    assert "BatchNormalization" not in {node.op_type for node in written.graph.node}
    for value in (*written.graph.input, *written.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"


@needs_torch
def test_a_branch_on_values_is_refused(torch_folder: Path) -> None:
    ran = oamip("import", "net.py:branching", "out.onnx", cwd=torch_folder)
    failed(ran, 1, "error[verification]: The output 'y' of the ONNX model differs from what torch", torch_folder)


@needs_torch
def test_a_program_of_a_fixed_batch_says_so(torch_folder: Path) -> None:
    report = imported(torch_folder, "fixed.pt2", "fixed.onnx")
    assert report.inputs == {"x": [2, 1, 8, 8]}
    assert any("free it with dynamic_shapes in torch.export" in note for note in report.notes)


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["weights.pt"], 3, "weights alone have no code. Give the code as SOURCE, file.py:factory"),
        (["pickled.pt"], 3, "holds neither an exported program nor TorchScript"),
        (["net.py:make"], 2, "give each input, in the order of the arguments (x), with --input x=2,3,32,32"),
        (["net.py:make", "--input", "x=1,3,8,8"], 3, "The module Net fails on inputs of the shapes x (2, 3, 8, 8)"),
        (["net.py:two", "--state", "weights.pt"], 3, "The weights 'weights.pt' do not fit the module Two: "),
        (["net.py:make", "--state", "none.pt"], 3, "The file of weights 'none.pt' does not exist"),
        (["net.py:make", "--state", "pickled.pt"], 3, "cannot be read as tensors alone"),
        (["program.pt2", "--state", "weights.pt"], 2, "An exported program holds its weights"),
    ],
)
def test_what_torch_cannot_import_is_one_sentence(
    arguments: list[str], code: int, said: str, torch_folder: Path
) -> None:
    ran = oamip("import", arguments[0], "out.onnx", *arguments[1:], cwd=torch_folder)
    failed(ran, code, said, torch_folder)


JAX = """
import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx
from images import images

class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(12, (3, 3))(x))
        x = linen.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = linen.relu(linen.Conv(16, (3, 3))(x))
        x = x.reshape((x.shape[0], -1))
        return linen.Dense(4)(linen.relu(linen.Dense(24)(x)))

def trained():
    net = Net()
    x, labels = images(512, 0, channels_last=True)
    variables = net.init(jax.random.key(0), x[:1])
    optimiser = optax.adam(0.01)
    state = optimiser.init(variables)

    def loss(variables):
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(variables, x), labels).mean()

    @jax.jit
    def step(variables, state):
        updates, state = optimiser.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    for _ in range(40):
        variables, state = step(variables, state)
    return net, variables

def function():
    net, variables = trained()
    return lambda x: net.apply(variables, x)

def bound():
    net, variables = trained()
    return net.bind(variables)

class Layers(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(20, 32, rngs=rngs), nnx.BatchNorm(32, rngs=rngs)
        self.drop, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))

def layers():
    return Layers(nnx.Rngs(0)), {"x": jnp.zeros((1, 20))}

def jitted():
    table = jax.random.normal(jax.random.key(0), (10, 16))
    weight = jax.random.normal(jax.random.key(1), (16, 8))
    return jax.jit(lambda ids: jax.nn.relu(table[ids].mean(1) @ weight)), {"ids": jnp.array([[1, 9, 3]])}

def broken():
    return (lambda x: x @ jnp.ones((3, 3))), {"x": jnp.zeros((1, 4))}
"""


@pytest.fixture(scope="module")
def jax_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jax")
    (folder / "net.py").write_text(JAX)
    (folder / "images.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import importlib\nimages = importlib.import_module('test_import_frameworks').images\n"
    )
    return folder


@needs_jax
def test_a_function_of_jax_is_imported_pruned_and_exported(jax_folder: Path) -> None:
    report = imported(jax_folder, "net.py:function", "net.onnx", "--input", "x=1,8,8,1")
    assert (report.converter, report.inputs, report.outputs) == ("jax", {"x": ["N", 8, 8, 1]}, {"y": ["N", 4]})
    assert (report.groups, report.prunable_channels) == (3, 12 + 16 + 24)
    pruned_and_exported(jax_folder, "x", channels_last=True)


@needs_jax
@pytest.mark.parametrize(
    ("factory", "arguments", "units"),
    [("bound", ["--input", "x=2,8,8,1", "--fixed-batch"], 52), ("layers", [], 32), ("jitted", [], 16)],
)
def test_modules_of_flax_and_jitted_functions_are_imported(
    factory: str, arguments: list[str], units: int, jax_folder: Path
) -> None:
    report = imported(jax_folder, f"net.py:{factory}", f"{factory}.onnx", *arguments)
    assert report.prunable_channels == units
    assert report.batch_sizes == ([2] if arguments else [1, 5])


@needs_jax
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["net.py:bound"], 2, "give each input, in the order of the arguments, with --input x=1,32,32,3"),
        (["net.py:broken"], 3, "The function fails on inputs of the shapes x (2, 4): "),
        (["net.py:layers", "--state", "net.py"], 2, "A function of JAX comes with its weights"),
    ],
)
def test_what_jax_cannot_import_is_one_sentence(arguments: list[str], code: int, said: str, jax_folder: Path) -> None:
    failed(oamip("import", arguments[0], "out.onnx", *arguments[1:], cwd=jax_folder), code, said, jax_folder)


@pytest.fixture(scope="module")
def keras_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a trained model of Keras, on the backend that this run has: KERAS_BACKEND says which."""
    from oamip_onnx.converters.from_keras import choose_backend  # type: ignore[import-not-found,unused-ignore]

    choose_backend()
    import keras

    folder = tmp_path_factory.mktemp("keras")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1), name="image"),
            layers.Conv2D(12, 3, padding="same"),
            layers.BatchNormalization(momentum=0.5),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(24, activation="relu"),
            layers.Dense(CLASSES),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, labels = images(512, 0, channels_last=True)
    model.fit(x, labels, batch_size=64, epochs=6, verbose=0)
    model.save(folder / "net.keras")
    np.savez(folder / "expected.npz", x=x[:50], y=np.asarray(model.predict(x[:50], verbose=0)))
    if keras.backend.backend() == "tensorflow":
        model.export(folder / "saved", verbose=False)
        import tensorflow as tf

        lite = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
        (folder / "net.tflite").write_bytes(lite.convert())
    return folder


@needs_keras
def test_a_keras_file_is_imported_pruned_and_exported(keras_folder: Path) -> None:
    report = imported(keras_folder, "net.keras", "net.onnx")
    assert (report.converter, report.inputs, report.outputs) == (
        *("keras", {"image": ["N", 8, 8, 1]}),
        {"y": ["N", 4]},
    )
    assert (report.groups, report.prunable_channels) == (3, 12 + 16 + 24)
    with np.load(keras_folder / "expected.npz") as expected:
        found = Session(keras_folder / "net.onnx").run({"image": expected["x"]})["y"]
        np.testing.assert_allclose(found, expected["y"], rtol=0, atol=1e-5 * np.abs(expected["y"]).max())
    pruned_and_exported(keras_folder, "image", channels_last=True)


@needs_keras
def test_a_keras_model_in_memory_is_imported(keras_folder: Path, tmp_path: Path) -> None:
    import keras

    model = keras.saving.load_model(keras_folder / "net.keras")
    report = import_model(model, tmp_path / "net.onnx", fixed_batch=True)
    assert (report.converter, report.inputs) == ("keras", {"image": [1, 8, 8, 1]})


@needs_tensorflow
@pytest.mark.parametrize("source", ["saved", "net.tflite"])
def test_files_of_tensorflow_are_imported_pruned_and_exported(source: str, keras_folder: Path) -> None:
    if not (keras_folder / source).exists():
        pytest.skip("needs Keras on TensorFlow: KERAS_BACKEND=tensorflow, pip install 'oamip-onnx[keras,tensorflow]'")
    report = imported(keras_folder, source, "net.onnx")
    assert report.converter == "tensorflow"
    assert list(report.inputs.values()) == [["N", 8, 8, 1]]
    assert (report.groups, report.prunable_channels) == (3, 12 + 16 + 24)
    pruned_and_exported(keras_folder, next(iter(report.inputs)), channels_last=True)


PADDLE = """
import sys
import paddle
nn = paddle.nn
paddle.seed(0)
net = nn.Sequential(
    nn.Conv2D(1, 12, 3, padding=1), nn.BatchNorm2D(12), nn.ReLU(), nn.MaxPool2D(2),
    nn.Conv2D(12, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 24), nn.ReLU(),
    nn.Linear(24, 4),
)
net.eval()
spec = paddle.static.InputSpec([None, 1, 8, 8], "float32", name="image")
paddle.jit.save(net, sys.argv[1] + "/net", input_spec=[spec])
"""


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("paddle", "paddle2onnx", "onnxslim")),
    reason="needs paddle: pip install paddlepaddle onnxslim && pip install --no-deps paddle2onnx",
)
def test_a_saved_model_of_paddle_is_imported(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PADDLE, str(tmp_path)], check=True, capture_output=True)
    report = imported(tmp_path, "net.json", "net.onnx")
    assert (report.converter, report.inputs) == ("paddle", {"image": ["N", 1, 8, 8]})
    assert (report.groups, report.prunable_channels) == (3, 12 + 16 + 24)
