"""The tensor that a loss is taken of, and what is wanted there."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from oamip_onnx.errors import ModelError
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.model import Array, Model, TensorType, int_attribute

# Outputs that are no classes are pooled to at most this many numbers a sample: the program grows with them.
_POOLED_NUMBERS = 64

# Of more classes than this, the likeliest of each sample enter the loss: the others have hardly any probability.
LARGEST_CLASSES = 32


def find_logits(model: Model, types: Mapping[str, TensorType], output: str | None = None) -> str:
    """Return the tensor to take the loss of: an output, or what its final softmax reads.

    Parameters
    ----------
    model, types
        The model and the types of its tensors.
    output
        The output; the first floating-point one by default.

    Raises
    ------
    ModelError
        If no output is floating-point.
    """
    if output is not None:
        return _before_softmax(model, types, output)
    for name in model.output_names:
        if np.issubdtype(types[name].dtype, np.floating) or types[name].dtype.kind == "V":
            return _before_softmax(model, types, name)
    raise ModelError("The model has no floating-point output that a loss could be taken of.")


def _before_softmax(model: Model, types: Mapping[str, TensorType], name: str) -> str:
    origin = name
    while origin in model.producers:
        node = model.graph.node[model.producers[origin]]
        if node.op_type == "Identity":
            origin = node.input[0]
            continue
        rank = len(types[name].shape)
        last = int_attribute(node, "axis", -1 if model.opsets[""] >= 13 else 1) % max(rank, 1) == rank - 1
        # A logarithm of a softmax differs from the logits by a constant a sample, which no softmax sees.
        return node.input[0] if node.op_type in {"Softmax", "LogSoftmax"} and rank == 2 and last else name
    return name


@dataclass(frozen=True)
class Loss:
    """What the original says about the samples of a program.

    Attributes
    ----------
    classifies
        Whether the tensor holds logits, so that the loss is the cross-entropy to `targets`; else it is the squared
        error to them, relative to their variance.
    targets
        The original's probabilities, or its pooled outputs; shape (samples, numbers).
    classes
        Classes of each sample that the loss reads, shape (samples, numbers), where these are not all.
    """

    classifies: bool
    targets: FloatArray
    classes: npt.NDArray[np.intp] | None = None

    @property
    def likeliest(self) -> npt.NDArray[np.int64]:
        """Position of the likeliest class of each sample; 0 for all where the tensor holds no logits."""
        found = self.targets.argmax(axis=1) if self.classifies else np.zeros(len(self.targets))
        return np.asarray(found, np.int64)

    @property
    def entropy(self) -> float:
        """Mean entropy of the targets, the cross-entropy of the original to itself."""
        return float(-(self.targets * np.log(np.maximum(self.targets, 1e-300))).sum(axis=1).mean())

    def read(self, values: Array) -> FloatArray:
        """Return what the loss reads of the tensor's values, (samples, …): classes or pooled numbers."""
        numbers = pooled(values)
        return numbers if self.classes is None else np.take_along_axis(numbers, self.classes, axis=1)

    def __call__(self, values: FloatArray) -> float:
        """Return the mean loss of values of the same shape as the targets, less that of the original itself."""
        if self.classifies:
            shifted = values - values.max(axis=1, keepdims=True)
            log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            return float(-(self.targets * log_probabilities).sum(axis=1).mean()) - self.entropy
        scale = max(float(self.targets.var()), np.finfo(np.float64).tiny)
        return float(((values - self.targets) ** 2).mean() / scale)

    def slope_of(self, values: FloatArray, targets: FloatArray) -> FloatArray:
        """Return the derivative of the mean loss by values, (samples, numbers), towards targets, up to a factor."""
        return softmax(values, axis=1) - targets if self.classifies else values - targets


def loss_of(shape: tuple[int, ...], values: Array) -> Loss:
    """Return the loss towards the original's own values, (samples, …), of a tensor of the given shape."""
    numbers = pooled(values)
    if len(shape) != 2 or shape[1] < 2:
        return Loss(classifies=False, targets=numbers)
    if shape[1] <= LARGEST_CLASSES:
        return Loss(classifies=True, targets=softmax(numbers, axis=1))
    likeliest = np.argpartition(-numbers, LARGEST_CLASSES, axis=1)[:, :LARGEST_CLASSES]
    return Loss(True, softmax(np.take_along_axis(numbers, likeliest, axis=1), axis=1), likeliest)


def pooled(values: Array) -> FloatArray:
    """Return values as (samples, numbers), float64; averaged over neighbours where they are many and no logits."""
    flat = values.astype(np.float64).reshape(len(values), -1)
    if values.ndim == 2 or flat.shape[1] <= _POOLED_NUMBERS:
        return flat
    return np.stack([part.mean(axis=1) for part in np.array_split(flat, _POOLED_NUMBERS, axis=1)], axis=1)


def balanced_rows(classes: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return `count` row numbers, equally many of every class as far as there are, in ascending order."""
    return _balanced(classes, np.random.default_rng(seed).permutation(len(classes)), count)


def hardest_rows(classes: npt.NDArray[np.int64], probabilities: FloatArray, count: int) -> npt.NDArray[np.int64]:
    """Return `count` row numbers, equally many of every class, those whose class has the lowest probability first.

    Among correctly classified images this is the authors' choice: the balanced batch with the highest mean 1 - p.
    """
    return _balanced(classes, np.argsort(probabilities, kind="stable"), count)


def _balanced(classes: npt.NDArray[np.int64], order: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.int64]:
    """Return the first `count` rows of an order in which the classes take turns."""
    taken = np.zeros(len(classes), dtype=np.int64)
    # The k-th row of its class in that order: taking the smallest k first balances the classes.
    for value in np.unique(classes):
        own = order[classes[order] == value]
        taken[own] = np.arange(len(own))
    return np.sort(order[np.argsort(taken[order], kind="stable")][:count]).astype(np.int64)
