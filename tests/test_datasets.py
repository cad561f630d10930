"""Data sets are read as they are published, in the shape that the model takes."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from command import FAST, failed, oamip
from graphs import Builder
from sklearn.datasets import load_digits

from oamip_onnx.calibration import load_samples
from oamip_onnx.calibration.datasets import fitted, read_dataset
from oamip_onnx.errors import DataError
from oamip_onnx.model import load_model

GENERATOR = np.random.default_rng(0)


def write_idx(path: Path, values: np.ndarray, *, compress: bool = True) -> None:
    header = np.array([2048 + values.ndim, *values.shape], ">i4").tobytes()
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, count in (("train", 30), ("t10k", 20)):
        compress = name == "train"  # the files come in both ways
        suffix = ".gz" if compress else ""
        images, labels = GENERATOR.integers(0, 256, (count, 8, 8)), GENERATOR.integers(0, 5, count)
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", images, compress=compress)
        write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", labels, compress=compress)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    return folder


def network(shape: list[int | str]) -> bytes:
    builder = Builder(shape)
    x = builder.add("Flatten", "x")
    features = int(np.prod([size for size in shape[1:] if isinstance(size, int)]))
    return builder.finish(builder.gemm(builder.add("Relu", builder.gemm(x, features, 16)), 16, 10)).SerializeToString()


@pytest.mark.parametrize(("split", "name"), [("", "train"), (":train", "train"), (":test", "t10k")])
def test_idx_files_are_read_by_split(mnist: Path, split: str, name: str) -> None:
    found = read_dataset(f"{mnist}{split}")
    with np.load(mnist.parent / f"{name}.npz") as expected:
        assert found is not None
        np.testing.assert_array_equal(found.images[:, 0], expected["images"])
        np.testing.assert_array_equal(found.labels, expected["labels"])


@pytest.mark.parametrize(
    ("label_bytes", "names"), [(1, ["data_batch_1.bin", "test_batch.bin"]), (2, ["train.bin", "test.bin"])]
)
def test_cifar_files_are_read(tmp_path: Path, label_bytes: int, names: list[str]) -> None:
    rows = GENERATOR.integers(0, 256, (6, label_bytes + 3072)).astype(np.uint8)
    files = [f"data_batch_{number}.bin" for number in range(1, 6)] if label_bytes == 1 else names[:1]
    for file in [*files, names[1]]:
        (tmp_path / file).write_bytes(rows.tobytes())
    found = read_dataset(f"{tmp_path}:train")
    assert found is not None
    assert found.images.shape == (6 * len(files), 3, 32, 32)
    # Red first, row by row; the finest label counts.
    assert found.images[1, 0, 0, 1] == rows[1, label_bytes + 1]
    assert found.images[2, 2, 31, 31] == rows[2, -1]
    np.testing.assert_array_equal(found.labels[:6], rows[:, label_bytes - 1])
    (tmp_path / names[1]).write_bytes(rows.tobytes()[:-1])
    with pytest.raises(DataError, match="is no binary file of CIFAR, or it is damaged"):
        read_dataset(f"{tmp_path}:test")
    (tmp_path / names[1]).unlink()
    with pytest.raises(DataError, match=f"but not {names[1]}"):
        read_dataset(f"{tmp_path}:test")


def test_digits_are_built_in_and_split_by_writers() -> None:
    train, test = read_dataset("digits"), read_dataset("digits:test")
    assert train is not None
    assert test is not None
    whole = load_digits()
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), whole.target)
    np.testing.assert_allclose(np.concatenate([train.images, test.images])[:, 0] * 16, whole.images)
    assert len(test.labels) == 500


def test_digits_grow_to_the_size_of_the_input() -> None:
    train = read_dataset("digits")
    assert train is not None
    images = train.images[:5]
    grown = fitted(images, [0, 1, 28, 28])
    assert (grown.shape, grown.dtype) == ((5, 1, 28, 28), np.float32)
    # Linear interpolation stays between the values, and keeps the mean but for the frame.
    assert grown.min() >= 0
    assert grown.max() <= 1
    np.testing.assert_allclose(grown.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.02)
    np.testing.assert_array_equal(fitted(images, [0, 1, 8, 8]), images)


@pytest.mark.parametrize(
    ("shape", "inner"),
    [((0, 784), (784,)), ((0, 28, 28), (28, 28)), ((0, 28, 28, 1), (28, 28, 1)), ((0, 3), (1, 28, 28))],
)
def test_images_take_the_shape_of_the_input(shape: tuple[int, ...], inner: tuple[int, ...]) -> None:
    images = np.arange(2 * 784, dtype=np.float32).reshape(2, 1, 28, 28)
    found = fitted(images, shape)
    assert found.shape == (2, *inner)
    np.testing.assert_array_equal(found.ravel(), images.ravel())


def test_channels_go_last_where_the_input_wants_them_there() -> None:
    images = GENERATOR.normal(size=(2, 3, 4, 5))
    np.testing.assert_array_equal(fitted(images, (0, 4, 5, 3)), images.transpose(0, 2, 3, 1))


def test_a_model_is_pruned_on_a_data_set(mnist: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(network(["N", 1, 8, 8]))
    ran = oamip("prune", "model.onnx", "small.onnx", "--data", mnist, "--eval", f"{mnist}:test", *FAST, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "Accuracy" in ran.out
    samples = load_samples("digits:test", load_model(tmp_path / "model.onnx"))
    assert samples.count == 500
    assert samples.labels is not None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "but not t10k-labels-idx1-ubyte.gz"),
        (lambda folder: (folder / "t10k-images-idx3-ubyte").write_bytes(b"damaged"), "is no IDX file of the kind 2051"),
        (
            lambda folder: write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(3), compress=False),
            "20 t10k images and 3",
        ),
        (
            lambda folder: (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"no gzip"),
            "cannot be read, or is damaged",
        ),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(mnist: Path, damage: object, message: str, tmp_path: Path) -> None:
    assert callable(damage)
    damage(mnist)
    (tmp_path / "model.onnx").write_bytes(network(["N", 1, 8, 8]))
    ran = oamip("prune", "model.onnx", "out.onnx", "--data", f"{mnist}:test", *FAST, cwd=tmp_path)
    failed(ran, 3, message, tmp_path)


def test_what_is_no_data_set_is_none(tmp_path: Path) -> None:
    assert read_dataset(str(tmp_path)) is None
    assert read_dataset(f"{tmp_path}/none:test") is None
