"""Batches for training: samples, labels, and what the original says about them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from oamip_onnx.calibration import BATCH_SIZE, Samples
from oamip_onnx.errors import DataError, ModelError
from oamip_onnx.model import Array, with_outputs
from oamip_onnx.progress import Progress, Step
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.training.interpreter import Network
from oamip_onnx.training.operators.table import Tensor

Rows = npt.NDArray[np.int64]


def split_rows(count: int, share: float, seed: int, step: int) -> tuple[Rows, Rows]:
    """Return the rows to train on, and those that are held out, both drawn by the seed and in ascending order.

    Parameters
    ----------
    count
        How many samples there are.
    share
        The share that is held out; at least one run.
    seed
        Seed of the draw.
    step
        Samples a run; the rows held out are a multiple of it.

    Raises
    ------
    DataError
        If nothing would be left to train on.
    """
    held_out = max(step, round(count * share) // step * step)
    if count - held_out < step:
        raise DataError(
            f"Fine-tuning trains on one part of the samples and judges on another; {count} are too few, "
            f"give at least {2 * step}."
        )
    order = np.random.default_rng([seed, 0]).permutation(count).astype(np.int64)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


class Teacher:
    """What the original computes for each sample, through ONNX Runtime: kept where it fits, else run batch by batch.

    Parameters
    ----------
    proto
        The original.
    names
        Tensors to record; inner ones included.
    samples
        The samples.
    options
        Provider and threads.
    memory_limit
        Bytes that may be kept.
    progress
        Told how many samples are done.

    Raises
    ------
    ModelError
        If the original does not run on the samples, or a tensor has no row for each.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        names: Sequence[str],
        samples: Samples,
        options: RuntimeOptions,
        memory_limit: int,
        progress: Progress,
    ) -> None:
        self._session = Session(with_outputs(proto, list(names)), options)
        self._names, self._samples = list(names), samples
        self._kept: dict[str, Array] | None = None
        size = samples.run_size or min(BATCH_SIZE, samples.count)
        first = self._run(np.arange(size))
        if sum(values.nbytes for values in first.values()) / size * samples.count > memory_limit:
            return
        kept = {name: np.empty((samples.count, *values.shape[1:]), np.float32) for name, values in first.items()}
        for start in range(0, samples.count, size):
            rows = np.arange(start, min(start + size, samples.count))
            for name, values in self._run(rows).items():
                kept[name][rows] = values
            progress(Step("outputs of the original", float(start + len(rows)), float(samples.count)))
        self._kept = kept

    def __call__(self, rows: Rows) -> dict[str, Array]:
        """Return the recorded tensors of some samples, float32, one row each."""
        return self._run(rows) if self._kept is None else {name: kept[rows] for name, kept in self._kept.items()}

    def _run(self, rows: Rows) -> dict[str, Array]:
        found = self._session.run({name: values[rows] for name, values in self._samples.feeds.items()}, self._names)
        for name, values in found.items():
            if values.ndim == 0 or len(values) != len(rows):
                raise ModelError(
                    f"The tensor {name!r} of the original has the shape {values.shape} for {len(rows)} samples, so it "
                    "cannot be compared sample by sample; choose another loss."
                )
        return {name: values.astype(np.float32) for name, values in found.items()}


@dataclass(frozen=True)
class Batch:
    """Samples as tensors where the network runs: inputs, labels, and the original's tensors."""

    feeds: dict[str, Any]
    labels: Any
    wanted: dict[str, Any]
    count: int


@dataclass(frozen=True)
class Data:
    """Samples, labels and the original's outputs, in batches.

    Attributes
    ----------
    samples
        The samples.
    train, held_out
        Rows of the two parts.
    teacher
        What the original says; None without one.
    """

    samples: Samples
    train: Rows
    held_out: Rows
    teacher: Teacher | None

    def epoch(self, seed: int, number: int, batch_size: int) -> list[Rows]:
        """Return the batches of an epoch: in an order of its own, of nearly equal sizes."""
        rows = np.random.default_rng([seed, number]).permutation(self.train)
        step = self.samples.run_size
        if step:
            return [rows[start : start + step] for start in range(0, len(rows) // step * step, step)]
        return list(np.array_split(rows, max(1, round(len(rows) / batch_size))))

    def batches(self, network: Network, rows: Rows, size: int) -> Iterator[Batch]:
        """Yield batches of rows in their order."""
        step = self.samples.run_size or size
        for start in range(0, len(rows), step):
            yield self.batch(network, rows[start : start + step])

    def batch(self, network: Network, rows: Rows) -> Batch:
        """Return some samples as tensors where the network runs."""

        def tensor(values: Array) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(network.device)

        labels, wanted = self.samples.labels, {} if self.teacher is None else self.teacher(rows)
        return Batch(
            network.tensors({name: values[rows] for name, values in self.samples.feeds.items()}),
            None if labels is None else tensor(labels[rows]),
            {name: tensor(values) for name, values in wanted.items()},
            len(rows),
        )
