"""Times of whole narrower networks, and of the nodes within them."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.bench import BenchSettings, NodeTime, measure_latency, profile_nodes
from oamip_onnx.budget.widths import first_units
from oamip_onnx.channels import ChannelAnalysis
from oamip_onnx.latency.configurations import Widths
from oamip_onnx.model import Array, Model
from oamip_onnx.progress import Progress, Step
from oamip_onnx.runtime import RuntimeOptions
from oamip_onnx.surgery import cut

FloatArray = npt.NDArray[np.float64]

# Stands for the nodes that ONNX Runtime puts between those of the model, such as ReorderInput.
BETWEEN = -1

_PROFILED_RUNS = 12
_TURNS = BenchSettings(
    minimum_runs=25, minimum_seconds=0.02, maximum_runs=500, warmup_runs=3, warmup_seconds=0.01, maximum_seconds=30.0
)

# ONNX Runtime names a fused node after one that it fused, and a convolution in blocked layout after its output.
_NODE = re.compile(r"oamip_node_(\d+)_")
_BLOCKED = re.compile(r"(.+)_nchwc(?:_token_\d+)?")


@dataclass(frozen=True)
class Measurements:
    """The times of one network at several widths.

    Attributes
    ----------
    widths
        The widths of every group in each configuration, the original first.
    total_ms
        Typical time of each without the profiler, shape (configurations,).
    node_ms
        By position of a node, its time in each, scaled so that all nodes together take the total; 0 where it was fused
        into another one, or not run. `BETWEEN` stands for all nodes that are not in the model.
    """

    widths: tuple[Widths, ...]
    total_ms: FloatArray
    node_ms: Mapping[int, FloatArray]


def measure(
    model: Model,
    analysis: ChannelAnalysis,
    macs_at: Iterable[int],
    widths: Sequence[Widths],
    feeds: Mapping[str, Array],
    options: RuntimeOptions,
    *,
    seed: int,
    progress: Progress,
) -> Measurements:
    """Return the times of a network at several widths.

    Parameters
    ----------
    model, analysis
        The network and its channels.
    macs_at
        Positions of the nodes that multiply and accumulate: a fused node's time is that of the one it contains.
    widths
        The widths of every group in each configuration.
    feeds
        One batch for each input, by name.
    options
        Provider, threads and optimisation.
    seed
        Seed of the random turns.
    progress
        Is told each configuration that is profiled.
    """
    named = named_nodes(model)
    locate = node_locator(named, macs_at)
    protos, profiles = [], []
    for position, own in enumerate(widths):
        progress(Step("latency model", position, len(widths)))
        protos.append(cut(named, analysis, first_units(analysis, own)))
        profiles.append(locate(profile_nodes(protos[-1], feeds, options, runs=_PROFILED_RUNS)))
    turns = measure_latency(protos, feeds, options, settings=_TURNS, seed=seed)
    progress(Step("latency model", len(widths), len(widths)))
    total_ms = typical_times(turns.samples_ms)
    node_ms = {node: np.zeros(len(widths)) for profile in profiles for node in profile}
    for position, profile in enumerate(profiles):
        # The profiler makes every node a little slower, and other programs may have held up all of them.
        scale = total_ms[position] / (sum(profile.values()) or 1.0)
        for node, time_ms in profile.items():
            node_ms[node][position] = time_ms * scale
    return Measurements(tuple(widths), total_ms, node_ms)


def typical_times(samples_ms: FloatArray) -> FloatArray:
    """Return a median time of each network, shape (networks,), from times of shape (networks, rounds).

    What holds up a whole round holds up all networks in it alike: they are compared within rounds.
    """
    pace = np.exp(np.log(samples_ms).mean(axis=0))
    return np.asarray(np.median(samples_ms / pace, axis=1) * np.median(pace), np.float64)


def named_nodes(model: Model) -> Model:
    """Return the model with node names that tell the position of each node."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for position, node in enumerate(proto.graph.node):
        node.name = f"oamip_node_{position}_"
    return replace(model, proto=proto)


def node_locator(model: Model, macs_at: Iterable[int]) -> Callable[[Sequence[NodeTime]], dict[int, float]]:
    """Return a function from a profile to the milliseconds of each node of the model, by its position.

    Parameters
    ----------
    model
        A model of `named_nodes`.
    macs_at
        Positions of the nodes that multiply and accumulate.
    """
    heavy = set(macs_at)

    def position(name: str) -> int:
        own, blocked = _NODE.search(name), _BLOCKED.fullmatch(name)
        if own:
            return int(own[1])
        return model.producers.get(blocked[1], BETWEEN) if blocked else BETWEEN

    def locate(times: Sequence[NodeTime]) -> dict[int, float]:
        at = [position(time.node) for time in times]
        found: dict[int, float] = defaultdict(float)
        for node, time in zip(at, times, strict=True):
            is_itself = node == BETWEEN or node in heavy or model.graph.node[node].op_type == time.operator
            found[node if is_itself else _fused(model, node, heavy, set(at))] += time.milliseconds
        return dict(found)

    return locate


def _fused(model: Model, last: int, heavy: set[int], named: set[int]) -> int:
    """Return the node that multiplies in a fused one that is named after its last node.

    That is the nearest one before it that has no time under a name of its own.
    """
    pending, seen, candidates = [last], set[int](), list[int]()
    while pending:
        node = pending.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if node in heavy:
            candidates.append(node)
            continue
        pending += [model.producers[name] for name in model.graph.node[node].input if name in model.producers]
    return next((node for node in candidates if node not in named), last)
