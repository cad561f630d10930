"""What epochs came to, and which of them is the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes
    ----------
    number
        From 1; 0 is the state before the training.
    training_loss
        Mean loss of its steps; None before the training, not finite where it diverged.
    loss, metric
        Of the held-out samples after it.
    seconds
        Its wall-clock time, evaluation included.
    """

    number: int
    training_loss: float | None
    loss: float
    metric: float
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether loss and metric are."""
        return math.isfinite(self.loss) and math.isfinite(self.metric)


@dataclass
class Outcome:
    """How a training went.

    Attributes
    ----------
    epochs
        What each epoch came to; the first is the state before the training.
    best
        Number of the epoch whose weights were kept.
    stopped
        ``finished``, ``patience`` or ``diverged``.
    resumed
        The epoch after which a checkpoint was taken up; None without one.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    stopped: str = ""
    resumed: int | None = None


def is_better(epochs: Sequence[Epoch], best: int, samples: int) -> bool:
    """Return whether the last epoch is to be kept in place of the best one so far.

    A metric of few samples is coarse: among epochs that it cannot tell apart, within one standard error of the largest,
    the loss decides. An epoch of a lower metric than the model as it came is never kept.

    Parameters
    ----------
    epochs
        What all epochs came to.
    best
        The best one so far.
    samples
        How many samples loss and metric are of.
    """
    first, kept, last = epochs[0], epochs[best], epochs[-1]
    if not last.is_finite:
        return False
    if not kept.is_finite:
        return True
    largest = max(epoch.metric for epoch in epochs if epoch.is_finite)
    error = math.sqrt(max(largest * (1 - largest), 0.0) / samples)
    if last.metric < first.metric or last.metric < largest - error:
        return False
    return last.loss < kept.loss or last.metric > kept.metric + error
