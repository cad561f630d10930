"""Checks of samples against a model's inputs; every message shows what was expected and what came."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.errors import DataError
from oamip_onnx.model import Array, Model

IntArray = npt.NDArray[np.int64]

# Samples that are checked at once.
_ROWS_AT_ONCE = 1024


def _declared(model: Model, name: str) -> onnx.TypeProto.Tensor:
    tensor: onnx.TypeProto.Tensor = next(i for i in model.graph.input if i.name == name).type.tensor_type
    return tensor


def _dtype(model: Model, name: str) -> np.dtype[np.generic]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(_declared(model, name).elem_type))


def float_input_from_bytes(model: Model, name: str, values: Array, notes: list[str]) -> Array:
    """Return images stored as bytes as the floats in [0, 1] that a float input takes, and note it."""
    is_input = name in model.input_names
    if is_input and values.dtype == np.uint8 and np.issubdtype(_dtype(model, name), np.floating):
        notes.append(f"The uint8 values of {name!r} were divided by 255.")
        return (values.astype(np.float32) / 255).astype(_dtype(model, name))
    return values


def check_feeds(
    model: Model, feeds: Mapping[str, Array], source: str, notes: list[str], *, by_run: bool = False
) -> tuple[int | None, dict[str, Array]]:
    """Return the fixed run size, if any, and the feeds in the inputs' dtypes.

    Raises
    ------
    DataError
        On a missing or extra key, a wrong shape or dtype, a value that is not finite, or no rows at all.
    """
    expected, got = list(model.input_names), sorted(feeds)
    if set(expected) != set(got):
        raise DataError(f"The data {source} have the keys {got}; the model's inputs are {expected}. Rename the keys.")
    checked: dict[str, Array] = {}
    run_sizes = set()
    for name in expected:
        values = _cast(feeds[name], _dtype(model, name), name, source)
        shape = [
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
            for d in _declared(model, name).shape.dim
        ]
        if by_run:
            shape = [None, *shape]
        _check_shape(values, shape, name, source)
        run_sizes.add(shape[0])
        checked[name] = values
    counts = {name: values.shape[0] for name, values in checked.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"The inputs in the data {source} differ in their number of samples: {counts}.")
    run_size = max((s for s in run_sizes if s), default=None)
    count = next(iter(counts.values()))
    if run_size and count % run_size:
        usable = count // run_size * run_size
        if not usable:
            raise DataError(f"The model takes {run_size} samples a run; the data {source} hold {count}.")
        notes.append(f"The last {count - usable} samples were left out: the model takes {run_size} a run.")
        checked = {name: values[:usable] for name, values in checked.items()}
    return run_size, checked


def _check_shape(values: Array, shape: list[int | None], name: str, source: str) -> None:
    wanted = ["samples", *("any" if s is None else str(s) for s in shape[1:])]
    fits = values.ndim == len(shape) and all(
        s is None or s == v for s, v in zip(shape[1:], values.shape[1:], strict=True)
    )
    if not shape:
        raise DataError(f"The input {name!r} of the model has no sample axis; such models are not supported.")
    if not fits:
        raise DataError(
            f"The input {name!r} expects the shape ({', '.join(wanted)}); the data {source} have {values.shape}."
        )
    if values.shape[0] == 0:
        raise DataError(f"The data {source} hold no samples for the input {name!r}.")
    if np.issubdtype(values.dtype, np.floating) and (row := _first_not_finite(values)) is not None:
        raise DataError(f"The input {name!r} in the data {source} is not finite (NaN or infinity) in sample {row}.")


def _first_not_finite(values: Array) -> int | None:
    """Return the first row that is not finite; values are looked at in parts, since they may not fit the memory."""
    for start in range(0, len(values), _ROWS_AT_ONCE):
        part = values[start : start + _ROWS_AT_ONCE]
        finite = np.isfinite(part).reshape(len(part), -1).all(axis=1)
        if not finite.all():
            return start + int(np.argmin(finite))
    return None


def _cast(values: Array, dtype: np.dtype[np.generic], name: str, source: str) -> Array:
    same_kind = (np.issubdtype(values.dtype, np.floating) and np.issubdtype(dtype, np.floating)) or (
        np.issubdtype(values.dtype, np.integer) and np.issubdtype(dtype, np.integer)
    )
    if values.dtype == dtype:
        return values
    if not same_kind and values.dtype.kind != "V" and dtype.kind != "V":
        raise DataError(f"The input {name!r} expects the dtype {dtype}; the data {source} have {values.dtype}.")
    cast = values.astype(dtype)
    if np.issubdtype(dtype, np.integer) and not np.array_equal(cast, values):
        raise DataError(f"The input {name!r} expects the dtype {dtype}; values in the data {source} do not fit it.")
    return cast


def check_labels(labels: Array, count: int, source: str) -> IntArray:
    """Return the labels as int64.

    Raises
    ------
    DataError
        If they are no integers, no vector, or not as many as the samples.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DataError(
            f"The labels in the data {source} have the dtype {labels.dtype} and the shape {labels.shape}; "
            "expected one class index (an integer) a sample."
        )
    if len(labels) < count:
        raise DataError(f"The data {source} hold {count} samples and {len(labels)} labels.")
    return labels[:count].astype(np.int64)


def check_label_range(labels: IntArray, classes: int) -> None:
    """Raise if a label is no class of the model.

    Raises
    ------
    DataError
        Naming the first label out of range.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(f"The label {labels[row]} of sample {row} is out of range; the model has {classes} classes.")
