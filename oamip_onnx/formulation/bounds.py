"""Bounds on what reaches each activation."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.channels import FIXED
from oamip_onnx.formulation.network import Affine, MaxPool, Network, Relu, Shift
from oamip_onnx.formulation.program import FloatArray, applied

# The radius of the box around each image in the paper's experiments.
PAPER_RADIUS = 1e-5


@dataclass(frozen=True)
class Bounds:
    """Lower and upper bound of every tensor of a network, shape (samples, cells) each."""

    lower: Mapping[str, FloatArray]
    upper: Mapping[str, FloatArray]


def interval_bounds(
    network: Network,
    feeds: Mapping[str, npt.NDArray[np.generic]],
    radius: float = PAPER_RADIUS,
    domain: tuple[float, float] | None = None,
) -> Bounds:
    """Return interval bounds through the *unpruned* network from a box around each sample.

    With x the sample, ε the radius and [d, D] the domain of the data, the box is

        max(x - ε, d - ε) ≤ input ≤ min(x + ε, D + ε),

    and ``W⁺L + W⁻U + b ≤ W·input + b ≤ W⁺U + W⁻L + b`` for every affine map (ElAraby, Wolf, Carvalho 2020). They hold
    for every input in the box as long as no unit is removed, not for what a pruned network computes.

    Parameters
    ----------
    network, feeds
        The network and its samples, of any per-sample shape.
    radius
        ε; one number for all inputs, in their units.
    domain
        Smallest and largest value that an input can have; no clipping without it.
    """
    return propagated(network, *_boxes(network, feeds, radius, domain))


def score_aware_bounds(
    network: Network,
    feeds: Mapping[str, npt.NDArray[np.generic]],
    radius: float = 0.0,
    domain: tuple[float, float] | None = None,
) -> Bounds:
    """Return interval bounds that hold for every score in [0, 1] of the gate ``h = s·ReLU(a)``.

    With L ≤ a ≤ U, a scored ReLU lies in [0, max(U, 0)], a scored tensor without ReLU in [min(L, 0), max(U, 0)], and
    a bias b that goes with its unit in [min(b, 0), max(b, 0)]. Unlike `interval_bounds` they hold for every pruned
    network as well.

    Parameters
    ----------
    network, feeds, radius, domain
        As for `interval_bounds`.
    """
    return propagated(network, *_boxes(network, feeds, radius, domain), scored=True)


def box_bounds(network: Network, lower: Mapping[str, FloatArray], upper: Mapping[str, FloatArray]) -> Bounds:
    """Return interval bounds for every input in given boxes.

    Parameters
    ----------
    network
        The network.
    lower, upper
        Smallest and largest value of every input cell, shape (boxes, cells) by input; finite.
    """
    return propagated(network, lower, upper)


def propagated(
    network: Network,
    lower: Mapping[str, FloatArray],
    upper: Mapping[str, FloatArray],
    *,
    scored: bool = False,
    known: Bounds | None = None,
) -> Bounds:
    """Return interval bounds of every tensor from those of the inputs.

    Parameters
    ----------
    network
        The network.
    lower, upper
        Bounds of the inputs, shape (boxes, cells) by input.
    scored
        Whether they have to hold for every score in [0, 1], see `score_aware_bounds`.
    known
        Bounds that are known to hold, by tensor; the tighter of the two is passed on.
    """
    low, high = dict(lower), dict(upper)
    for layer in network.layers:
        name = layer.output
        if isinstance(layer, Affine):
            low[name], high[name] = _affine_interval(layer, low, high, scored=scored)
        elif isinstance(layer, MaxPool):
            low[name], high[name] = _pool_interval(layer, low[layer.input], high[layer.input])
        else:
            low[name], high[name] = _activation_interval(layer, low[layer.input], high[layer.input], scored=scored)
        if known is not None and name in known.lower:
            low[name] = np.maximum(low[name], known.lower[name])
            high[name] = np.minimum(high[name], known.upper[name])
    return Bounds(low, high)


def bias_interval(layer: Affine, *, scored: bool) -> tuple[FloatArray, FloatArray]:
    """Return the smallest and largest bias of each cell, over all scores if `scored`; shape (cells,)."""
    if not scored or layer.bias_units is None:
        return layer.bias, layer.bias
    free = layer.bias_units != FIXED
    low = np.where(free, np.minimum(layer.bias, 0.0), layer.bias)
    return low, np.where(free, np.maximum(layer.bias, 0.0), layer.bias)


def trust_region_bounds(network: Network, values: Mapping[str, FloatArray], radius: float = 0.1) -> Bounds:
    """Return ``a⁰ ∓ radius·scale`` around what the original network computes at each scored or plain activation.

    `scale` is the mean absolute pre-activation of the layer over the samples. Together with the rows ``L ≤ a ≤ U``
    these bounds are valid for every pruned network inside the region.

    Parameters
    ----------
    network
        The network.
    values
        What `Network.forward` returned for the samples.
    radius
        Relative to the scale; below 0.1 hardly any unit can go.
    """
    lower: dict[str, FloatArray] = {}
    upper: dict[str, FloatArray] = {}
    for layer in network.layers:
        if isinstance(layer, Relu | Shift):
            centre = values[layer.input]
            reach = radius * float(np.abs(centre).mean())
            lower[layer.input], upper[layer.input] = centre - reach, centre + reach
    return Bounds(lower, upper)


def _boxes(
    network: Network, feeds: Mapping[str, npt.NDArray[np.generic]], radius: float, domain: tuple[float, float] | None
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Return lower and upper bounds of the inputs around each sample."""
    lower: dict[str, FloatArray] = {}
    upper: dict[str, FloatArray] = {}
    for name, values in network.flatten(feeds).items():
        lower[name], upper[name] = values - radius, values + radius
        if domain is not None:
            lower[name] = np.maximum(lower[name], domain[0] - radius)
            upper[name] = np.minimum(upper[name], domain[1] + radius)
    return lower, upper


def _affine_interval(
    layer: Affine, lower: Mapping[str, FloatArray], upper: Mapping[str, FloatArray], *, scored: bool
) -> tuple[FloatArray, FloatArray]:
    samples = len(lower[layer.inputs[0]])
    least, most = bias_interval(layer, scored=scored)
    low, high = np.tile(least, (samples, 1)), np.tile(most, (samples, 1))
    for name, matrix in zip(layer.inputs, layer.matrices, strict=True):
        positive, negative = sparse.csr_array(matrix.maximum(0)), sparse.csr_array(matrix.minimum(0))
        low += applied(positive, lower[name]) + applied(negative, upper[name])
        high += applied(positive, upper[name]) + applied(negative, lower[name])
    return low, high


def _activation_interval(
    layer: Relu | Shift, lower: FloatArray, upper: FloatArray, *, scored: bool
) -> tuple[FloatArray, FloatArray]:
    if isinstance(layer, Relu):
        lower, upper = np.maximum(lower, 0.0), np.maximum(upper, 0.0)
    if not scored:
        return lower, upper
    # A score scales the value towards zero.
    free = layer.units != FIXED
    return np.where(free, np.minimum(lower, 0.0), lower), np.where(free, np.maximum(upper, 0.0), upper)


def _pool_interval(layer: MaxPool, lower: FloatArray, upper: FloatArray) -> tuple[FloatArray, FloatArray]:
    padding = np.full((len(lower), 1), -np.inf)
    low = np.concatenate([lower, padding], axis=1)[:, layer.windows].max(axis=2)
    return low, np.concatenate([upper, padding], axis=1)[:, layer.windows].max(axis=2)
