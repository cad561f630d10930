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
_PLACEMENT_SHIFT = 0.01
_RESAMPLES = 1000
# Once runs abound, the blocks grow with their number: noise that lasts long then still falls into a single block.
_MOST_BLOCKS = 32
# Resampled pairs held in memory at once.
_CHUNK_ELEMENTS = 2_000_000

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
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the pruned model runs.

    Attributes
    ----------
    median
        The median, over pairs of neighbouring runs, of the original's time divided by the pruned model's.
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


def summarise(samples_ms: Samples) -> Latency:
    """Return the percentiles of the run times.

    Raises
    ------
    UsageError
        If there are none.
    """
    if len(samples_ms) == 0:
        raise UsageError("No run was measured; raise the number of runs or the seconds of the benchmark.")
    p50, p90, p99 = (float(p) for p in np.percentile(samples_ms, (50, 90, 99)))
    return Latency(p50, p90, p99, len(samples_ms))


def compare(original_ms: Samples, pruned_ms: Samples, *, seed: int = 0) -> Speedup:
    """Return the speed-up from paired run times: element i of both was measured in the same round.

    The ratio is taken inside each pair, so that a machine that slows down for both models cancels out.

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
    low, high = low / (1 + _PLACEMENT_SHIFT), high * (1 + _PLACEMENT_SHIFT)
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
