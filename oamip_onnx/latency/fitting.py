"""The time of each node as a function of the widths, from its times at several of them."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from oamip_onnx.budget.counting import CostCounter, WidthPolynomial, total
from oamip_onnx.channels import ChannelAnalysis
from oamip_onnx.latency.measuring import BETWEEN, Measurements
from oamip_onnx.latency.views import (
    BLOCKS,
    FITTING,
    FITTING_BLOCKS,
    RAW,
    WHOLE,
    all_whole,
    through,
    view_widths,
)
from oamip_onnx.model import Model

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """The time of a network as a function of the widths.

    Attributes
    ----------
    polynomial
        Milliseconds, of the views of the widths.
    spread
        Root mean square of the relative errors of the measured networks, each predicted from the others.
    """

    polynomial: WidthPolynomial
    spread: float


def node_features(
    model: Model, analysis: ChannelAnalysis, macs: Mapping[int, WidthPolynomial], counter: CostCounter
) -> dict[int, list[WidthPolynomial]]:
    """Return by node what its time is a sum of, with factors that are not negative.

    A node takes time for being run, for the elements that it touches, more for those of widths that do not fit its
    kernel or need reordering, and for what it multiplies.

    Parameters
    ----------
    model, analysis
        The network and its channels.
    macs
        The multiply-accumulate operations by node.
    counter
        Counts elements.
    """
    found = {}
    heavy, light = list[WidthPolynomial](), list[WidthPolynomial]()
    sizes = {
        name: counter.elements(name)
        for name in dict.fromkeys(name for node in model.graph.node for name in [*node.input, *node.output])
        if name in analysis.types and not model.is_constant(name)
    }
    for position, node in enumerate(model.graph.node):
        elements = total(sizes[name] for name in dict.fromkeys([*node.input, *node.output]) if name in sizes)
        if position in macs:
            inputs = {group for name in node.input if name in sizes for group in sizes[name].groups()}
            found[position] = _of_elements(elements, through(elements, WHOLE)) + _of_macs(macs[position], inputs)
            heavy.append(elements)
        else:
            found[position] = _of_elements(elements, all_whole(elements))
            light.append(elements)
    # Reordering a tensor for the next node is most of what happens between nodes.
    found[BETWEEN] = _of_elements(total(heavy), through(total(heavy), WHOLE))
    found[BETWEEN] += [through(total(light), RAW), total(_less(through(e, RAW), all_whole(e)) for e in light)]
    return found


def _of_elements(elements: WidthPolynomial, whole: WidthPolynomial) -> list[WidthPolynomial]:
    raw = through(elements, RAW)
    return [WidthPolynomial(1.0), raw, _less(raw, through(elements, FITTING)), _less(raw, whole)]


def _of_macs(macs: WidthPolynomial, inputs: AbstractSet[int]) -> list[WidthPolynomial]:
    """Return the work of kernels that fill up neither side to blocks, the outputs, or both; and of slower kernels."""
    fitting = through(macs, FITTING, BLOCKS, inputs)
    return [
        through(macs, FITTING, RAW, inputs),
        fitting,
        through(macs, FITTING_BLOCKS, BLOCKS, inputs),
        _less(through(macs, RAW, BLOCKS, inputs), fitting),
    ]


def _less(whole: WidthPolynomial, part: WidthPolynomial) -> WidthPolynomial:
    return whole + part * -1


def fit(measured: Measurements, features: Mapping[int, Sequence[WidthPolynomial]], block: int) -> Fit:
    """Return the time of a network as a function of the widths.

    Parameters
    ----------
    measured
        Its times.
    features
        What the time of each node is a sum of.
    block
        The vector block of the CPU.
    """
    views = [view_widths(widths, block).tolist() for widths in measured.widths]
    nodes = sorted(measured.node_ms)
    tables = [np.array([[feature(view) for feature in features[node]] for view in views]) for node in nodes]
    times = [measured.node_ms[node] for node in nodes]
    every = np.ones(len(views), dtype=np.bool_)
    errors = []
    # Predicted from the others: a fit is closer to what it was made of than to other widths.
    for left_out in range(len(views)):
        rows = every.copy()
        rows[left_out] = False
        factors, offset = _factors(tables, times, measured.total_ms, rows)
        guess = offset + sum(float(t[left_out] @ f) for t, f in zip(tables, factors, strict=True))
        errors.append(guess / measured.total_ms[left_out] - 1)
    factors, offset = _factors(tables, times, measured.total_ms, every)
    parts = [
        feature * float(factor)
        for node, own in zip(nodes, factors, strict=True)
        for feature, factor in zip(features[node], own, strict=True)
        if factor
    ]
    return Fit(total([WidthPolynomial(offset), *parts]), float(np.sqrt(np.mean(np.square(errors)))))


def _factors(
    tables: Sequence[FloatArray], times: Sequence[FloatArray], total_ms: FloatArray, rows: npt.NDArray[np.bool_]
) -> tuple[list[FloatArray], float]:
    """Return the factors of each node's features, and what the network takes beside."""
    # An error counts by its share of the whole network's time.
    weights = 1 / total_ms[rows]
    found = [_least_squares(table[rows], time[rows], weights) for table, time in zip(tables, times, strict=True)]
    guess = np.sum([t[rows] @ f for t, f in zip(tables, found, strict=True)], axis=0)
    offset, scale = _least_squares(np.stack([np.ones_like(guess), guess], axis=1), total_ms[rows], weights)
    return [factor * scale for factor in found], float(offset)


def _least_squares(table: FloatArray, values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the factors of the columns that are not negative and come nearest to the values."""
    # The columns differ by many orders of magnitude, on which the solver's tolerance depends.
    size = np.abs(table).max(axis=0)
    size[size == 0] = 1.0
    factors, _ = nnls(table / size * weights[:, None], values * weights)
    return np.asarray(factors / size, np.float64)
