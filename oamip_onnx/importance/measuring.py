"""Measuring what the masked model answers when units go or come back."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import BATCH_SIZE, Samples
from oamip_onnx.channels import BoolArray
from oamip_onnx.errors import SolverError
from oamip_onnx.importance.logits import Loss, balanced_rows, loss_of
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.masking import MaskedSuffixes
from oamip_onnx.model import Array

# Images of a program.
IMAGES = 200

# Responses beyond this number need more memory and time than CLARABEL is worth.
_LARGEST_PROGRAM = 20_000_000


class Responses:
    """The masked model on the samples of the program."""

    def __init__(self, context: ImportanceContext, samples: Samples) -> None:
        self._masked = MaskedSuffixes(context.model, context.analysis, context.options, context.logits)
        self._samples = samples
        self._group_of_unit = context.analysis.group_of_unit()
        every = np.ones(context.analysis.unit_count, dtype=np.bool_)
        original = self._outputs(every)
        self.loss: Loss = loss_of(original.shape, original)

    def __call__(self, alive: BoolArray) -> FloatArray:
        """Return the logits or pooled outputs with some units removed, shape (samples, numbers)."""
        return self.loss.read(self._outputs(alive))

    def around(self, alive: BoolArray, units: npt.NDArray[np.intp]) -> Iterator[FloatArray]:
        """Yield for each unit the outputs with that unit on the other side, removed or back, as `__call__` does."""
        prefixes: list[dict[str, Array]] = []
        last = -1
        for unit in units:
            group = int(self._group_of_unit[unit])
            if group != last:
                # One group's at a time: those of all layers together may be gigabytes.
                batches = self._samples.batches(2 * BATCH_SIZE)
                prefixes, last = [self._masked.prefix(group, feeds, alive) for feeds in batches], group
            other = alive.copy()
            other[unit] = not alive[unit]
            yield self.loss.read(_joined([self._masked.run(group, prefix, other) for prefix in prefixes]))

    def _outputs(self, alive: BoolArray) -> Array:
        return _joined([self._masked.whole(feeds, alive) for feeds in self._samples.batches(2 * BATCH_SIZE)])


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class Measured:
    """What a program of the response form is made of.

    Attributes
    ----------
    units
        The units that it scores, shape (scored,).
    base, changes
        q⁰, shape (samples, classes), and Δ, shape (scored, samples · classes).
    gone
        Which of the units are removed already, shape (scored,).
    owner
        Group of each, shape (scored,).
    """

    units: npt.NDArray[np.intp]
    base: FloatArray
    changes: FloatArray
    gone: BoolArray
    owner: npt.NDArray[np.int64]


def measure(
    context: ImportanceContext, responses: Responses, alive: BoolArray, units: npt.NDArray[np.intp], task: str
) -> Measured:
    """Measure around a subset what removing a unit changes, or bringing it back where it is gone.

    Parameters
    ----------
    context, responses
        The model, and its masked form on the samples of the program.
    alive
        The subset, shape (units of the model,).
    units
        The units to measure.
    task
        Name for the progress.
    """
    base = responses(alive)
    changes = np.empty((len(units), base.size))
    for position, values in enumerate(responses.around(alive, units)):
        changes[position] = (values - base).ravel()
        context.report(task, position + 1, len(units))
    return Measured(units, base, changes, ~alive[units], context.analysis.group_of_unit()[units])


def select_samples(context: ImportanceContext, count: int) -> Samples:
    """Return the samples of a program, balanced by the class that the original predicts."""
    samples = context.samples
    step = samples.run_size or 1
    count = -(-count // step) * step  # whole runs
    if count >= samples.count:
        return samples
    values = context.outputs
    # A model that runs each sample alone may have its own number of rows at the output.
    by_class = values.ndim == 2 and len(values) == samples.count
    classes = values.argmax(axis=1) if by_class else np.zeros(samples.count, dtype=np.int64)
    return samples.take(balanced_rows(classes.astype(np.int64), count, context.seed))


def check_size(context: ImportanceContext, responses: Responses) -> None:
    """Raise if the program of the first round would be too large.

    Raises
    ------
    SolverError
        Above `_LARGEST_PROGRAM` responses.
    """
    coefficients = context.analysis.unit_count * responses.loss.targets.size
    if coefficients > _LARGEST_PROGRAM:
        raise SolverError(
            f"The response form needs {coefficients:,} responses of {context.analysis.unit_count:,} units, "
            f"more than the solver takes ({_LARGEST_PROGRAM:,}); use --set images= with fewer, or --set form=layerwise."
        )
