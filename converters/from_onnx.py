"""From an ONNX file to one that can be pruned: an old opset, leftovers of training, or open dimensions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import helper
from onnx.reference import ReferenceEvaluator

from oamip_onnx.errors import ModelError, UsageError, first_line
from oamip_onnx.runtime import RuntimeOptions, Session

from .base import Array, FrameworkModel, ImportOptions, InputSpec
from .common import framework_version
from .inference import for_inference

# The oldest opset that ONNX Runtime takes, and the newest IR version that its version 1.20 does.
_OLDEST_OPSET, _NEWEST_IR = 7, 10


class OnnxConverter:
    """Reads ONNX files, to lift their opset, fold what is constant, and leave out what only training needs."""

    name: ClassVar[str] = "onnx"
    extra: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnxslim",)
    sources: ClassVar[str] = ".onnx"

    def reads(self, path: Path) -> bool:
        """Return whether the name ends in .onnx."""
        return path.is_file() and path.suffix.lower() == ".onnx"

    def takes(self, source: object) -> bool:
        """Return whether an object is a message of ONNX."""
        return isinstance(source, onnx.ModelProto)

    def load(self, source: Any, options: ImportOptions) -> FrameworkModel:
        """Return the model of a file or a message, without what only training needs.

        Raises
        ------
        UsageError
            If a file of weights is given.
        ModelError
            If the file is no ONNX model, or misses files of weights.
        """
        if options.state is not None:
            raise UsageError("An ONNX model holds its weights; leave --state out.")
        return OnnxModel(_read(source) if isinstance(source, Path) else source, options)


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise ModelError(f"The file {str(path)!r} is no ONNX model, or it is truncated.") from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"The model {str(path)!r} cannot be read with its weights: {first_line(error)}") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{str(path)!r} is no ONNX model: it holds no graph or no opset.")
    return model


class OnnxModel(FrameworkModel):
    """A model in ONNX, run by ONNX Runtime, or by ONNX's own evaluator where it is too old for that.

    Parameters
    ----------
    model
        The model.
    options
        Opset and shapes.
    """

    def __init__(self, model: onnx.ModelProto, options: ImportOptions) -> None:
        self.framework = framework_version("onnx")
        self._written = model
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self.notes = tuple(for_inference(self._model))
        graph = self._model.graph
        constants = {tensor.name for tensor in graph.initializer}
        known = [_spec(value) for value in graph.input if value.name not in constants]
        self.inputs = options.described(known)
        self._outputs = [value.name for value in graph.output]
        self._evaluator: Session | ReferenceEvaluator | None = None

    def convert(self, path: Path, way: str = "") -> None:
        """Write the model as it is: cleaning up is shared with the other sources."""
        del way
        onnx.save(self._written, path)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs of the model in inference mode, and else as it came."""
        if self._evaluator is None:
            self._evaluator = _evaluator(self._model)
        if isinstance(self._evaluator, Session):
            found = self._evaluator.run(feeds, self._outputs)
            return [found[name] for name in self._outputs]
        return [np.asarray(value) for value in self._evaluator.run(self._outputs, dict(feeds))]


def _evaluator(model: onnx.ModelProto) -> Session | ReferenceEvaluator:
    """Return what runs the model: without optimisation, so that it computes what the file says."""
    runnable = onnx.ModelProto()
    runnable.CopyFrom(model)
    # The IR version says how the file is read, not what it computes.
    runnable.ir_version = min(model.ir_version, _NEWEST_IR)
    opset = next((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), _OLDEST_OPSET)
    if opset >= _OLDEST_OPSET:
        return Session(runnable, RuntimeOptions(optimise=False))
    return ReferenceEvaluator(runnable)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"The input {value.name!r} is no tensor; only tensors are supported.")
    shape = tuple(one.dim_value if one.dim_value > 0 else None for one in kind.shape.dim)
    return InputSpec(value.name, shape, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
