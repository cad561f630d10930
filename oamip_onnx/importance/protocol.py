"""What every importance criterion reads, and the table of criteria by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from oamip_onnx.calibration import ActivationStream, Samples
from oamip_onnx.channels import ChannelAnalysis
from oamip_onnx.errors import UsageError, closest
from oamip_onnx.importance.scores import Scores
from oamip_onnx.model import Array, Model
from oamip_onnx.runtime import RuntimeOptions

Progress = Callable[[str, float], None]
"""Called with the stage and the share of it that is done."""


def silent(_stage: str, _share: float) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class ImportanceContext:
    """What a criterion works on.

    Attributes
    ----------
    model, analysis
        The original and its channels.
    samples
        Calibration samples; labels are optional everywhere.
    options
        Provider and threads.
    widths
        Units of each group that are planned to stay.
    seed
        Seed of every draw.
    logits
        Name of the tensor that the loss is taken of (`find_logits`).
    progress
        Called with the stage and the share of it that is done.
    form
        For ``oamip``: ``auto``, ``response``, ``shift`` or ``layerwise``.
    images
        Samples that enter the program of the response form and the layer-wise form.
    """

    model: Model
    analysis: ChannelAnalysis
    samples: Samples
    options: RuntimeOptions
    widths: tuple[int, ...]
    seed: int
    logits: str
    progress: Progress | None = field(default=None, repr=False)
    form: str = "auto"
    images: int = 200

    @cached_property
    def outputs(self) -> Array:
        """The original's values of `logits` on all samples, stacked along the sample axis."""
        stream = ActivationStream(self.model.proto, [self.logits], self.options)
        return np.concatenate([batch[self.logits] for batch in stream.batches(self.samples)])

    def report(self, stage: str, share: float) -> None:
        """Pass progress on to whoever listens."""
        (self.progress or silent)(stage, share)


class Criterion(Protocol):
    """Anything that ranks the units of a model."""

    def __call__(self, context: ImportanceContext) -> Scores:
        """Return one score per unit."""
        ...


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Return a decorator that puts a criterion into the table."""

    def register(function: Criterion) -> Criterion:
        CRITERIA[name] = function
        return function

    return register


def score(name: str, context: ImportanceContext) -> Scores:
    """Return the scores of a criterion.

    Raises
    ------
    UsageError
        If there is no such criterion.
    """
    if name not in CRITERIA:
        raise UsageError(
            f"There is no importance {name!r}{closest(name, CRITERIA)}; known: {', '.join(sorted(CRITERIA))}."
        )
    return CRITERIA[name](context)
