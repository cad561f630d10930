"""What users say about the inputs of a model: shapes and types, as text, or example arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from oamip_onnx.calibration.sources import LABELS_KEY
from oamip_onnx.converters.base import InputSpec  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import DataError, UsageError, closest

# Types that an input may have, by the name that users write.
_TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")

InputDescription: TypeAlias = str | Sequence[int] | np.ndarray[Any, Any] | InputSpec


def parse_inputs(texts: Sequence[str]) -> dict[str, str]:
    """Return texts such as ``x=1,3,224,224`` or ``ids=1,16:int64`` by the name of the input.

    Raises
    ------
    UsageError
        If a text has no name.
    """
    found = {}
    for text in texts:
        name, separator, shape = text.partition("=")
        if not separator or not name:
            raise UsageError(f"The input {text!r} is not of the form x=1,3,224,224 or ids=1,16:int64.")
        found[name] = shape
    return found


def describe_inputs(given: Mapping[str, InputDescription]) -> dict[str, InputSpec]:
    """Return what is known about inputs: from a text, a shape, or an example array, whose largest integer counts.

    Raises
    ------
    UsageError
        If a text is no shape, or names a type that there is not.
    """
    return {name: _described(name, one) for name, one in given.items()}


def _described(name: str, given: Any) -> InputSpec:
    if isinstance(given, InputSpec):
        return given
    if isinstance(given, str):
        return _parsed(name, given)
    if isinstance(given, Sequence) and all(isinstance(size, int) for size in given):
        return InputSpec(name, tuple(given))
    return example_input(name, np.asarray(given))


def _parsed(name: str, text: str) -> InputSpec:
    sizes, separator, kind = text.partition(":")
    parts = [part.strip() for part in sizes.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"The shape {sizes!r} of the input {name!r} is not of the form 1,3,224,224.")
    if separator and kind not in _TYPES:
        raise UsageError(
            f"There is no type {kind!r} for the input {name!r}{closest(kind, _TYPES)}; choose from {', '.join(_TYPES)}."
        )
    return InputSpec(name, tuple(int(part) for part in parts), np.dtype(kind or "float32"))


def example_input(name: str, values: np.ndarray[Any, Any]) -> InputSpec:
    """Return what an example array says about an input.

    Images come in bytes, and double precision from numpy by default: models compute on float32.
    """
    kind = values.dtype
    if str(kind) in {"float64", "uint8"}:
        kind = np.dtype(np.float32)
    largest = int(values.max()) if np.issubdtype(kind, np.integer) and values.size else 1
    return InputSpec(name, tuple(values.shape), kind, max(largest, 1))


def inputs_of_data(data: object) -> dict[str, InputSpec]:
    """Return what samples say about the inputs, as far as that is known before the model is: an archive or a mapping.

    Raises
    ------
    DataError
        If the archive cannot be read.
    """
    if isinstance(data, Mapping):
        arrays = {str(name): np.asarray(values) for name, values in data.items()}
    elif isinstance(data, str | Path) and Path(data).suffix == ".npz" and Path(data).is_file():
        try:
            with np.load(data, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except Exception as error:  # numpy and zipfile raise unrelated classes on damaged files
            raise DataError(f"The data file {str(data)!r} cannot be read as .npz: {error}.") from error
    else:
        return {}
    return {name: example_input(name, values) for name, values in arrays.items() if name != LABELS_KEY}
