"""From a path, bytes or a message to a canonical `Model`."""

import hashlib
import math
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from oamip_onnx.errors import ModelError, first_line
from oamip_onnx.model.canonical import canonicalise
from oamip_onnx.model.graph import without_weights
from oamip_onnx.model.model import Model
from oamip_onnx.runtime.session import PROTOBUF_LIMIT_BYTES

OLDEST_OPSET = 7

_LARGE_WEIGHT_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20


def load_model(source: str | Path | bytes | onnx.ModelProto) -> Model:
    """Return the canonical model of a file, of its bytes, or of a message; the source itself is left as it is.

    Raises
    ------
    ModelError
        If the file is missing, is no ONNX model, misses its external data, is invalid, or has an opset below 7.
    """
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return _from_proto(copy, source.ByteSize(), _digest(source), path=None, external_data=False)
    if isinstance(source, bytes):
        own = hashlib.sha256(source).hexdigest()
        return _from_proto(_parse(source, "The given bytes"), len(source), own, path=None, external_data=False)
    path = Path(source)
    if not path.exists():
        raise ModelError(f"The model file {str(path)!r} does not exist; check the path.")
    if path.is_dir():
        raise ModelError(f"{str(path)!r} is a folder; give the path of the .onnx file in it.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"The model file {str(path)!r} cannot be read: {error.strerror}.") from error
    proto = _parse(content, f"The file {str(path)!r}")
    digest = hashlib.sha256(content)
    del content  # large models are held once
    files = _external_files(proto)
    missing = [name for name in files if not (path.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"The model {str(path)!r} keeps weights in {missing[0]!r}, which is not beside it; copy that file there."
        )
    try:
        load_external_data_for_model(proto, str(path.parent))
        for name in files:
            with (path.parent / name).open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
    except (ValueError, OSError, onnx.checker.ValidationError) as error:
        raise ModelError(f"The external data of {str(path)!r} cannot be read: {first_line(error)}.") from error
    size_bytes = path.stat().st_size + sum((path.parent / name).stat().st_size for name in files)
    return _from_proto(proto, size_bytes, digest.hexdigest(), path=path, external_data=bool(files))


def _digest(proto: onnx.ModelProto) -> str:
    if proto.ByteSize() >= PROTOBUF_LIMIT_BYTES:
        return ""  # it cannot be serialised
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def _external_files(proto: onnx.ModelProto) -> list[str]:
    names = [
        entry.value
        for tensor in proto.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    return sorted(set(names))


def _parse(content: bytes, what: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{what} is no ONNX model, or it is truncated.") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"{what} is no ONNX model: it holds no graph or no opset.")
    return proto


def _from_proto(
    proto: onnx.ModelProto, size_bytes: int, sha256: str, *, path: Path | None, external_data: bool
) -> Model:
    """Return the model of a message that nobody else holds."""
    what = f"The model {str(path)!r}" if path else "The model"
    for opset in proto.opset_import:
        if opset.domain in {"", "ai.onnx"} and opset.version < OLDEST_OPSET:
            raise ModelError(
                f"{what} uses opset {opset.version}; ONNX Runtime takes {OLDEST_OPSET} and newer. "
                "Convert it with onnx.version_converter."
            )
    _check(proto, what)
    canonical, notes = canonicalise(proto)
    return Model(canonical, size_bytes, external_data, path, notes, sha256)


def _check(proto: onnx.ModelProto, what: str) -> None:
    try:
        onnx.checker.check_model(_without_large_weights(proto))
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{what} is invalid: {first_line(error)}") from error
    if not proto.graph.output:
        raise ModelError(f"{what} has no outputs.")


def _without_large_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return what the checker needs to see: it serialises what it gets, and refuses messages above 2 GiB.

    Raises
    ------
    ModelError
        If a weight left out does not hold as many bytes as its shape and type ask for.
    """
    for tensor in filter(_is_large, proto.graph.initializer):
        _check_size(tensor)
    light = without_weights(proto, _is_large)
    for name in ("producer_name", "domain", "model_version"):
        setattr(light, name, getattr(proto, name))
    light.functions.extend(proto.functions)
    light.graph.value_info.extend(proto.graph.value_info)
    return light


def _is_large(tensor: onnx.TensorProto) -> bool:
    return len(tensor.raw_data) > _LARGE_WEIGHT_BYTES and bool(tensor.name)


def _check_size(tensor: onnx.TensorProto) -> None:
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"The weight {tensor.name!r} has the unknown type {tensor.data_type}.") from error
    expected = math.prod(tensor.dims) * itemsize
    # Types narrower than a byte are packed.
    if len(tensor.raw_data) != expected and itemsize > 1:
        raise ModelError(
            f"The weight {tensor.name!r} of shape {tuple(tensor.dims)} holds {len(tensor.raw_data)} bytes instead of "
            f"{expected}; the file is damaged."
        )
