"""Samples from every source, their checks, and Gram matrices."""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from graphs import Builder
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from oamip_onnx.calibration import (
    ActivationStream,
    Samples,
    check_label_range,
    draw_rows,
    layout_of,
    load_samples,
    moments,
    random_samples,
    with_ones,
)
from oamip_onnx.errors import DataError, UsageError
from oamip_onnx.model import Model, TensorType, load_model
from oamip_onnx.runtime import Session

Floats = npt.NDArray[np.float32]


@pytest.fixture
def model() -> Model:
    b = Builder(["N", 4])
    return load_model(b.finish(b.gemm("x", 4, 3)))


@pytest.fixture
def x() -> Floats:
    return np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def test_npz(model: Model, x: Floats, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=x, labels=np.arange(6) % 3)
    samples = load_samples(tmp_path / "d.npz", model)
    assert np.array_equal(samples.feeds["x"], x)
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert load_samples(tmp_path / "d.npz", model, limit=2).count == 2


def test_npy_is_mapped_and_not_read(model: Model, x: Floats, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", x)
    np.save(tmp_path / "labels.npy", np.arange(6) % 3)
    values = load_samples(tmp_path / "d.npy", model, labels=tmp_path / "labels.npy").feeds["x"]
    assert np.array_equal(values, x)
    assert not values.flags.writeable
    owner: object = values
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    # Part by part it is looked at as well as at once.
    many = np.zeros((3000, 4), np.float32)
    many[2500, 3] = many[2501, 0] = np.inf
    np.save(tmp_path / "many.npy", many)
    with pytest.raises(DataError, match=r"not finite .* in sample 2500"):
        load_samples(tmp_path / "many.npy", model)


def test_folder_of_arrays_with_and_without_sample_axis(model: Model, x: Floats, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", x[:2])
    np.save(tmp_path / "b.npy", x[2])
    np.savez(tmp_path / "c.npz", x=x[3:])
    assert np.array_equal(load_samples(tmp_path, model).feeds["x"], x)


def test_zoo_test_data(model: Model, x: Floats, tmp_path: Path) -> None:
    for i in range(2):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        (folder / "input_0.pb").write_bytes(numpy_helper.from_array(x[i : i + 1], "x").SerializeToString())
    assert np.array_equal(load_samples(tmp_path, model).feeds["x"], x[:2])


def test_script(model: Model, tmp_path: Path) -> None:
    script = tmp_path / "d.py"
    script.write_text(
        "import numpy as np\n"
        "def samples():\n    yield {'x': np.ones((2, 4), np.float32)}\n"
        "def other():\n    yield {'x': np.zeros((1, 4), np.float32)}\n"
        "def broken():\n    raise RuntimeError('oh no')\n"
    )
    assert load_samples(script, model).count == 2
    assert load_samples(f"{script}:other", model).count == 1
    with pytest.raises(UsageError, match="no function 'nothing'"):
        load_samples(f"{script}:nothing", model)
    with pytest.raises(DataError, match="failed: RuntimeError: oh no"):
        load_samples(f"{script}:broken", model)


def test_python_sources(model: Model, x: Floats) -> None:
    class Reader:
        def __init__(self) -> None:
            self.rows: Iterator[Floats] = iter([x[:3], x[3:]])

        def get_next(self) -> Mapping[str, Floats] | None:
            row = next(self.rows, None)
            return None if row is None else {"x": row}

    for source in ({"x": x}, [{"x": x[:1]}, {"x": x[1:]}], Reader(), iter([{"x": x}])):
        assert np.array_equal(load_samples(source, model).feeds["x"], x)
    samples = load_samples({"x": x}, model)
    assert load_samples(samples, model) is samples


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"z": np.ones((2, 4), np.float32)}, r"have the keys \['z'\]; the model's inputs are \['x'\]"),
        ({"x": np.ones((2, 5), np.float32)}, r"expects the shape \(samples, 4\); .* have \(2, 5\)"),
        ({"x": np.ones((2, 4, 1), np.float32)}, r"expects the shape \(samples, 4\)"),
        ({"x": np.ones((2, 4), np.int64)}, "expects the dtype float32; .* have int64"),
        ({"x": np.array([["a"] * 4] * 2)}, "expects the dtype float32"),
        ({"x": np.full((2, 4), np.nan, np.float32)}, "not finite .* in sample 0"),
        ({"x": np.ones((0, 4), np.float32)}, "hold no samples"),
        ({"x": np.ones((2, 4), np.float32), "labels": np.array([0.5, 1])}, "labels .* dtype float64"),
        ({"x": np.ones((2, 4), np.float32), "labels": np.array([1])}, "2 samples and 1 labels"),
    ],
)
def test_wrong_data(model: Model, feeds: dict[str, npt.NDArray[np.generic]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_samples(feeds, model)


def test_wrong_files(model: Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not exist"):
        load_samples(tmp_path / "none.npz", model)
    with pytest.raises(DataError, match="holds no samples"):
        load_samples(tmp_path, model)
    (tmp_path / "bad.npz").write_bytes(b"zip?")
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        load_samples(tmp_path / "bad.npz", model)
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        load_samples(tmp_path / "pickled.npz", model)
    (tmp_path / "data.txt").write_text("1 2 3")
    with pytest.raises(DataError, match=r"neither \.npz"):
        load_samples(tmp_path / "data.txt", model)
    with pytest.raises(DataError, match="is no data source"):
        load_samples(3, model)  # type: ignore[arg-type]


def test_label_range() -> None:
    check_label_range(np.array([0, 2]), 3)
    with pytest.raises(DataError, match="label 3 of sample 1 is out of range; the model has 3 classes"):
        check_label_range(np.array([0, 3]), 3)
    with pytest.raises(DataError, match="label -1"):
        check_label_range(np.array([-1]), 3)


def test_bytes_become_floats_between_zero_and_one(model: Model) -> None:
    samples = load_samples({"x": np.array([[0, 51, 255, 102]], np.uint8)}, model)
    assert samples.feeds["x"].dtype == np.float32
    assert np.allclose(samples.feeds["x"], [[0, 0.2, 1, 0.4]])
    assert samples.notes == ("The uint8 values of 'x' were divided by 255.",)


def test_fixed_batch_is_respected() -> None:
    b = Builder([2, 4])
    fixed = load_model(b.finish(b.gemm("x", 4, 3)))
    samples = load_samples({"x": np.ones((5, 4), np.float32)}, fixed)
    assert (samples.count, samples.run_size) == (4, 2)
    assert "last 1 samples were left out" in samples.notes[0]
    assert [len(f["x"]) for f in samples.batches(100)] == [2, 2]
    with pytest.raises(DataError, match="takes 2 samples a run"):
        load_samples({"x": np.ones((1, 4), np.float32)}, fixed)


def test_random_samples_repeat_and_say_so(model: Model) -> None:
    types = {"x": TensorType((1, 4), 1)}
    first, second = (random_samples(model, types, 5, seed=3) for _ in range(2))
    assert first.is_random
    assert first.feeds["x"].shape == (5, 4)
    assert np.array_equal(first.feeds["x"], second.feeds["x"])


def test_stream_returns_activations_in_order(model: Model, x: Floats) -> None:
    stream = ActivationStream(model.proto, ["t0"])
    recorded = np.concatenate([batch["t0"] for batch in stream.batches(Samples({"x": x}), 4)])
    assert np.allclose(recorded, Session(model.proto).run({"x": x})["y"], atol=1e-6)


@settings(max_examples=30)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    auto_pad=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    seed=st.integers(0, 100),
)
def test_features_times_matrix_is_the_convolution(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    auto_pad: str,
    seed: int,
) -> None:
    assume(dilations == (1, 1) or not auto_pad.startswith("SAME"))  # ONNX Runtime has no kernel for it
    b = Builder(["N", 3, 7, 8], seed=seed)
    attributes = {"strides": strides, "dilations": dilations}
    attributes |= {"pads": pads} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    weight = b.weight(4, 3, *kernel)
    out = b.add("Conv", "x", weight, b.weight(4), **attributes)
    model = load_model(b.finish(out))
    x = b.random.normal(size=(2, 3, 7, 8)).astype(np.float32)
    y = Session(model.proto).run({"x": x})["y"]
    layout = layout_of(model.nodes[0], (4, 3, *kernel))
    assert not isinstance(layout, str)
    product = layout.rows(x) @ layout.matrix(model.array(weight)) + model.array("c1")
    assert np.allclose(product, layout.targets(y), atol=1e-4)
    assert np.array_equal(layout.weight(layout.matrix(model.array(weight)), model.array(weight)), model.array(weight))


def test_layouts_of_products() -> None:
    assert layout_of(helper.make_node("Gemm", ["a", "b"], ["c"], transA=1), (3, 4)) == "its data operand is transposed"
    turned = helper.make_node("ConvTranspose", ["a", "b"], ["c"], output_shape=[5, 5])
    assert layout_of(turned, (4, 1, 3, 3)) == "its padding follows from the shape of its output"
    layout = layout_of(helper.make_node("Gemm", ["a", "b"], ["c"], transB=1, alpha=2.0), (3, 4))
    assert not isinstance(layout, str)
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(layout.matrix(weight), 2 * weight.T)
    assert np.array_equal(layout.weight(layout.matrix(weight), weight), weight)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_features_times_matrix_is_the_layer_in_any_group_and_dimension(kind: str, group: int, axes: int) -> None:
    sizes = (9, 7, 6)[:axes]
    b = Builder(["N", 4, *sizes], seed=group)
    kernel, outputs = (3, 2, 3)[:axes], 8
    attributes: dict[str, object] = {"strides": (2, 1, 2)[:axes], "pads": [1] * (2 * axes), "group": group}
    if kind == "ConvTranspose":
        attributes |= {"output_padding": (1, 0, 0)[:axes], "dilations": (1, 2, 1)[:axes]}
    shape = (outputs, 4 // group, *kernel) if kind == "Conv" else (4, outputs // group, *kernel)
    weight, bias = b.weight(*shape), b.weight(outputs)
    model = load_model(b.finish(b.add(kind, "x", weight, bias, **attributes)))
    x = b.random.normal(size=(3, 4, *sizes)).astype(np.float32)
    y = Session(model.proto).run({"x": x})["y"]
    layout = layout_of(model.nodes[0], shape)
    assert not isinstance(layout, str)
    assert layout.groups == group
    matrix = layout.matrix(model.array(weight)).reshape(-1, group, outputs // group).swapaxes(0, 1)
    features = with_ones(layout.rows(x), group)[:, :, :-1]
    product = (features @ matrix).swapaxes(0, 1).reshape(-1, outputs) + model.array(bias)
    assert np.allclose(product, layout.targets(y), atol=1e-5)
    assert layout.count(x) == len(product)
    assert np.array_equal(layout.weight(layout.matrix(model.array(weight)), model.array(weight)), model.array(weight))


def test_moments_are_exact_sums_by_group() -> None:
    generator = np.random.default_rng(0)
    rows, targets = (generator.normal(size=(9000, width)).astype(np.float32) for width in (6, 4))
    left = with_ones(rows, 2)
    right = targets.reshape(9000, 2, 2).swapaxes(0, 1)
    for group in range(2):
        x = np.c_[rows[:, 3 * group : 3 * group + 3], np.ones(9000)].astype(np.float64)
        assert np.allclose(moments(left)[group], x.T @ x, rtol=1e-12)
        y = targets[:, 2 * group : 2 * group + 2]
        # Chunks of 4,096 rows are summed in single precision, whose unit roundoff is 2⁻²⁴.
        bound = 4096 * 2.0**-24 * (np.abs(x).T @ np.abs(y))
        assert (np.abs(moments(left, right)[group] - x.T @ y) <= bound).all()


def test_rows_are_drawn_once_each_and_repeatably() -> None:
    assert draw_rows(5, 10, np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4]
    first, second = (draw_rows(50, 10, np.random.default_rng(0)) for _ in range(2))
    assert np.array_equal(first, second)
    assert len(np.unique(first)) == 10
    assert (np.diff(first) > 0).all()


def test_chosen_patches_are_those_of_all() -> None:
    layout = layout_of(helper.make_node("Conv", ["a", "b"], ["c"], strides=[2, 1], pads=[1, 0, 1, 0]), (4, 3, 3, 2))
    assert not isinstance(layout, str)
    data = np.random.default_rng(0).normal(size=(3, 3, 7, 8))
    chosen = np.array([0, 5, 17, 40], dtype=np.int64)
    assert np.array_equal(layout.rows(data, chosen), layout.rows(data)[chosen])
