"""Bounds on what reaches each activation."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

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
    lower: dict[str, FloatArray] = {}
    upper: dict[str, FloatArray] = {}
    for name, values in network.flatten(feeds).items():
        lower[name], upper[name] = values - radius, values + radius
        if domain is not None:
            lower[name] = np.maximum(lower[name], domain[0] - radius)
            upper[name] = np.minimum(upper[name], domain[1] + radius)
    for layer in network.layers:
        name = layer.output
        if isinstance(layer, Affine):
            lower[name], upper[name] = _affine_interval(layer, lower, upper)
        elif isinstance(layer, Relu):
            lower[name], upper[name] = np.maximum(lower[layer.input], 0.0), np.maximum(upper[layer.input], 0.0)
        elif isinstance(layer, Shift):
            lower[name], upper[name] = lower[layer.input], upper[layer.input]
        else:
            lower[name], upper[name] = _pool_interval(layer, lower[layer.input], upper[layer.input])
    return Bounds(lower, upper)


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


def _affine_interval(
    layer: Affine, lower: Mapping[str, FloatArray], upper: Mapping[str, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    samples = len(lower[layer.inputs[0]])
    low, high = np.tile(layer.bias, (samples, 1)), np.tile(layer.bias, (samples, 1))
    for name, matrix in zip(layer.inputs, layer.matrices, strict=True):
        positive, negative = sparse.csr_array(matrix.maximum(0)), sparse.csr_array(matrix.minimum(0))
        low += applied(positive, lower[name]) + applied(negative, upper[name])
        high += applied(positive, upper[name]) + applied(negative, lower[name])
    return low, high


def _pool_interval(layer: MaxPool, lower: FloatArray, upper: FloatArray) -> tuple[FloatArray, FloatArray]:
    padding = np.full((len(lower), 1), -np.inf)
    low = np.concatenate([lower, padding], axis=1)[:, layer.windows].max(axis=2)
    return low, np.concatenate([upper, padding], axis=1)[:, layer.windows].max(axis=2)
