"""How far a run is: what a stage tells whoever watches."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One step of a stage.

    Attributes
    ----------
    task
        What is being done, such as ``response round 2``.
    done, total
        How much of it: counts where `total` is above 1, otherwise a share.
    incumbent, gap
        Of a search: the best value found, and its relative gap to the proven bound; None elsewhere.
    stage
        The stage that the task belongs to; its own name at the stage's beginning and end.
    stage_number, stage_count
        The stage's number, from 1, and how many there are; 0 where nobody counts them.
    """

    task: str
    done: float
    total: float = 1.0
    incumbent: float | None = None
    gap: float | None = None
    stage: str = ""
    stage_number: int = 0
    stage_count: int = 0

    @property
    def share(self) -> float:
        """The share that is done, from 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else 1.0


Progress = Callable[[Step], None]
"""Called with each step, from the thread that runs the job; it should return soon."""


def silent(_step: Step) -> None:
    """Report progress to nobody."""


class StageClock:
    """Seconds by stage, and progress to whoever listens.

    Parameters
    ----------
    progress
        Who listens, if anybody.
    stages
        The stages of the run, in order.
    """

    def __init__(self, progress: Progress | None, stages: Sequence[str]) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress or silent
        self._stages = stages

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Time a stage; its steps go through the callback that this yields."""
        number, count = self._stages.index(name) + 1, len(self._stages)

        def tell(step: Step) -> None:
            self._progress(replace(step, stage=name, stage_number=number, stage_count=count))

        tell(Step(name, 0.0))
        began = time.perf_counter()
        yield tell
        self.seconds[name] = round(time.perf_counter() - began, 3)
        _LOG.info("%s took %.1f s", name, self.seconds[name])
        tell(Step(name, 1.0))
