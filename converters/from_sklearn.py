"""From scikit-learn to ONNX, by skl2onnx: estimators and pipelines of them."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from oamip_onnx.errors import MissingExtraError, ModelError, UsageError, first_line

from .base import Array, FrameworkModel, ImportOptions, InputSpec
from .common import framework_version, free_first_dimension, is_installed, packages_of, quiet

_DOMAIN = "ai.onnx.ml"

# The newest opset that skl2onnx 1.18 writes; newer ones are reached from it.
_NEWEST = 21


class SklearnConverter:
    """Reads estimators and pipelines; a scaler before a network becomes a subtraction and a product."""

    name: ClassVar[str] = "sklearn"
    extra: ClassVar[str] = "sklearn"
    packages: ClassVar[tuple[str, ...]] = ("sklearn", "skl2onnx", "onnxslim")
    sources: ClassVar[str] = ".joblib, .pkl, .skops, file.py:factory"

    def reads(self, path: Path) -> bool:
        """Return whether the name ends as files of estimators do."""
        return path.is_file() and path.suffix.lower() in {".joblib", ".pkl", ".pickle", ".skops"}

    def takes(self, source: object) -> bool:
        """Return whether an object is an estimator."""
        return "sklearn" in packages_of(source) and hasattr(source, "fit")

    def load(self, source: Any, options: ImportOptions) -> FrameworkModel:
        """Return the estimator of a file, or an object. Unpickling runs what the file says.

        Raises
        ------
        UsageError
            If a file of weights is given, or the number of features is not known.
        ModelError
            If a file holds no estimator.
        MissingExtraError
            If skops is needed and not installed.
        """
        if options.state is not None:
            raise UsageError("An estimator comes with its weights; leave --state out.")
        model = _read(source) if isinstance(source, Path) else source
        if not self.takes(model):
            raise ModelError(f"The file {str(source)!r} holds a {type(model).__name__}, which is no estimator.")
        features = getattr(model, "n_features_in_", None)
        inputs = options.stated()
        if features is None and not inputs:
            raise UsageError(
                f"The {type(model).__name__} does not say how many features it takes, or it was not fitted; "
                "fit it, or give --input x=1,64"
            )
        if not options.inputs and features is not None:
            inputs = (InputSpec("x", options.batched((None, int(features))), np.dtype(np.float32)),)
        return EstimatorModel(model, inputs, options)


def _read(path: Path) -> Any:
    if path.suffix.lower() == ".skops":
        if not is_installed("skops"):
            raise MissingExtraError("Reading a .skops file needs skops, which is not installed; run: pip install skops")
        reader = importlib.import_module("skops.io")
        # The optimiser of a network, for one, is not among the types that skops itself trusts.
        own = [name for name in reader.get_untrusted_types(file=path) if name.startswith("sklearn.")]
        return reader.load(path, trusted=own)
    return importlib.import_module("joblib").load(path)


class EstimatorModel(FrameworkModel):
    """A fitted estimator.

    Parameters
    ----------
    model
        The estimator.
    inputs
        What it takes: one array of features.
    options
        Opset and batch.
    """

    def __init__(self, model: Any, inputs: tuple[InputSpec, ...], options: ImportOptions) -> None:
        if len(inputs) != 1:
            raise UsageError(f"An estimator takes one array of features; {len(inputs)} inputs were given.")
        self.framework = framework_version("scikit-learn", "skl2onnx")
        self.inputs = inputs
        self._model, self._options = model, options
        try:
            self.run(self.sample_inputs(2, np.random.default_rng(0)))
        except Exception as error:  # an estimator that was not fitted, or features that do not fit
            raise ModelError(f"The {type(model).__name__} fails on its inputs: {first_line(error)}") from error

    def convert(self, path: Path, way: str = "") -> None:
        """Write the estimator in operators of the standard domain, as far as there are such."""
        del way
        types = importlib.import_module("skl2onnx.common.data_types")
        spec = self.inputs[0]
        kinds = {"float32": "Float", "float64": "Double", "int64": "Int64", "int32": "Int32"}
        kind = getattr(types, f"{kinds.get(str(spec.dtype), 'Float')}TensorType")
        options = {id(self._model): {"zipmap": False}} if hasattr(self._model, "classes_") else None
        with quiet():
            model = importlib.import_module("skl2onnx").to_onnx(
                self._model,
                initial_types=[(spec.name, kind(list(spec.shape)))],
                target_opset={"": min(self._options.opset, _NEWEST), _DOMAIN: 3},
                options=options,
            )
        _use_standard_operators(model)
        if spec.free_batch:
            free_first_dimension(model)
        onnx.save(model, path)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return what the estimator predicts: classes and their probabilities, values, or transformed features."""
        (values,) = (feeds[spec.name] for spec in self.inputs)
        model = self._model
        with quiet():
            if hasattr(model, "classes_"):
                scores = model.predict_proba if hasattr(model, "predict_proba") else model.decision_function
                return [np.asarray(model.predict(values)), np.asarray(scores(values))]
            if not hasattr(model, "predict"):
                return [np.asarray(model.transform(values))]
            found = np.asarray(model.predict(values))
            return [found.reshape(len(found), -1) if found.ndim == 1 else found]


def _use_standard_operators(model: onnx.ModelProto) -> None:
    """Replace Scaler and ArrayFeatureExtractor, in place, by what every runtime has."""
    _use_vectors(model.graph)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.domain == _DOMAIN and node.op_type == "Scaler":
            nodes += _scaled(node, model.graph)
        elif node.domain == _DOMAIN and node.op_type == "ArrayFeatureExtractor" and _is_vector(node, model.graph):
            nodes.append(helper.make_node("Gather", list(node.input), list(node.output), axis=0))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _use_vectors(graph: onnx.GraphProto) -> None:
    """Make rows that are added vectors, in place, as which repair and int8 know biases.

    What they are added to has two axes: samples and features.
    """
    others = {name for node in graph.node if node.op_type != "Add" for name in node.input}
    for tensor in graph.initializer:
        if len(tensor.dims) == 2 and tensor.dims[0] == 1 and tensor.name not in others:
            del tensor.dims[0]


def _is_vector(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    return any(tensor.name == node.input[0] and len(tensor.dims) == 1 for tensor in graph.initializer)


def _scaled(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return a scaler as a subtraction and a product in float32, in which it computes."""
    values = {one.name: np.array(one.floats, np.float32) for one in node.attribute}
    target, constants = node.output[0], []
    for name in ("offset", "scale"):
        constants.append(f"{target}.{name}")
        graph.initializer.append(numpy_helper.from_array(values[name], constants[-1]))
    return [
        helper.make_node("Cast", [node.input[0]], [f"{target}.float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", [f"{target}.float", constants[0]], [f"{target}.centred"]),
        helper.make_node("Mul", [f"{target}.centred", constants[1]], [target]),
    ]
