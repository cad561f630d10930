"""Percentiles of run times, and a speed-up with an interval that a noisy machine does not make too narrow."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from oamip_onnx.errors import UsageError

CONFIDENCE = 0.95

# Below this many pairs not even the range of all ratios holds the true median with 95 % probability: 1 - 2 / 2^n.
_FEWEST_PAIRS = 6
# Two sessions of one and the same model differ by up to this, lastingly: where a session's memory happens to lie makes
# one load faster than another, and more runs do not average it away. Measured on networks of 0.05 to 3 ms.
PLACEMENT_SHIFT = 0.01
_RESAMPLES = 1000
# Once runs abound, the blocks grow with their number: noise that lasts long then still falls into a single block.
_MOST_BLOCKS = 32
# Resampled pairs held in memory at once.
_CHUNK_ELEMENTS = 2_000_000

_NOTHING_MEASURED = "No run was measured; raise the number of runs or the seconds of the benchmark."

Samples = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Latency:
    """Percentiles of the time that one run of a model takes.

    Attributes
    ----------
    p50_ms, p90_ms, p99_ms
        The median and the two upper percentiles.
    runs
        The number of measured runs.
    percentiles_ms
        The 0th, 1st, … 100th percentile, 101 in all: enough to draw the distribution.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int
    percentiles_ms: tuple[float, ...]


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as the reference a model runs.

    Attributes
    ----------
    median
        The median, over pairs of neighbouring runs, of the reference's time divided by the model's.
    low, high
        The bootstrap interval that holds the true median with 95 % confidence, widened by the 1 % by which two loads
        of the same model may differ.
    significant
        Whether the interval lies on one side of 1.
    """

    median: float
    low: float
    high: float
    significant: bool

    def describe(self) -> str:
        """Return half a sentence for a reader."""
        # A change of a few percent needs a third decimal to differ from none.
        digits = 2 if abs(self.median - 1) >= 0.05 else 3
        interval = f"95 % interval {self.low:.{digits}f} to {self.high:.{digits}f}"
        if not self.significant:
            return f"no significant change ({interval})"
        if self.median > 1:
            return f"{self.median:.{digits}f} times as fast ({interval})"
        return f"slower: {self.median:.{digits}f} times as fast ({interval})"


@dataclass(frozen=True)
class SlowDown:
    """How many times as long a model takes as it once did: the ratio of two medians that were measured apart.

    Attributes
    ----------
    ratio
        The median now divided by the median then.
    low, high
        The interval that holds the true ratio with 95 % confidence, widened as that of `Speedup`.
    """

    ratio: float
    low: float
    high: float

    def exceeds(self, limit: float) -> bool:
        """Return whether it is certainly slower by more than the share `limit`: the whole interval lies above it."""
        return self.low > 1 + limit


def summarise(samples_ms: Samples) -> Latency:
    """Return the percentiles of the run times.

    Raises
    ------
    UsageError
        If there are none.
    """
    if len(samples_ms) == 0:
        raise UsageError(_NOTHING_MEASURED)
    percentiles = tuple(float(p) for p in np.percentile(samples_ms, np.arange(101)))
    return Latency(percentiles[50], percentiles[90], percentiles[99], len(samples_ms), percentiles)


def median_interval(samples: Samples, *, seed: int = 0) -> tuple[float, float]:
    """Return the interval that holds the true median with 95 % confidence, in the unit of the samples.

    Parameters
    ----------
    samples
        Run times, or ratios of run times, in the order in which they were measured.
    seed
        Seed of the bootstrap.

    Raises
    ------
    UsageError
        If there are none.
    """
    if len(samples) == 0:
        raise UsageError(_NOTHING_MEASURED)
    if len(samples) < _FEWEST_PAIRS:
        return float(samples.min()), float(samples.max())
    low, high = _median_interval(samples, np.random.default_rng(seed))
    # Percentiles of resamples of a series with a trend may pass by its median.
    median = float(np.median(samples))
    return min(low, median), max(high, median)


def slow_down(
    before: float,
    before_interval: tuple[float, float],
    now: float,
    now_interval: tuple[float, float],
    *,
    uncertainty: float = PLACEMENT_SHIFT,
) -> SlowDown:
    """Return the ratio of two medians that were measured apart, from each median and its own interval.

    The interval of the ratio comes from the two intervals on the logarithmic scale, where the ratio is a difference,
    by the method of variance estimates recovery (Donner & Zou 2012). A machine that was slower in one of the two
    measurements is not in these intervals: `slow_down_in_yardsticks` takes it out.

    Parameters
    ----------
    before, before_interval
        The median then, and its 95 % interval, in any unit.
    now, now_interval
        The same now.
    uncertainty
        The share by which the ratio may differ from the true one beside the intervals; by default what the place of a
        model in memory makes.

    Raises
    ------
    UsageError
        If a median is not positive or outside its interval.
    """
    for median, (low, high) in ((before, before_interval), (now, now_interval)):
        if not 0 < low <= median <= high:
            raise UsageError(f"The median {median} is not inside its interval, {low} to {high}; measure again.")
    then, then_low, then_high = np.log((before, *before_interval))
    later, later_low, later_high = np.log((now, *now_interval))
    margin = math.log1p(uncertainty)
    low = later - then - math.hypot(later - later_low, then_high - then) - margin
    high = later - then + math.hypot(later_high - later, then - then_low) + margin
    return SlowDown(now / before, math.exp(low), math.exp(high))


def compare(original_ms: Samples, pruned_ms: Samples, *, seed: int = 0) -> Speedup:
    """Return the speed-up from paired run times: element i of both was measured in the same round.

    The ratio is taken inside each pair, so that a machine that slows down for both models cancels out. The interval was
    validated with sessions of one thread (`benchmarks/significance.py`): those of several threads can differ by more
    on a busy machine.

    Parameters
    ----------
    original_ms, pruned_ms
        The run times in the order in which they were measured.
    seed
        Seed of the bootstrap.

    Raises
    ------
    UsageError
        If the two lengths differ, or are zero.
    """
    if len(original_ms) != len(pruned_ms) or len(original_ms) == 0:
        raise UsageError(
            f"The speed-up needs equally many run times of both models, at least one; "
            f"got {len(original_ms)} and {len(pruned_ms)}."
        )
    ratios = original_ms / pruned_ms
    median = float(np.median(ratios))
    if len(ratios) < _FEWEST_PAIRS:
        return Speedup(median, float(ratios.min()), float(ratios.max()), significant=False)
    low, high = _median_interval(ratios, np.random.default_rng(seed))
    low, high = low / (1 + PLACEMENT_SHIFT), high * (1 + PLACEMENT_SHIFT)
    return Speedup(median, low, high, significant=not low <= 1.0 <= high)


def _median_interval(values: Samples, generator: np.random.Generator) -> tuple[float, float]:
    """Return the interval of the median of a series whose neighbours may resemble each other.

    A circular block bootstrap draws runs of consecutive values, so that each resample keeps their resemblance. A few
    blocks vary less than the truth does; therefore the percentiles are moved outwards, as Student's distribution is
    wider than the normal one (Hesterberg 2015, the expanded percentile interval).
    """
    count = len(values)
    length = max(round(math.sqrt(count)), math.ceil(count / _MOST_BLOCKS))
    blocks = math.ceil(count / length)
    circle = np.concatenate((values, values[:length]))
    medians = np.empty(_RESAMPLES)
    step = max(1, _CHUNK_ELEMENTS // (blocks * length))
    for start in range(0, _RESAMPLES, step):
        drawn = min(step, _RESAMPLES - start)
        rows = generator.integers(0, count, (drawn, blocks, 1)) + np.arange(length)
        resampled = circle[rows.reshape(drawn, -1)[:, :count]]
        medians[start : start + drawn] = np.median(resampled, axis=1)
    freedom = count / length - 1
    quantile = special.stdtrit(freedom, (1 - CONFIDENCE) / 2) * math.sqrt((freedom + 1) / freedom)
    tail = float(special.ndtr(quantile))
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)
