"""Running independent tasks: cached results first, then this machine's cores or a Dask cluster."""

import logging
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from oamip_onnx.errors import UsageError
from oamip_onnx.progress import Progress, Step
from oamip_onnx.tasks.cache import Cache, task_key
from oamip_onnx.tasks.call import Outcome, TaskFunction, name_of
from oamip_onnx.tasks.cluster import Scheduler, run_on_cluster
from oamip_onnx.tasks.data import TaskData
from oamip_onnx.tasks.pool import run_in_processes

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskOptions:
    """Where tasks run and what is kept of them.

    Attributes
    ----------
    workers
        Processes on this machine; 0: one per core, 1: none but this one. A cluster has its own.
    scheduler
        Address of a Dask scheduler such as ``tcp://host:8786``, or a client, which stays open; None: this machine.
    cache
        Folder where results are kept; None: nowhere. `default_cache` returns the user's.
    retries
        How often tasks are started again after a worker process was killed.
    """

    workers: int = 0
    scheduler: Scheduler | None = None
    cache: Path | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        if self.workers < 0 or self.retries < 0:
            name, value = ("workers", self.workers) if self.workers < 0 else ("retries", self.retries)
            raise UsageError(f"The number of {name} is {value}; give 0 or more.")
        if self.scheduler == "":
            raise UsageError("The address of the Dask scheduler is empty; give one such as tcp://host:8786.")


def run_tasks(
    function: TaskFunction,
    inputs: Sequence[TaskData],
    options: TaskOptions | None = None,
    progress: Progress | None = None,
    stage: str = "tasks",
) -> list[TaskData]:
    """Run a function on every input; the results are the same bits wherever the tasks run.

    (On a cluster, as long as its machines have processors of the same kind.) Linear algebra has one thread in a task.
    Every result is kept in the cache as soon as it is there, so that a run which was interrupted goes on where it was.

    Parameters
    ----------
    function
        A function at the top level of a module that workers can import.
    inputs
        One for each task.
    options
        Where to run them.
    progress
        Called with `stage` and how many tasks are done, cached ones included.
    stage
        What the tasks are called in the progress and the log.

    Returns
    -------
    list of TaskData
        The results in the order of the inputs.

    Raises
    ------
    Exception
        What a task raised, unchanged; of several, the first in the order of the inputs.
    MissingExtraError
        If a scheduler is given and Dask's package `distributed` is not installed.
    UsageError
        If the Dask client is closed or asynchronous.
    WorkerError
        If workers are killed again and again, or the scheduler does not answer.
    """
    options = options or TaskOptions()
    name = name_of(function)
    cache = None if options.cache is None else Cache(options.cache)
    keys = [] if cache is None else [task_key(name, data) for data in inputs]
    results: dict[int, TaskData] = {}
    if cache is not None:
        results = {number: kept for number, key in enumerate(keys) if (kept := cache.get(key)) is not None}
        _LOG.info("%s: %d of %d are in the cache.", stage, len(results), len(inputs))
    if results and progress is not None:
        progress(Step(stage, len(results), len(inputs)))
    waiting = {number: data for number, data in enumerate(inputs) if number not in results}
    with closing(_outcomes(function, waiting, options)) as outcomes:
        for number, result in _results(outcomes, waiting):
            results[number] = result
            if cache is not None:
                cache.put(keys[number], result)
            if progress is not None:
                progress(Step(stage, len(results), len(inputs)))
    return [results[number] for number in range(len(inputs))]


def _outcomes(
    function: TaskFunction, tasks: Mapping[int, TaskData], options: TaskOptions
) -> Generator[tuple[int, Outcome], None, None]:
    if not tasks:
        return
    if options.scheduler is None:
        yield from run_in_processes(function, tasks, options.workers, options.retries)
    else:
        yield from run_on_cluster(name_of(function), tasks, options.scheduler, options.retries)


def _results(outcomes: Iterator[tuple[int, Outcome]], tasks: Mapping[int, TaskData]) -> Iterator[tuple[int, TaskData]]:
    """Yield results; raise the first error in the order of the tasks, as soon as all before it have finished."""
    unfinished = set(tasks)
    errors: dict[int, Exception] = {}
    for number, outcome in outcomes:
        unfinished.discard(number)
        if outcome.error is not None:
            errors[number] = outcome.error
        elif outcome.result is not None:
            yield number, outcome.result
        if errors and min(errors) < min(unfinished, default=math.inf):
            break
    if errors:
        raise errors[min(errors)]
