"""From PaddlePaddle to ONNX, by paddle2onnx: inference models that `paddle.jit.save` wrote."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from oamip_onnx.errors import ModelError, UsageError

from .base import Array, FrameworkModel, ImportOptions, InputSpec
from .common import framework_version, free_first_dimension, packages_of, silent

# The graph is kept in one file, in the new or the old format, and the weights in another beside it.
_GRAPHS, _WEIGHTS = (".pdmodel", ".json"), ".pdiparams"


class PaddleConverter:
    """Reads what `paddle.jit.save` wrote: a file of the graph with its weights beside it."""

    name: ClassVar[str] = "paddle"
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("paddle", "paddle2onnx", "onnxslim")
    # paddle2onnx asks for an older onnx than this package does; it works with the newer one.
    install: ClassVar[str] = "pip install paddlepaddle onnxslim && pip install --no-deps paddle2onnx"
    sources: ClassVar[str] = ".pdmodel or .json beside its .pdiparams"

    def reads(self, path: Path) -> bool:
        """Return whether a file is a graph with weights beside it."""
        return path.suffix.lower() in _GRAPHS and path.is_file() and path.with_suffix(_WEIGHTS).is_file()

    def takes(self, source: object) -> bool:
        """Return False for what is not of PaddlePaddle, and raise for a layer, which has to be saved first.

        Raises
        ------
        ModelError
            If the object is a layer.
        """
        if "paddle" in packages_of(source):
            raise ModelError(
                f"A {type(source).__name__} of PaddlePaddle has to be saved before it is imported: "
                "paddle.jit.save(layer, 'model', input_spec=[…]), then give model.pdmodel or model.json."
            )
        return False

    def load(self, source: Any, options: ImportOptions) -> FrameworkModel:
        """Return the model of a file.

        Raises
        ------
        UsageError
            If a file of weights is given.
        """
        if options.state is not None:
            raise UsageError("A saved model of PaddlePaddle comes with its weights; leave --state out.")
        return SavedModel(Path(source), options)


class SavedModel(FrameworkModel):
    """A saved model.

    Parameters
    ----------
    path
        The file of the graph.
    options
        Opset and batch.
    """

    def __init__(self, path: Path, options: ImportOptions) -> None:
        with silent():
            paddle = importlib.import_module("paddle")
            self._layer = paddle.jit.load(str(path.with_suffix("")))
            self._layer.eval()
        self.framework = f"paddle {paddle.__version__}, {framework_version('paddle2onnx')}"
        self._paddle, self._path, self._options = paddle, path, options
        known = [
            InputSpec(
                spec.name,
                tuple(None if size is None or size < 0 else int(size) for size in spec.shape),
                np.dtype(str(spec.dtype).rpartition(".")[2].lower()),
            )
            for spec in self._layer._input_spec()  # noqa: SLF001 - paddle has no public list of a loaded layer's inputs
        ]
        self.inputs = options.described(known)

    def convert(self, path: Path, way: str = "") -> None:
        """Write the model."""
        del way
        with silent():
            importlib.import_module("paddle2onnx").export(
                str(self._path),
                str(self._path.with_suffix(_WEIGHTS)),
                str(path),
                opset_version=self._options.opset,
                verbose=False,
            )
        if all(spec.free_batch for spec in self.inputs):
            model = onnx.load(path)
            free_first_dimension(model)
            onnx.save(model, path)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs of the layer."""
        with silent():
            found = self._layer(*(self._paddle.to_tensor(feeds[spec.name]) for spec in self.inputs))
        return [np.asarray(value) for value in (found if isinstance(found, tuple | list) else [found])]
