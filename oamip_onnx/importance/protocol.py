"""What every importance criterion reads, and the table of criteria by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from oamip_onnx.calibration import ActivationStream, Samples
from oamip_onnx.channels import BoolArray, ChannelAnalysis
from oamip_onnx.errors import UsageError, closest
from oamip_onnx.formulation import Program
from oamip_onnx.importance.moments import MomentStore
from oamip_onnx.importance.scores import Scores
from oamip_onnx.importance.settings import OamipSettings
from oamip_onnx.model import Array, Model
from oamip_onnx.progress import Progress, Step, silent
from oamip_onnx.runtime import RuntimeOptions
from oamip_onnx.solvers import Solution, solve_all
from oamip_onnx.tasks import TaskData, TaskFunction, TaskOptions, run_tasks

Judge = Callable[[BoolArray], float]
"""Returns the loss of what a subset becomes, for choosing between subsets."""

# Tasks with fewer numbers than this together are done sooner than processes start; the results are the same.
_WORTH_A_POOL = 3_000_000


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
        Units of each group that are planned to stay; None where what scores above a threshold stays, so that programs
        carry the paper's sparsity term in place of rows for the widths.
    seed
        Seed of every draw.
    logits
        Name of the tensor that the loss is taken of (`find_logits`).
    progress
        Called with each step.
    oamip
        Settings of OAMIP.
    judge
        Loss towards the original of what becomes of a subset, shape (units,), after the repair that follows; None where
        none follows.
    refits
        Whether that repair refits the weights of the layers behind what goes.
    moments
        Moments of what layers read that are known already.
    """

    model: Model
    analysis: ChannelAnalysis
    samples: Samples
    options: RuntimeOptions
    widths: tuple[int, ...] | None
    seed: int
    logits: str
    progress: Progress | None = field(default=None, repr=False)
    oamip: OamipSettings = field(default_factory=OamipSettings)
    judge: Judge | None = field(default=None, repr=False)
    refits: bool = False
    moments: MomentStore = field(default_factory=MomentStore, repr=False)

    def planned(self, form: str) -> tuple[int, ...]:
        """Return the planned widths for a form that needs them.

        Raises
        ------
        UsageError
            If the target is a threshold.
        """
        if self.widths is None:
            raise UsageError(
                f"The {form} search needs planned widths, and a threshold plans none; give --target ratio=, macs= or "
                "params= for it."
            )
        return self.widths

    @cached_property
    def outputs(self) -> Array:
        """The original's values of `logits` on all samples, stacked along the sample axis."""
        stream = ActivationStream(self.model.proto, [self.logits], self.options)
        return np.concatenate([batch[self.logits] for batch in stream.batches(self.samples)])

    def solve(self, programs: Sequence[Program]) -> list[Solution]:
        """Return the solutions of independent programs, by the engine and the workers that the settings name.

        Raises
        ------
        SolverError, UsageError, WorkerError
            As the engine or the workers do.
        """
        options = replace(self.oamip.solver, seed=self.seed)
        size = sum(program.nonzero_count for program in programs)
        return solve_all(programs, options, self._tasks(size), self._watch, self.progress)

    def run(self, function: TaskFunction, inputs: Sequence[TaskData], stage: str) -> list[TaskData]:
        """Return the results of independent tasks, by the workers that the settings name.

        Raises
        ------
        WorkerError
            As the workers do.
        """
        size = sum(array.size for data in inputs for array in data.arrays.values())
        return run_tasks(function, inputs, self._tasks(size), self.progress, stage)

    def _tasks(self, size: int) -> TaskOptions:
        """Return where tasks of this many numbers together run: here, where processes would not pay."""
        tasks = self.oamip.tasks
        return replace(tasks, workers=1) if size < _WORTH_A_POOL and not tasks.workers else tasks

    def _watch(self, incumbent: float, gap: float, share: float) -> None:
        (self.progress or silent)(Step("search", share, incumbent=incumbent, gap=gap))

    def report(self, task: str, done: float, total: float = 1.0) -> None:
        """Pass progress on to whoever listens."""
        (self.progress or silent)(Step(task, done, total))


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
