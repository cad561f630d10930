"""Auxiliary networks: what stands on a layer in place of the rest of the model, fitted to the model's own answers.

Each reads pooled activations φ, (samples, positions, channels), and gives q, (samples, classes):

* ``linear``: q = A φ + b, a linear probe (Alain and Bengio 2016).
* ``hidden``: q = A ReLU(W φ + c) + b, one hidden layer over all positions and channels.
* ``pooled``: q = A pool(ReLU(W φ_p + c)) + b, where W is shared by the positions p (a 1×1 convolution; the batch norm
  behind it in the paper is part of W and c) and `pool` averages them to 2 an axis (ElAraby, Wolf, Carvalho 2020).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from oamip_onnx.channels import FIXED
from oamip_onnx.errors import DataError
from oamip_onnx.formulation import Affine, Network, Relu, Shift
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.tasks import TaskData

# Channels of the hidden layer, or of the 1×1 convolution.
HIDDEN = 16

_ITERATIONS = 300

# Weight of ½‖weights‖², in units of the loss summed over samples as scikit-learn's C = 1 has it.
_DECAY = 1.0


@dataclass(frozen=True)
class Head:
    """A fitted head over features (position, channel), flattened.

    Attributes
    ----------
    hidden, hidden_bias
        Weight, shape (hidden cells, features), and bias of the layer with a ReLU; None for a linear head.
    weight, bias
        Of the last layer, shapes (classes, features or hidden cells) and (classes,).
    """

    weight: FloatArray
    bias: FloatArray
    hidden: FloatArray | None = None
    hidden_bias: FloatArray | None = None

    def __call__(self, features: FloatArray) -> FloatArray:
        """Return the logits, shape (samples, classes), of features, (samples, features)."""
        if self.hidden is not None and self.hidden_bias is not None:
            features = np.maximum(features @ self.hidden.T + self.hidden_bias, 0.0)
        return np.asarray(features @ self.weight.T + self.bias)

    def network(self, units: npt.NDArray[np.int64], unit_count: int) -> Network:
        """Return the head behind scored activations as a network for the joint program.

        Parameters
        ----------
        units
            Unit of each feature, shape (features,).
        unit_count
            Number of units of the layer.
        """
        layers: list[Affine | Relu | Shift] = [Shift("scored", "activations", units)]
        last = "scored"
        if self.hidden is not None and self.hidden_bias is not None:
            free = np.full(len(self.hidden), FIXED, np.int64)
            layers.append(Affine("before", ("scored",), (sparse.csr_array(self.hidden),), self.hidden_bias))
            layers.append(Relu("hidden", "before", free))
            last = "hidden"
        layers.append(Affine("logits", (last,), (sparse.csr_array(self.weight),), self.bias))
        owner = np.zeros(unit_count, np.int64)
        return Network(tuple(layers), {"activations": len(units)}, "logits", unit_count, owner)


def fit_head(data: TaskData) -> TaskData:
    """Fit a head; a task function.

    Parameters
    ----------
    data
        Arrays ``features``, (samples, positions, channels); ``targets``, (samples, classes), probabilities or outputs;
        ``pooling``, (parts, positions), what the pooled head averages with. Settings ``kind``, ``classifies``
        and ``seed``.

    Returns
    -------
    TaskData
        The arrays of a `Head`.
    """
    features, targets = data.arrays["features"], data.arrays["targets"]
    kind, classifies = data.settings["kind"], data.settings["classifies"]
    flat = features.reshape(len(features), -1)
    scale = np.maximum(flat.std(axis=0), 1e-6)
    if kind == "linear":
        weight, bias = _linear(flat / scale, targets, classifies=classifies)
        return TaskData({"weight": weight / scale, "bias": bias})
    channels_scale = np.maximum(features.std(axis=(0, 1)), 1e-6)
    if kind == "hidden":
        scaled, pooling = (flat / scale)[:, None, :], np.ones((1, 1))
    else:
        scaled, pooling = features / channels_scale, data.arrays["pooling"]
    hidden, hidden_bias, weight, bias = _with_hidden(
        scaled, targets, pooling, classifies=classifies, seed=data.settings["seed"]
    )
    if kind == "hidden":
        return TaskData({"hidden": hidden / scale, "hidden_bias": hidden_bias, "weight": weight, "bias": bias})
    positions = features.shape[1]
    # (positions · hidden, positions · channels): the same weights at every position.
    spread = np.kron(np.eye(positions), hidden / channels_scale)
    # The pooling is linear, so that it goes into the last layer.
    last = np.einsum("kqm,qp->kpm", weight.reshape(len(bias), len(pooling), -1), pooling).reshape(len(bias), -1)
    return TaskData({"hidden": spread, "hidden_bias": np.tile(hidden_bias, positions), "weight": last, "bias": bias})


def head_of(data: TaskData) -> Head:
    """Return the head that `fit_head` has returned as arrays."""
    return Head(**{name: np.array(values) for name, values in data.arrays.items()})


def quadrants(grid: Sequence[int]) -> FloatArray:
    """Return the matrix that averages a grid of positions to at most 2 an axis, shape (parts, positions)."""
    matrix: FloatArray = np.ones((1, 1))
    for size in grid:
        parts = np.array_split(np.arange(size), min(2, size))
        axis = np.zeros((len(parts), size))
        for number, part in enumerate(parts):
            axis[number, part] = 1.0 / len(part)
        matrix = np.asarray(np.kron(matrix, axis), np.float64)
    return matrix


def _linear(features: FloatArray, targets: FloatArray, *, classifies: bool) -> tuple[FloatArray, FloatArray]:
    """Return the weights, (classes, features), and the bias of a linear head."""
    # scikit-learn takes a second to import, which commands that do not score should not wait for.
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression, Ridge  # noqa: PLC0415

    if not classifies:
        ridge = Ridge(alpha=1.0).fit(features, targets)
        return np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
    labels = _labels(targets)
    head = LogisticRegression(C=1.0 / _DECAY, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        # A head that is close to its optimum ranks units as well as one that is there.
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.fit(features, labels)
    if len(head.classes_) == 2:
        # One row stands for the second class; the first has the opposite sign.
        return np.concatenate([-head.coef_, head.coef_]) / 2, np.concatenate([-head.intercept_, head.intercept_]) / 2
    return head.coef_, head.intercept_


def _labels(targets: FloatArray) -> npt.NDArray[np.intp]:
    """Return the likeliest class of each sample.

    Raises
    ------
    DataError
        If it is the same for all: nothing could be told from it.
    """
    labels = np.asarray(targets.argmax(axis=1), np.intp)
    if len(np.unique(labels)) < 2:
        raise DataError(
            "The model takes all samples for one class, so that its loss says nothing about units; give samples of "
            "several classes, or --importance reconstruction."
        )
    return labels


def _with_hidden(
    features: FloatArray, targets: FloatArray, pooling: FloatArray, *, classifies: bool, seed: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return W, c, A and b of a head with a hidden layer, by L-BFGS from a seeded start.

    `features` are (samples, positions, channels), `pooling` is (parts, positions); A is (classes, parts · hidden).
    """
    channels, classes, parts = features.shape[2], targets.shape[1], len(pooling)
    shapes = [(HIDDEN, channels), (HIDDEN,), (classes, parts * HIDDEN), (classes,)]
    sizes = [int(np.prod(shape)) for shape in shapes]
    random = np.random.default_rng(seed)
    start: list[FloatArray] = [
        random.normal(0.0, np.sqrt(2.0 / max(shape[-1], 1)), size) for shape, size in zip(shapes, sizes, strict=True)
    ]
    start[1][:], start[3][:] = 0.0, 0.0
    spread = float(np.sqrt(max(float(targets.var()), 1e-12)))

    def split(vector: FloatArray) -> list[FloatArray]:
        return [v.reshape(s) for v, s in zip(np.split(vector, np.cumsum(sizes)[:-1]), shapes, strict=True)]

    def loss(vector: FloatArray) -> tuple[float, FloatArray]:
        first, first_bias, last, last_bias = split(vector)
        before = features @ first.T + first_bias
        pooled = np.einsum("qp,npm->nqm", pooling, np.maximum(before, 0.0)).reshape(len(features), -1)
        q = pooled @ last.T + last_bias
        if classifies:
            value, slope = -float((targets * log_softmax(q, axis=1)).sum()), softmax(q, axis=1) - targets
        else:
            value, slope = float(((q - targets) ** 2).sum()) / 2 / spread**2, (q - targets) / spread**2
        value += _DECAY / 2 * float((first**2).sum() + (last**2).sum())
        back = np.einsum("qp,nqm->npm", pooling, (slope @ last).reshape(len(features), parts, HIDDEN)) * (before > 0)
        gradient = [
            np.einsum("npm,npc->mc", back, features) + _DECAY * first,
            back.sum(axis=(0, 1)),
            slope.T @ pooled + _DECAY * last,
            slope.sum(axis=0),
        ]
        return value, np.concatenate([g.ravel() for g in gradient])

    found = minimize(loss, np.concatenate(start), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    first, first_bias, last, last_bias = split(found.x)
    return first, first_bias, last, last_bias
