"""Where samples come from: files, folders, generators, readers, or a random draw. Every source ends as `Samples`."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import onnx
from onnx import numpy_helper

from oamip_onnx.calibration.checks import check_feeds, check_labels, float_input_from_bytes
from oamip_onnx.calibration.datasets import fitted, read_dataset
from oamip_onnx.calibration.samples import Samples
from oamip_onnx.calibration.scripts import import_file
from oamip_onnx.errors import DataError, UsageError
from oamip_onnx.model import Array, Model, TensorType

LABELS_KEY = "labels"


@runtime_checkable
class DataReader(Protocol):
    """ONNX Runtime's calibration data reader."""

    def get_next(self) -> Mapping[str, Array] | None:
        """Return the next feeds, or None at the end."""


Source = str | Path | Samples | Mapping[str, Array] | DataReader | Iterable[Mapping[str, Array]]


def load_samples(
    source: Source, model: Model, *, labels: str | Path | Array | None = None, limit: int | None = None
) -> Samples:
    """Return the samples of a source, checked against the model's inputs.

    Parameters
    ----------
    source
        A ``.npz`` keyed by input name; a folder of ``.npy`` or ``.npz`` files or of ``test_data_set_*``;
        a data set by its folder or name, and a split (see `oamip_onnx.calibration.datasets.read_dataset`);
        ``file.py`` or ``file.py:function`` whose function yields dicts; in Python also a dict of arrays, an iterable
        of dicts, or an object with ``get_next``.
    model
        The model the samples are for.
    labels
        Class indices, or the ``.npy`` file that holds them; the key ``labels`` of the source by default.
    limit
        Use at most this many samples, from the front.

    Raises
    ------
    DataError
        If the source is missing or empty, or a key, shape, dtype or value is wrong; shows expected and got.
    """
    if isinstance(source, Samples):
        return source
    parts = list(_parts(source, model))
    if not parts:
        raise DataError(f"The data source {_name(source)} holds no samples.")
    by_run = runs_alone(model) or (len(parts) > 1 and any(_is_uneven(part, model) for part in parts))
    if by_run:
        parts = [_with_run_axis(part, model) for part in parts]
    feeds, found = _stack(parts, _name(source))
    if labels is not None:
        found = _load_labels(labels)
    notes: list[str] = []
    feeds = {name: float_input_from_bytes(model, name, values, notes) for name, values in feeds.items()}
    run_size, feeds = check_feeds(model, feeds, _name(source), notes, by_run=by_run)
    samples = Samples(feeds, None, run_size, notes=tuple(notes), by_run=by_run)
    if found is not None:
        samples = replace(samples, labels=check_labels(found, samples.count, _name(source)))
    return samples if limit is None or limit >= samples.count else samples.take(slice(0, limit))


