"""From TensorFlow to ONNX, by tf2onnx: SavedModel folders and TensorFlow Lite files."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from oamip_onnx.errors import ModelError, UsageError

from .base import Array, FrameworkModel, ImportOptions, InputSpec
from .common import framework_version, free_first_dimension, name_ends, output_names, packages_of, silent

# The newest opset that tf2onnx writes.
_NEWEST = 18

_SIGNATURE = "serving_default"

# What stands at the fifth byte of every TensorFlow Lite file.
_LITE_MAGIC = b"TFL3"


class TensorFlowConverter:
    """Reads SavedModel folders, by their signature ``serving_default``, and TensorFlow Lite files."""

    name: ClassVar[str] = "tensorflow"
    extra: ClassVar[str] = "tensorflow"
    packages: ClassVar[tuple[str, ...]] = ("tensorflow", "tf2onnx", "onnxslim")
    sources: ClassVar[str] = "a SavedModel folder, .tflite, file.py:factory"

    def reads(self, path: Path) -> bool:
        """Return whether a folder is a SavedModel, or a file TensorFlow Lite's."""
        if path.is_dir():
            return (path / "saved_model.pb").is_file()
        return path.is_file() and _is_lite(path)

    def takes(self, source: object) -> bool:
        """Return whether an object is a function or module of TensorFlow."""
        packages = packages_of(source)
        return "tensorflow" in packages and "keras" not in packages and callable(source)

    def load(self, source: Any, options: ImportOptions) -> FrameworkModel:
        """Return the model of a folder, a file or an object.

        Raises
        ------
        UsageError
            If a file of weights is given, or the inputs of a function are not described.
        ModelError
            If a SavedModel has no signature to serve.
        """
        if options.state is not None:
            raise UsageError("A model of TensorFlow comes with its weights; leave --state out.")
        tensorflow = _import_tensorflow()
        if isinstance(source, Path):
            return LiteModel(source, options) if source.is_file() else _saved(tensorflow, source, options)
        inputs = options.stated()
        if not inputs:
            raise UsageError("The inputs of the function are not known; give each with --input x=1,32,32,3")
        return TracedModel(source, inputs, options)


def _is_lite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8)[4:] == _LITE_MAGIC


def _import_tensorflow() -> Any:
    with silent():
        return importlib.import_module("tensorflow")


def _saved(tensorflow: Any, folder: Path, options: ImportOptions) -> FrameworkModel:
    with silent():
        loaded = tensorflow.saved_model.load(str(folder))
    signature = loaded.signatures.get(_SIGNATURE)
    if signature is None:
        raise ModelError(
            f"The SavedModel {str(folder)!r} has no signature {_SIGNATURE!r}; "
            "give one to tf.saved_model.save, or use model.export of Keras."
        )
    specs = signature.structured_input_signature[1]
    known = [
        InputSpec(name, tuple(spec.shape.as_list()), np.dtype(spec.dtype.as_numpy_dtype))
        for name, spec in specs.items()
    ]

    def call(*values: Any) -> Any:
        return signature(**dict(zip(specs, values, strict=True)))

    made = TracedModel(call, options.described(known), options, sorted(signature.structured_outputs))
    made.keep = loaded
    return made


class TracedModel(FrameworkModel):
    """A function of TensorFlow's tensors.

    Parameters
    ----------
    call
        The function.
    inputs
        What it takes, in the order of its arguments.
    options
        Opset and batch.
    names
        The names of its outputs, in the order in which TensorFlow flattens them; ``y`` and so on by default.
    """

    # What must live as long as the function, which does not hold it itself.
    keep: Any = None

    def __init__(
        self,
        call: Callable[..., Any],
        inputs: tuple[InputSpec, ...],
        options: ImportOptions,
        names: list[str] | None = None,
    ) -> None:
        self._tensorflow = _import_tensorflow()
        self.framework = _versions(self._tensorflow)
        self.inputs = inputs
        self._call, self._options = call, options
        example = self.sample_inputs(1, np.random.default_rng(0))
        self._names = names or output_names(len(self.run(example)))

    def convert(self, path: Path, way: str = "") -> None:
        """Write the function."""
        del way
        tensorflow = self._tensorflow
        with silent():
            convert = importlib.import_module("tf2onnx.convert")
            model, _ = convert.from_function(
                tensorflow.function(self._call),
                [tensorflow.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in self.inputs],
                opset=min(self._options.opset, _NEWEST),
            )
        _save(model, path, self.inputs, self._names)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs: tensors, in the order in which TensorFlow flattens tuples, lists and dictionaries."""
        tensorflow = self._tensorflow
        with silent():
            found = self._call(*(tensorflow.constant(feeds[spec.name]) for spec in self.inputs))
            return [value.numpy() for value in tensorflow.nest.flatten(found)]


class LiteModel(FrameworkModel):
    """A TensorFlow Lite file, run by its interpreter.

    Parameters
    ----------
    path
        The file.
    options
        Opset and batch.
    """

    def __init__(self, path: Path, options: ImportOptions) -> None:
        tensorflow = _import_tensorflow()
        self.framework = _versions(tensorflow)
        self._path, self._options = path, options
        with silent():
            # The plain kernels: XNNPACK's round differently.
            resolver = tensorflow.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            self._lite = tensorflow.lite.Interpreter(str(path), experimental_op_resolver_type=resolver)
        self._ends = self._lite.get_input_details()
        known = [
            InputSpec(
                _plain(one["name"]),
                tuple(None if size < 0 else int(size) for size in one["shape_signature"]),
                np.dtype(one["dtype"]),
            )
            for one in self._ends
        ]
        self.inputs = options.described(known)
        self._names = [_plain(one["name"]) for one in self._lite.get_output_details()]

    def convert(self, path: Path, way: str = "") -> None:
        """Write the file's graph."""
        del way
        with silent():
            convert = importlib.import_module("tf2onnx.convert")
            model, _ = convert.from_tflite(str(self._path), opset=min(self._options.opset, _NEWEST))
        _save(model, path, self.inputs, self._names)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs of the interpreter."""
        with silent():
            for spec, end in zip(self.inputs, self._ends, strict=True):
                self._lite.resize_tensor_input(end["index"], feeds[spec.name].shape)
            self._lite.allocate_tensors()
            for spec, end in zip(self.inputs, self._ends, strict=True):
                self._lite.set_tensor(end["index"], feeds[spec.name])
            self._lite.invoke()
            return [np.array(self._lite.get_tensor(one["index"])) for one in self._lite.get_output_details()]


def _save(model: onnx.ModelProto, path: Path, inputs: Sequence[InputSpec], outputs: list[str]) -> None:
    """Write a model of tf2onnx under TensorFlow's names; it gives every free dimension a name of its own."""
    name_ends(model, [spec.name for spec in inputs], outputs)
    if all(spec.free_batch for spec in inputs):
        free_first_dimension(model)
    onnx.save(model, path)


def _plain(name: str) -> str:
    """Return a name without the number of the output, which only TensorFlow needs."""
    return name.removesuffix(":0").removeprefix("serving_default_")


def _versions(tensorflow: Any) -> str:
    # The package may be tensorflow, tensorflow-cpu or another build.
    return f"tensorflow {tensorflow.__version__}, {framework_version('tf2onnx')}"
