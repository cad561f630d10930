"""The latency of a network as a function of the widths of its groups, measured on this machine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oamip_onnx.bench import vector_block
from oamip_onnx.budget import Budget
from oamip_onnx.budget.counting import CostCounter, WidthPolynomial
from oamip_onnx.budget.problem import Pair
from oamip_onnx.channels import ChannelAnalysis
from oamip_onnx.latency.configurations import choose_configurations, configuration_count
from oamip_onnx.latency.fitting import fit, node_features
from oamip_onnx.latency.measuring import measure
from oamip_onnx.latency.store import MeasurementStore
from oamip_onnx.latency.views import VIEW_COUNT, view_widths
from oamip_onnx.model import Array, Model, count_costs
from oamip_onnx.progress import Progress, silent
from oamip_onnx.runtime import RuntimeOptions

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the latency of a network from the widths of its groups.

    The milliseconds are those of the machine as it was when it was measured. Other programs and the clock of the CPU
    slow all widths down alike, so that shares of `original_ms` say more than milliseconds do.

    Attributes
    ----------
    original_ms
        Measured median latency of the network as it is.
    spread
        Root mean square of the relative errors of the predictions of the measured networks, each without its own
        measurement.
    polynomial
        The latency in milliseconds, of the views of the widths: their positions are those of `view_widths`.
    block
        The vector block of the CPU.
    """

    original_ms: float
    spread: float
    polynomial: WidthPolynomial
    block: int

    def predict(self, widths: Sequence[int]) -> float:
        """Return the latency in milliseconds at one width a group."""
        # As a table of one candidate a group, so that it is what the budget says to the last bit.
        candidates = [np.array([width], np.int64) for width in widths]
        return self.budget("latency", math.inf, candidates).cost([0] * len(candidates))

    def budget(self, name: str, limit_ms: float, candidates: Sequence[IntArray]) -> Budget:
        """Return the budget of the latency over the candidate widths of each group.

        Parameters
        ----------
        name
            What messages call it.
        limit_ms
            The most that the network may take, in milliseconds.
        candidates
            The widths that each group may get.
        """
        views = [view_widths(np.asarray(own)[:, None], self.block).T for own in candidates]
        unary: dict[int, FloatArray] = {}
        pairwise: dict[Pair, FloatArray] = {}

        def add(group: int, values: FloatArray) -> None:
            unary[group] = unary[group] + values if group in unary else values

        for position, factor in self.polynomial.linear.items():
            group, view = divmod(position, VIEW_COUNT)
            add(group, factor * views[group][view])
        for (first, second), factor in self.polynomial.products.items():
            (g, own), (h, other) = divmod(first, VIEW_COUNT), divmod(second, VIEW_COUNT)
            if g == h:
                add(g, factor * views[g][own] * views[h][other])
            else:
                table = factor * views[g][own][:, None] * views[h][other]
                pairwise[g, h] = pairwise[g, h] + table if (g, h) in pairwise else table
        return Budget(name, limit_ms, self.polynomial.constant, unary, pairwise, "{:.4g} ms".format)


def measure_latency_model(
    model: Model,
    analysis: ChannelAnalysis,
    feeds: Mapping[str, Array],
    options: RuntimeOptions,
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> LatencyModel:
    """Return a model of a network's latency, from the times of some dozens of narrower networks and of their nodes.

    Parameters
    ----------
    model, analysis
        The network and its channels.
    feeds
        One batch for each input, by name.
    options
        Provider, threads and optimisation.
    seed
        Seed of the widths that are measured, and of the random turns.
    cache
        Folder in which measurements are kept, so that the same network on the same machine is not measured again;
        None keeps none.
    progress
        Is told each network that is measured.

    Raises
    ------
    DataError
        If the feeds do not fit the inputs of the network.
    ModelError
        If ONNX Runtime does not accept or cannot run a narrower network, or a node cannot be narrowed.
    UsageError
        If the provider is not available or does not start.
    """
    counter = CostCounter(model, analysis)
    macs = counter.macs_by_node()
    bytes_of_weights = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    count = configuration_count(count_costs(model, analysis.types).macs, bytes_of_weights)
    store = MeasurementStore(cache, model, analysis, feeds, options, count=count, seed=seed)
    measured = store.get()
    if measured is None:
        widths = choose_configurations(analysis.groups, count, seed)
        measured = measure(model, analysis, macs, widths, feeds, options, seed=seed, progress=progress or silent)
        store.put(measured)
    block = vector_block()
    found = fit(measured, node_features(model, analysis, macs, counter), block)
    return LatencyModel(float(measured.total_ms[0]), found.spread, found.polynomial, block)