def random_samples(
    model: Model,
    types: Mapping[str, TensorType],
    count: int,
    seed: int,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Samples:
    """Return `count` samples drawn at random: standard normal for floats, 0 and 1 for integers.

    Inputs in `ranges` are drawn uniformly between the two numbers.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    run_size = None
    by_run = runs_alone(model)
    for value in model.graph.input:
        kind = types[value.name]
        declared = value.type.tensor_type.shape.dim
        if declared and declared[0].dim_value > 0 and not by_run:
            run_size = declared[0].dim_value
        rows = -(-count // run_size) * run_size if run_size else count
        shape = (rows, *(kind.shape if by_run else kind.shape[1:]))
        if ranges is not None and value.name in ranges:
            feeds[value.name] = generator.uniform(*ranges[value.name], size=shape).astype(kind.dtype)
        elif np.issubdtype(kind.dtype, np.floating):
            feeds[value.name] = generator.normal(size=shape).astype(kind.dtype)
        else:
            feeds[value.name] = generator.integers(0, 2, size=shape).astype(kind.dtype)
    note = "The samples were drawn at random: scores and drift say little about real inputs."
    return Samples(feeds, None, run_size, is_random=True, notes=(note,), by_run=by_run)


def runs_alone(model: Model) -> bool:
    """Return whether the inputs share no sample axis: a scalar among them, or a first axis fixed to another size."""
    first = []
    for value in model.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if not dimensions:
            return True
        first.append(dimensions[0].dim_value)
    return any(size > 1 for size in first) and len(set(first)) > 1


def _is_uneven(part: dict[str, Array], model: Model) -> bool:
    """Return whether the inputs of one part differ in their first axis: it can only be a run."""
    return len({part[name].shape[0] for name in model.input_names if name in part and part[name].ndim}) > 1


def _with_run_axis(part: dict[str, Array], model: Model) -> dict[str, Array]:
    """Return feeds with an axis of runs in front: one run, unless every input has that axis already."""
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.input}
    if all(part[name].ndim == rank + 1 for name, rank in ranks.items() if name in part):
        return part
    return {name: values[None] if name in ranks else np.atleast_1d(values) for name, values in part.items()}


def _name(source: object) -> str:
    return repr(str(source)) if isinstance(source, str | Path) else f"of type {type(source).__name__}"


def _parts(source: Source, model: Model) -> Iterator[dict[str, Array]]:
    """Yield feeds, each with a sample axis, labels under `LABELS_KEY`."""
    if isinstance(source, str | Path):
        yield from _from_path(str(source), model)
    elif isinstance(source, Mapping):
        yield {name: np.asarray(values) for name, values in source.items()}
    elif isinstance(source, DataReader):
        while (feeds := source.get_next()) is not None:
            yield {name: np.asarray(values) for name, values in feeds.items()}
    elif isinstance(source, Iterable):
        for feeds in source:
            if not isinstance(feeds, Mapping):
                raise DataError(f"The data source yields {type(feeds).__name__}; it must yield dicts of arrays.")
            yield {name: np.asarray(values) for name, values in feeds.items()}
    else:
        raise DataError(f"A {type(source).__name__} is no data source; give a path, a dict or an iterable of dicts.")


def _from_path(text: str, model: Model) -> Iterator[dict[str, Array]]:
    script, _, function = text.rpartition(":")
    if script.endswith(".py"):
        yield from _from_script(Path(script), function)
        return
    dataset = read_dataset(text)
    if dataset is not None:
        name = _only_input(model, Path(text))
        (value,) = (one for one in model.graph.input if one.name == name)
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        yield {name: fitted(dataset.images, shape), LABELS_KEY: dataset.labels}
        return
    path = Path(text)
    if not path.exists():
        raise DataError(f"The data {text!r} do not exist; check the path.")
    if path.suffix == ".py":
        yield from _from_script(path, "samples")
    elif path.is_dir():
        yield from _from_folder(path, model)
    elif path.suffix == ".npz":
        yield _read_npz(path)
    elif path.suffix == ".npy":
        yield {_only_input(model, path): _read_npy(path)}
    else:
        raise DataError(f"The data {text!r} are neither .npz, .npy, a folder nor file.py[:function].")


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"The data file {str(path)!r} cannot be read as .npz: {error}.") from error


def _read_npy(path: Path) -> Array:
    """Return an array that is mapped, not read: samples may be larger than the memory."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"The data file {str(path)!r} cannot be read as .npy: {error}.") from error


def _only_input(model: Model, path: Path) -> str:
    if len(model.input_names) != 1:
        raise DataError(
            f"The model has the inputs {', '.join(model.input_names)}; {str(path)!r} holds one array. "
            "Use .npz files keyed by input name."
        )
    return model.input_names[0]


def _from_folder(path: Path, model: Model) -> Iterator[dict[str, Array]]:
    sets = sorted(path.glob("test_data_set_*")) or ([path] if list(path.glob("input_*.pb")) else [])
    for folder in sets:
        yield {name: _read_tensor(folder / f"input_{i}.pb") for i, name in enumerate(model.input_names)}
    if sets:
        return
    files = sorted([*path.glob("*.npy"), *path.glob("*.npz")])
    ranks = {i.name: len(i.type.tensor_type.shape.dim) for i in model.graph.input}
    for file in files:
        arrays = _read_npz(file) if file.suffix == ".npz" else {_only_input(model, file): _read_npy(file)}
        # A file may hold one sample without a sample axis.
        yield {
            name: values[None] if name in ranks and values.ndim == ranks[name] - 1 else np.atleast_1d(values)
            for name, values in arrays.items()
        }


def _read_tensor(path: Path) -> Array:
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return numpy_helper.to_array(tensor)
    except Exception as error:  # protobuf and numpy raise unrelated classes on damaged files
        raise DataError(f"The tensor file {str(path)!r} cannot be read: {error}.") from error


def _from_script(path: Path, function: str) -> Iterator[dict[str, Array]]:
    if not path.is_file():
        raise DataError(f"The data script {str(path)!r} does not exist; check the path.")
    try:
        source = getattr(import_file(path, "data"), function, None)
        parts = (
            None
            if source is None
            else [{name: np.asarray(values) for name, values in feeds.items()} for feeds in source()]
        )
    except Exception as error:  # the user's code may raise anything
        raise DataError(f"The data script {str(path)!r} failed: {type(error).__name__}: {error}.") from error
    if parts is None:
        raise UsageError(f"The data script {str(path)!r} has no function {function!r}.")
    yield from parts


def _stack(parts: list[dict[str, Array]], name: str) -> tuple[dict[str, Array], Array | None]:
    keys = set(parts[0])
    for number, part in enumerate(parts):
        if set(part) != keys:
            raise DataError(
                f"Part {number} of the data {name} has the keys {sorted(part)}; the first has {sorted(keys)}."
            )
    stacked: dict[str, Array] = {}
    for key in parts[0]:
        shapes = {part[key].shape[1:] for part in parts}
        if len(shapes) > 1:
            raise DataError(f"The samples of {key!r} in the data {name} differ in shape: {sorted(shapes)[:3]}.")
        stacked[key] = parts[0][key] if len(parts) == 1 else np.concatenate([part[key] for part in parts])
    return stacked, stacked.pop(LABELS_KEY, None)


def _load_labels(labels: str | Path | Array) -> Array:
    if not isinstance(labels, str | Path):
        return np.asarray(labels)
    path = Path(labels)
    if not path.is_file():
        raise DataError(f"The label file {str(path)!r} does not exist; check the path.")
    if path.suffix == ".npz":
        arrays = _read_npz(path)
        if LABELS_KEY not in arrays:
            raise DataError(f"The label file {str(path)!r} has the keys {sorted(arrays)}, not {LABELS_KEY!r}.")
        return arrays[LABELS_KEY]
    return _read_npy(path)
