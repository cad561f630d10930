"""Times models against each other: alive together, in random turns, until the medians can be trusted."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oamip_onnx.bench.sessions import Feeds, Model, check_feeds, start_session
from oamip_onnx.bench.statistics import Latency, Samples, Speedup, compare, summarise
from oamip_onnx.bench.yardstick import YardstickRatio, in_yardsticks, yardstick_feeds, yardstick_model
from oamip_onnx.errors import ModelError, UsageError
from oamip_onnx.runtime import RuntimeOptions

# Of the time that the fuse allows, the share that warming up may take: slow models still get measured.
_WARMUP_SHARE = 0.25
# Of the time that the models take, the share that the yardstick may add, where it runs often enough all the same.
_YARDSTICK_SHARE = 0.1

Runner = Callable[[], None]
Clock = Callable[[], float]


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
        if self.cold_processes < 0:
            raise UsageError(
                f"The cold start cannot have {self.cold_processes} processes; give 0 to leave it out, or more."
            )
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
    yardstick_ms
        Run times of the yardstick of shape (rounds,), NaN in rounds in which it did not run; None where it was left out
        or the provider cannot run it.
    """

    samples_ms: npt.NDArray[np.float64]
    seed: int
    yardstick_ms: npt.NDArray[np.float64] | None = None

    @cached_property
    def latencies(self) -> tuple[Latency, ...]:
        """The percentiles of each model, in the order of the models."""
        return tuple(summarise(row) for row in self.samples_ms)

    def speedup(self, model: int, reference: int = 0) -> Speedup:
        """Return how many times as fast as the model at position `reference` the one at position `model` runs."""
        key = model, reference
        if key not in self._speedups:
            self._speedups[key] = compare(self.samples_ms[reference], self.samples_ms[model], seed=self.seed)
        return self._speedups[key]

    @cached_property
    def _speedups(self) -> dict[tuple[int, int], Speedup]:
        """The speed-ups asked for so far: a bootstrap takes long, and tables and notes ask for the same."""
        return {}

    def in_yardsticks(self, model: int) -> YardstickRatio | None:
        """Return the time of the model at a position in times of the yardstick; None where that did not run."""
        if self.yardstick_ms is None:
            return None
        return in_yardsticks(self.samples_ms[model], self.yardstick_ms, seed=self.seed)


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
    return _compared(measure_latency([original, pruned], feeds, options, settings=settings, seed=seed))


def compare_runners(
    original: Runner, other: Runner, *, settings: BenchSettings | None = None, seed: int = 0
) -> LatencyComparison:
    """Time two calls against each other, as `compare_latency` does two models: of different runtimes, for example."""
    generator = np.random.default_rng(seed)
    return _compared(Measurement(interleave([original, other], settings or BenchSettings(), generator), seed))


def _compared(measured: Measurement) -> LatencyComparison:
    first, second = measured.latencies
    return LatencyComparison(first, second, measured.speedup(1))


def measure_latency(
    models: Sequence[Model],
    feeds: Feeds,
    options: RuntimeOptions,
    *,
    settings: BenchSettings | None = None,
    seed: int = 0,
    yardstick: bool = False,
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
    yardstick
        Whether to time the yardstick in the same turns, on the same provider and threads.

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
    beat = _yardstick(options) if yardstick else None
    samples_ms, yardstick_ms = take_turns(
        runners, settings or BenchSettings(), np.random.default_rng(seed), yardstick=beat
    )
    return Measurement(samples_ms, seed, None if beat is None else yardstick_ms)


def _yardstick(options: RuntimeOptions) -> Runner | None:
    """Return a call that runs the yardstick, or None where the provider takes no such network."""
    try:
        return start_session(yardstick_model(), options).bind(yardstick_feeds())
    except ModelError:
        return None  # some providers take quantised models only


def interleave(
    runners: Sequence[Runner], settings: BenchSettings, generator: np.random.Generator, clock: Clock = time.perf_counter
) -> Samples:
    """Return the milliseconds of each call, of shape (runners, rounds); see `take_turns`."""
    return take_turns(runners, settings, generator, clock)[0]


def take_turns(
    runners: Sequence[Runner],
    settings: BenchSettings,
    generator: np.random.Generator,
    clock: Clock = time.perf_counter,
    *,
    yardstick: Runner | None = None,
) -> tuple[Samples, Samples]:
    """Return the milliseconds of each call, and of the yardstick; each round calls all runners in a new random order.

    The shapes are (runners, rounds) and (rounds,). The yardstick runs in every k-th round, the more seldom the faster
    the models are, and is NaN in the others. It opens the round: whatever k is, the same runs then follow it, and find
    the caches as it left them.

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
    yardstick
        What to time beside them.
    """
    start = clock()
    turns = _Turns(runners, yardstick, generator, clock)
    warmup = turns.play(
        settings.warmup_runs,
        settings.warmup_seconds,
        settings.maximum_runs,
        start + settings.maximum_seconds * _WARMUP_SHARE,
        lambda number: number < settings.warmup_runs,
    )
    every = 1 if yardstick is None else _every(np.nanmedian(warmup, axis=0).tolist(), settings)
    rounds = turns.play(
        settings.minimum_runs,
        settings.minimum_seconds,
        settings.maximum_runs,
        start + settings.maximum_seconds,
        lambda number: number % every == 0,
    )
    samples_ms = np.asarray(rounds, np.float64).T * 1e3
    return samples_ms[1:], samples_ms[0]


@dataclass(frozen=True)
class _Turns:
    """Runners, and the yardstick where there is one, that take turns."""

    runners: Sequence[Runner]
    yardstick: Runner | None
    generator: np.random.Generator
    clock: Clock

    def play(
        self,
        least_runs: int,
        least_seconds: float,
        most_runs: int,
        deadline: float,
        with_yardstick: Callable[[int], bool],
    ) -> list[list[float]]:
        """Time rounds until every runner has had enough, and at least one; the yardstick comes first in each."""
        rounds: list[list[float]] = []
        spent = [0.0] * len(self.runners)
        while len(rounds) < most_runs and (len(rounds) < least_runs or min(spent) < least_seconds):
            durations = [math.nan, *[0.0] * len(self.runners)]
            if self.yardstick is not None and with_yardstick(len(rounds)):
                durations[0] = self._seconds(self.yardstick)
            for index in self.generator.permutation(len(self.runners)).tolist():
                durations[index + 1] = self._seconds(self.runners[index])
                spent[index] += durations[index + 1]
            rounds.append(durations)
            if self.clock() >= deadline:
                break
        return rounds

    def _seconds(self, runner: Runner) -> float:
        begin = self.clock()
        runner()
        return self.clock() - begin


def _every(medians: Sequence[float], settings: BenchSettings) -> int:
    """Return the k of every k-th round, in which the yardstick runs so that it costs little.

    It runs at least as often as a model has to, whatever it costs.

    Parameters
    ----------
    medians
        Seconds of the yardstick, and of each model.
    settings
        How long the measurement will be.
    """
    beat, *models = (max(median, 1e-9) for median in medians)
    rounds = min(max(settings.minimum_seconds / min(models), settings.minimum_runs), settings.maximum_runs)
    return max(1, min(math.ceil(beat / (_YARDSTICK_SHARE * sum(models))), int(rounds) // settings.minimum_runs))
