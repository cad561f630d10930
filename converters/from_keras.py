"""From Keras 3 to ONNX, by the backend that Keras runs on: PyTorch, JAX or TensorFlow."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from oamip_onnx.errors import MissingExtraError, UsageError

from .base import FrameworkModel, ImportOptions, InputSpec
from .common import is_installed, packages_of, silent
from .from_jax import FunctionModel
from .from_tensorflow import TracedModel
from .from_torch import ModuleModel

# The backends, in the order in which an installed one is taken, and what each needs to be converted.
_BACKENDS = {"torch": "torch", "jax": "jax2onnx", "tensorflow": "tf2onnx"}


class KerasConverter:
    """Reads `.keras` files and models of Keras 3, whichever backend it runs on."""

    name: ClassVar[str] = "keras"
    extra: ClassVar[str] = "keras"
    packages: ClassVar[tuple[str, ...]] = ("keras", "onnxslim")
    sources: ClassVar[str] = ".keras, file.py:factory"

    def reads(self, path: Path) -> bool:
        """Return whether the name ends as Keras's files do."""
        return path.is_file() and path.suffix.lower() == ".keras"

    def takes(self, source: object) -> bool:
        """Return whether an object is a model of Keras."""
        return "keras" in packages_of(source) and callable(source)

    def load(self, source: Any, options: ImportOptions) -> FrameworkModel:
        """Return the model of a file, or an object, in the backend that Keras has or gets.

        Raises
        ------
        MissingExtraError
            If there is no backend, or nothing that converts from it.
        UsageError
            If the model does not know its inputs, and they are not described.
        """
        if "keras" not in sys.modules:
            choose_backend()
        with silent():
            keras = importlib.import_module("keras")
        backend = str(keras.backend.backend())
        if not is_installed(_BACKENDS.get(backend, "")):
            raise MissingExtraError(
                f"Keras runs on {backend}, from which there is no conversion here; run: "
                f"pip install {_BACKENDS.get(backend, 'torch')}, or set KERAS_BACKEND=torch"
            )
        model = source
        if isinstance(source, Path):
            with silent():
                model = keras.saving.load_model(source, compile=False)
        if options.state is not None:
            with silent():
                model.load_weights(options.state)
        return _on(backend, keras, model, _inputs(model, options), options)


def choose_backend() -> None:
    """Have Keras start on an installed backend, unless the user has chosen one."""
    if not os.environ.get("KERAS_BACKEND"):
        os.environ["KERAS_BACKEND"] = next(
            (name for name, needed in _BACKENDS.items() if is_installed(name) and is_installed(needed)), "torch"
        )


def _inputs(model: Any, options: ImportOptions) -> tuple[InputSpec, ...]:
    known = getattr(model, "inputs", None)
    if known:
        return options.described([InputSpec(one.name, tuple(one.shape), np.dtype(str(one.dtype))) for one in known])
    stated = options.stated()
    if not stated:
        raise UsageError(
            f"The model {type(model).__name__} was not built, so its inputs are not known; give each with "
            "--input x=1,32,32,3"
        )
    return stated


def _on(backend: str, keras: Any, model: Any, inputs: tuple[InputSpec, ...], options: ImportOptions) -> FrameworkModel:
    """Return the model as one of its backend's framework."""

    def call(*values: Any) -> Any:
        return model(values[0] if len(values) == 1 else list(values), training=False)

    made: FrameworkModel
    if backend == "torch":
        torch = importlib.import_module("torch")
        # torch.export does not follow Keras's layers.
        made = ModuleModel(torch, _as_module(torch, model, call), inputs, options, tracing_only=True)
    elif backend == "jax":
        made = FunctionModel(call, inputs, options)
    else:
        made = TracedModel(call, inputs, options)
    made.framework = f"keras {keras.__version__}, {made.framework}"
    return made


def _as_module(torch: Any, model: Any, call: Any) -> Any:
    """Return a module that calls the model in inference mode, which Keras does not read off a module's mode."""

    class Called(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return call(*values)

    return Called()
