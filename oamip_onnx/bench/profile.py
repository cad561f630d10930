"""Where a model spends its time: ONNX Runtime's own record of every node it ran."""

import json
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.bench.sessions import check_feeds, start_session
from oamip_onnx.errors import ModelError, UsageError
from oamip_onnx.runtime import RuntimeOptions

# The first runs allocate memory and fill caches; their times are no part of the profile.
_WARMUP_RUNS = 5

# A profile of the slowest model takes about this long, with enough runs for the small operators.
_PROFILE_SECONDS, _FEWEST_PROFILED, _MOST_PROFILED = 1.0, 8, 200

_KERNEL_SUFFIX = "_kernel_time"

# Operators that run other nodes.
_WITH_BODY = frozenset({"If", "Loop", "Scan"})


@dataclass(frozen=True)
class NodeTime:
    """The time of one node in the graph that ONNX Runtime ran, which is the model's own after fusion.

    Attributes
    ----------
    node
        Name of the node; ONNX Runtime names a fused one after what it fused.
    operator
        The operator it ran, such as ``Conv`` or ``ReorderInput``.
    milliseconds
        Mean time a run, of all its calls, without the nodes inside its own body. It is taken over the middle half of
        the runs by their length, so that a run that other programs held up does not count; and it is a mean, not the
        median of each node, so that the sum over the nodes is the time that those runs spend in nodes.
    calls
        Mean number of calls a run: 1, but for nodes inside a loop or a branch.
    """

    node: str
    operator: str
    milliseconds: float
    calls: float


@dataclass(frozen=True)
class _Event:
    """One call of a node: when it began and how long it took, in microseconds."""

    node: str
    operator: str
    index: str
    thread: int
    begin: int
    duration: int


def profiled_runs(slowest_ms: float) -> int:
    """Return how many runs a profile should have, given the median time of the slowest model in milliseconds."""
    return min(max(round(_PROFILE_SECONDS * 1e3 / slowest_ms), _FEWEST_PROFILED), _MOST_PROFILED)


def profile_nodes(
    model: onnx.ModelProto | Path,
    feeds: Mapping[str, npt.NDArray[np.generic]],
    options: RuntimeOptions,
    *,
    runs: int = 20,
) -> tuple[NodeTime, ...]:
    """Return the time of each node, in order of execution.

    The profiler costs about a microsecond a node, so the sum may exceed what the model takes without it. On a device
    such as a GPU, the times are those of handing the work over, which goes on while the device computes.

    Parameters
    ----------
    model
        The model, or the path of its file.
    feeds
        One batch for each input, by name.
    options
        Provider, threads and optimisation.
    runs
        How many runs to record, after a few that warm up; the means are over the middle half of them.

    Raises
    ------
    DataError
        If the feeds do not fit the inputs of the model.
    ModelError
        If ONNX Runtime does not accept or cannot run the model.
    UsageError
        If `runs` is not positive, or the provider is not available or does not start.
    """
    if runs < 1:
        raise UsageError(f"A profile needs at least one run, but {runs} were asked for; raise the number.")
    with tempfile.TemporaryDirectory(prefix="oamip-") as folder:
        session = start_session(model, options, profile_prefix=Path(folder) / "profile")
        check_feeds(session, feeds, str(model) if isinstance(model, Path) else "the model")
        for _ in range(_WARMUP_RUNS + runs):
            session.run(feeds)
        events: object = json.loads(session.end_profiling().read_text(encoding="utf-8"))
    if not isinstance(events, list):
        raise ModelError("ONNX Runtime's profile is no list of events; leave the profile out.")
    return node_times(events, warmup_runs=_WARMUP_RUNS)


def node_times(events: Sequence[Mapping[str, object]], *, warmup_runs: int) -> tuple[NodeTime, ...]:
    """Return the time of each node from the events of ONNX Runtime's profile, which has one `model_run` a run.

    Parameters
    ----------
    events
        The profile, in the format of Chrome's tracing.
    warmup_runs
        How many runs at the front are left out.

    Raises
    ------
    ModelError
        If the profile holds no run after those, or no node.
    """
    runs = sorted((_integer(e, "ts"), _integer(e, "dur")) for e in events if e.get("name") == "model_run")
    if len(runs) <= warmup_runs:
        raise ModelError(
            f"ONNX Runtime's profile holds {len(runs)} runs, of which {warmup_runs} warm up; leave the profile out."
        )
    by_length = sorted(runs[warmup_runs:], key=lambda run: run[1])
    quarter = len(by_length) // 4
    kept = sorted(by_length[quarter : len(by_length) - quarter])
    kernels = [event for event in map(_kernel, events) if event and _is_within(event.begin, kept)]
    if not kernels:
        raise ModelError("ONNX Runtime recorded no node: its optimiser left none in the model; leave the profile out.")
    calls: dict[tuple[str, str, str], list[int]] = {}
    for event, own in _own_times(kernels):
        # Two nodes may have the same name, and nodes in different bodies the same index.
        calls.setdefault((event.node, event.operator, event.index), []).append(own)
    return tuple(
        NodeTime(node, operator, sum(microseconds) / len(kept) / 1e3, len(microseconds) / len(kept))
        for (node, operator, _), microseconds in calls.items()
    )


def times_by_operator(times: Iterable[NodeTime]) -> dict[str, float]:
    """Return the milliseconds a run of each operator, all its nodes together, largest first."""
    total: dict[str, float] = {}
    for time in times:
        total[time.operator] = total.get(time.operator, 0.0) + time.milliseconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _is_within(moment: int, spans: Sequence[tuple[int, int]]) -> bool:
    """Return whether a moment falls into one of the spans, given as begin and length, in order."""
    position = bisect_right(spans, moment, key=lambda span: span[0]) - 1
    return position >= 0 and moment <= sum(spans[position])


def _own_times(kernels: Iterable[_Event]) -> list[tuple[_Event, int]]:
    """Return each event in order of its begin, with its microseconds outside the events within it.

    The event of a loop or a branch spans those of the nodes in its body; counted whole, these would count twice.
    """
    ordered = sorted(kernels, key=lambda event: (event.begin, -event.duration))
    own = [event.duration for event in ordered]
    open_bodies: dict[int, list[int]] = {}
    for position, event in enumerate(ordered):
        around = open_bodies.setdefault(event.thread, [])
        # Begin and duration are cut off to whole microseconds: a body's last node may seem to end one after it.
        while around and _end(ordered[around[-1]]) + 1 < _end(event):
            around.pop()
        if around:
            own[around[-1]] -= event.duration
        if event.operator in _WITH_BODY:
            around.append(position)
    return list(zip(ordered, own, strict=True))


def _end(event: _Event) -> int:
    return event.begin + event.duration


def _kernel(event: Mapping[str, object]) -> _Event | None:
    """Return the run of a node, or None for any other event."""
    name, arguments = event.get("name"), event.get("args")
    if event.get("cat") != "Node" or not isinstance(name, str) or not name.endswith(_KERNEL_SUFFIX):
        return None
    if not isinstance(arguments, Mapping):
        return None
    operator, index = str(arguments.get("op_name", "?")), str(arguments.get("node_index", ""))
    node = name.removesuffix(_KERNEL_SUFFIX) or f"{operator} {index}"
    return _Event(node, operator, index, _integer(event, "tid"), _integer(event, "ts"), _integer(event, "dur"))


def _integer(event: Mapping[str, object], key: str) -> int:
    value = event.get(key)
    if not isinstance(value, int):
        raise ModelError(f"An event of ONNX Runtime's profile has no whole number {key!r}; leave the profile out.")
    return value
