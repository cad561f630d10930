"""Writing a model so that a reader sees the old file or the new one, never a half."""

import hashlib
import os
import tempfile
from pathlib import Path

import onnx
from onnx.external_data_helper import convert_model_to_external_data, uses_external_data

from oamip_onnx.errors import OutputError
from oamip_onnx.runtime.session import PROTOBUF_LIMIT_BYTES


def check_writable(path: Path, *, overwrite: bool = True) -> None:
    """Raise unless a file can be put at `path`.

    Raises
    ------
    OutputError
        If the folder is missing or not writable, or `path` is a folder, or it exists and `overwrite` is off.
    """
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"The folder {str(folder)!r} for the result does not exist; create it first.")
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder; give the path of the file to write.")
    if path.exists() and not overwrite:
        raise OutputError(f"{str(path)!r} exists; choose another name.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"The folder {str(folder)!r} is not writable: {error.strerror}.") from error


def save_model(proto: onnx.ModelProto, path: Path, *, external_data: bool = False) -> int:
    """Write a model atomically and return its size in bytes, external data included.

    With `external_data`, or above the 2 GiB that a message can hold, the weights go to a file beside it whose name
    carries their digest, so that the model file, replaced last, always finds the data that it was written with.

    Raises
    ------
    OutputError
        If the target cannot be written.
    """
    check_writable(path)
    external_data = external_data or proto.ByteSize() >= PROTOBUF_LIMIT_BYTES
    stale = _oamip_data_file(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".oamip-", dir=path.parent) as folder:
            written = _write(proto, Path(folder), path, external_data=external_data)
            sizes = [file.stat().st_size for file in written]
            for file in written:
                _fsync(file)
                file.replace(path.parent / file.name)
            _fsync(path.parent)
    except OSError as error:
        raise OutputError(f"The model cannot be written to {str(path)!r}: {error.strerror or error}.") from error
    if stale is not None and stale.name not in {file.name for file in written}:
        stale.unlink(missing_ok=True)
    return sum(sizes)


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically.

    Raises
    ------
    OutputError
        If the target cannot be written.
    """
    check_writable(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".oamip-", dir=path.parent) as folder:
            file = Path(folder) / path.name
            file.write_text(text, encoding="utf-8")
            _fsync(file)
            file.replace(path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


def _write(proto: onnx.ModelProto, folder: Path, path: Path, *, external_data: bool) -> list[Path]:
    """Write into `folder`; return the files in the order in which they must be moved."""
    file = folder / path.name
    if not external_data:
        file.write_bytes(proto.SerializeToString(deterministic=True))
        return [file]
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    digest = hashlib.sha256()
    for tensor in copy.graph.initializer:
        digest.update(tensor.raw_data)
    location = _data_name(path, digest.hexdigest()[:16])
    convert_model_to_external_data(copy, location=location, size_threshold=1024, convert_attribute=False)
    onnx.save(copy, file)
    data = folder / location
    return [data, file] if data.exists() else [file]


def _data_name(path: Path, digest: str) -> str:
    return f"{path.name}.{digest}.data"


def _oamip_data_file(path: Path) -> Path | None:
    """Return the data file that a model written here earlier uses, so that it can go when the model is replaced."""
    if not any(path.parent.glob(_data_name(path, "*"))) or not path.is_file():
        return None
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        if uses_external_data(tensor):
            name = next(e.value for e in tensor.external_data if e.key == "location")
            is_ours = name.startswith(f"{path.name}.") and name.endswith(".data")
            return path.parent / name if is_ours else None
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
