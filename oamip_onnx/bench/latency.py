"""Times models against each other: alive together, in random turns, until the medians can be trusted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oamip_onnx.bench.sessions import Feeds, Model, check_feeds, start_session
from oamip_onnx.bench.statistics import Latency, Samples, Speedup, compare, summarise
from oamip_onnx.errors import UsageError
from oamip_onnx.runtime import RuntimeOptions

# Of the time that the fuse allows, the share that warming up may take: slow models still get measured.
_WARMUP_SHARE = 0.25


@dataclass(frozen=True)
class BenchSettings:
    """How long a benchmark runs; each minimum holds for every model.

    Attributes
    ----------
    minimum_runs, minimum_seconds
        The measurement goes on until every model has run this often and this long.
    warmup_runs, warmup_seconds
        The same for the unmeasured runs before.
    maximum_seconds
        The benchmark ends after this time, whatever the minimums say.
    maximum_runs
        The measurement ends after this many runs of each model: a tiny model need not fill the minimum seconds.
    cold_processes
        How many fresh processes each model is started in for its cold start; 0 leaves it out.
    """

    minimum_runs: int = 50
    minimum_seconds: float = 3.0
    warmup_runs: int = 10
    warmup_seconds: float = 0.5
    maximum_seconds: float = 120.0
    maximum_runs: int = 50_000
    cold_processes: int = 3

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if min(self.minimum_runs, self.warmup_runs) < 1:
            raise UsageError("A benchmark needs at least one warm-up run and one measured run; raise the minimum.")
        if min(self.minimum_seconds, self.warmup_seconds) < 0 or self.maximum_seconds <= 0:
            raise UsageError("The seconds of a benchmark cannot be negative, nor its maximum zero; correct them.")
        if self.maximum_runs < self.minimum_runs:
            raise UsageError(
                f"The benchmark's maximum of {self.maximum_runs} runs is below its minimum of {self.minimum_runs}; "
                "raise the one or lower the other."
            )


@dataclass(frozen=True)
class LatencyComparison:
    """The run times of two models and their ratio."""

    original: Latency
    pruned: Latency
    speedup: Speedup


@dataclass(frozen=True)
class Measurement:
    """The run times of several models, measured together.

    Attributes
    ----------
    samples_ms
        Run times of shape (models, rounds); each round ran every model once.
    seed
        Seed of the random turns and of the bootstrap.
    """

    samples_ms: npt.NDArray[np.float64]
    seed: int

    @property
    def latencies(self) -> tuple[Latency, ...]:
        """The percentiles of each model, in the order of the models."""
        return tuple(summarise(row) for row in self.samples_ms)

    def speedup(self, model: int, reference: int = 0) -> Speedup:
        """Return how many times as fast as the model at position `reference` the one at position `model` runs."""
        return compare(self.samples_ms[reference], self.samples_ms[model], seed=self.seed)


def compare_latency(
    original: Model,
    pruned: Model,
    feeds: Feeds,
    options: RuntimeOptions,
    *,
    settings: BenchSettings | None = None,
    seed: int = 0,
) -> LatencyComparison:
    """Time two models against each other; see `measure_latency`."""
    measured = measure_latency([original, pruned], feeds, options, settings=settings, seed=seed)
    first, second = measured.latencies
    return LatencyComparison(first, second, measured.speedup(1))


def measure_latency(
    models: Sequence[Model],
    feeds: Feeds,
    options: RuntimeOptions,
    *,
    settings: BenchSettings | None = None,
    seed: int = 0,
) -> Measurement:
    """Time models on the same inputs; all of them are loaded, and they take turns in random order.

    Parameters
    ----------
    models
        The models, or the paths of their files.
    feeds
        One batch for each input, by name.
    options
        Provider, threads and optimisation.
    settings
        How long to measure.
    seed
        Seed of the random turns and of the bootstrap.

    Raises
    ------
    DataError
        If the feeds do not fit the inputs of a model.
    ModelError
        If ONNX Runtime does not accept or cannot run a model.
    UsageError
        If there is no model, or the provider is not available or does not start.
    """
    if not models:
        raise UsageError("A benchmark needs at least one model; name one.")
    sessions = [start_session(model, options) for model in models]
    for position, (model, session) in enumerate(zip(models, sessions, strict=True), start=1):
        check_feeds(session, feeds, str(model) if isinstance(model, Path) else f"model {position}")
    runners = [session.bind(feeds) for session in sessions]
    samples_ms = interleave(runners, settings or BenchSettings(), np.random.default_rng(seed))
    return Measurement(samples_ms, seed)


def interleave(
    runners: Sequence[Callable[[], None]],
    settings: BenchSettings,
    generator: np.random.Generator,
    clock: Callable[[], float] = time.perf_counter,
) -> Samples:
    """Return the milliseconds of each call, of shape (runners, rounds); each round calls all in a new random order.

    Parameters
    ----------
    runners
        What to time.
    settings
        How long.
    generator
        Draws the orders.
    clock
        Returns seconds.
    """
    start = clock()

    def play(least_runs: int, least_seconds: float, most_runs: int, deadline: float) -> list[list[float]]:
        """Time rounds until every runner has had enough, and at least one."""
        rounds: list[list[float]] = []
        spent = [0.0] * len(runners)
        while len(rounds) < most_runs and (len(rounds) < least_runs or min(spent) < least_seconds):
            durations = [0.0] * len(runners)
            for index in generator.permutation(len(runners)).tolist():
                runner = runners[index]
                begin = clock()
                runner()
                durations[index] = clock() - begin
                spent[index] += durations[index]
            rounds.append(durations)
            if clock() >= deadline:
                break
        return rounds

    warmup_deadline = start + settings.maximum_seconds * _WARMUP_SHARE
    play(settings.warmup_runs, settings.warmup_seconds, settings.maximum_runs, warmup_deadline)
    rounds = play(
        settings.minimum_runs, settings.minimum_seconds, settings.maximum_runs, start + settings.maximum_seconds
    )
    return np.asarray(rounds, np.float64).T * 1e3
