"""From JAX and Flax to ONNX, by jax2onnx."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, ClassVar

import numpy as np
import onnx

from oamip_onnx.errors import ModelError, UsageError, first_line

from .base import Array, FrameworkModel, ImportOptions, InputSpec
from .common import framework_version, name_ends, output_names, packages_of, quiet
from .windows import use_plain_windows

_PACKAGES = frozenset({"jax", "jaxlib", "flax", "equinox", "haiku"})

_BATCH = 2


class JaxConverter:
    """Reads functions of JAX and modules of Flax, weights included: ``lambda x: model.apply(variables, x)``."""

    name: ClassVar[str] = "jax"
    extra: ClassVar[str] = "jax"
    packages: ClassVar[tuple[str, ...]] = ("jax", "jax2onnx", "onnxslim")
    sources: ClassVar[str] = "file.py:factory"

    def reads(self, path: Path) -> bool:
        """Return False: JAX has no file that holds a model with its code."""
        del path
        return False

    def takes(self, source: object) -> bool:
        """Return whether an object is a module of Flax, or a function while JAX is in use."""
        plain = isinstance(source, FunctionType | BuiltinFunctionType | MethodType) or "functools" in packages_of(
            source
        )
        packages = packages_of(source)
        return callable(source) and (bool(packages & _PACKAGES) or (plain and "jax" in sys.modules))

    def load(self, source: Any, options: ImportOptions) -> FrameworkModel:
        """Return a function, or a module with its weights.

        Raises
        ------
        UsageError
            If the inputs are not described, or a file of weights is given.
        """
        if options.state is not None:
            raise UsageError(
                "A function of JAX comes with its weights; load them in the factory, and leave --state out."
            )
        inputs = options.stated()
        if not inputs:
            raise UsageError(
                "The shapes of what the function takes are not known; give each input, in the order of the arguments, "
                "with --input x=1,32,32,3"
            )
        if "flax" in packages_of(source) and hasattr(source, "eval"):
            nnx = importlib.import_module("flax.nnx")
            source = nnx.clone(source)  # the user's own keeps its mode
            source.eval()
        return FunctionModel(source, inputs, options)


class FunctionModel(FrameworkModel):
    """A function of JAX.

    Parameters
    ----------
    function
        The function of the inputs alone.
    inputs
        What it takes, in the order of its arguments.
    options
        Opset and batch.
    """

    def __init__(self, function: Callable[..., Any], inputs: tuple[InputSpec, ...], options: ImportOptions) -> None:
        self._jax = importlib.import_module("jax")
        self.framework = framework_version("jax", "jax2onnx")
        self.inputs = inputs
        self._function, self._options = function, options
        example = self.sample_inputs(_BATCH, np.random.default_rng(0))
        try:
            self._names = output_names(len(self.run(example)))
        except Exception as error:  # the user's own code
            shapes = ", ".join(f"{name} {values.shape}" for name, values in example.items())
            raise ModelError(f"The function fails on inputs of the shapes {shapes}: {first_line(error)}") from error

    def convert(self, path: Path, way: str = "") -> None:
        """Write the function."""
        del way
        jax2onnx = importlib.import_module("jax2onnx")
        (batch,) = self._jax.export.symbolic_shape("N")
        inputs = [
            self._jax.ShapeDtypeStruct(tuple(batch if size is None else size for size in spec.shape), spec.dtype)
            for spec in self.inputs
        ]
        double = any(spec.dtype == np.float64 for spec in self.inputs)
        with quiet():
            model = jax2onnx.to_onnx(
                self._plain,
                inputs,
                opset=self._options.opset,
                enable_double_precision=double,
            )
        use_plain_windows(model)
        name_ends(model, [spec.name for spec in self.inputs], self._names)
        onnx.save(model, path)

    def _plain(self, *values: Any) -> Any:
        # One kind of function for jax2onnx, whether the model is a module, a jitted function or a partial one.
        return self._function(*values)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs: arrays, in the order in which JAX flattens tuples, lists and dictionaries."""
        with quiet():
            found = self._function(*(self._jax.numpy.asarray(feeds[spec.name]) for spec in self.inputs))
            return [np.asarray(value) for value in self._jax.tree.leaves(found)]
