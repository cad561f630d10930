"""Samples in memory: what a model is calibrated, verified and measured on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oamip_onnx.model import Array

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Inputs of a model, one row a sample, with labels where there are any.

    Attributes
    ----------
    feeds
        One array per graph input, all with the same first dimension, the sample axis.
    by_run
        Whether each sample is a run of its own, whose feeds lack the sample axis: models with states or settings beside
        the data, such as recurrent ones that keep their batch on another axis.
    labels
        Class index of each sample, shape (samples,), or None.
    run_size
        Rows per run where the model fixes its batch dimension, else None.
    is_random
        Whether the values were drawn at random for want of data.
    notes
        Sentences on what was done to the values on the way in.
    """

    feeds: Mapping[str, Array]
    labels: IntArray | None = None
    run_size: int | None = None
    is_random: bool = False
    notes: tuple[str, ...] = ()
    by_run: bool = False

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(next(iter(self.feeds.values())).shape[0])

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield feeds of at most `size` rows, in order; of exactly `run_size` rows, or run by run, where need be."""
        if self.by_run:
            for row in range(self.count):
                yield {name: values[row, ...] for name, values in self.feeds.items()}
            return
        step = self.run_size or max(1, size)
        for start in range(0, self.count, step):
            yield {name: values[start : start + step] for name, values in self.feeds.items()}

    def one_run(self) -> dict[str, Array]:
        """Return the feeds of the smallest run from the front: one sample, or as many as the model fixes."""
        return next(self.take(slice(0, self.run_size or 1)).batches(1))

    def take(self, rows: Sequence[int] | IntArray | slice) -> "Samples":
        """Return the chosen samples."""
        index = np.arange(self.count)[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        if self.run_size:
            index = index[: len(index) // self.run_size * self.run_size]
        feeds = {name: values[index] for name, values in self.feeds.items()}
        labels = None if self.labels is None else self.labels[index]
        return Samples(feeds, labels, self.run_size, self.is_random, self.notes, self.by_run)

    def split(self, share: float) -> tuple["Samples", "Samples"]:
        """Return the first samples and the held-out last ones; `share` is the held-out part, at least one run."""
        step = self.run_size or 1
        held_out = min(max(step, round(self.count * share) // step * step), self.count - step)
        if held_out <= 0:
            return self, self
        return self.take(slice(0, self.count - held_out)), self.take(slice(self.count - held_out, self.count))
