"""Tasks in worker processes of this machine."""

import logging
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing

from oamip_onnx import __version__
from oamip_onnx.errors import first_line
from oamip_onnx.tasks.call import Outcome, TaskFunction, call, call_by_name, name_of
from oamip_onnx.tasks.data import TaskData
from oamip_onnx.tasks.errors import WorkerError
from oamip_onnx.tasks.workers import WorkerContext, begin_worker, most_workers, obstacle, usual_workers

_LOG = logging.getLogger(__name__)


def run_here(function: TaskFunction, tasks: Mapping[int, TaskData]) -> Iterator[tuple[int, Outcome]]:
    """Run tasks in this process, one after the other; what one raises ends the run."""
    for number, data in tasks.items():
        yield number, Outcome(call(function, data))


def run_in_processes(
    function: TaskFunction, tasks: Mapping[int, TaskData], workers: int, retries: int
) -> Iterator[tuple[int, Outcome]]:
    """Run tasks in worker processes, or in this one where there is one worker or task, or none can be started.

    Parameters
    ----------
    function
        What to run.
    tasks
        Inputs by number.
    workers
        Largest number of processes; 0: one per core.
    retries
        How often the unfinished tasks are started again after a worker was killed.

    Yields
    ------
    tuple
        A task's number and outcome, as soon as it has finished.

    Raises
    ------
    WorkerError
        If workers are killed again and again.
    """
    workers = min(workers or usual_workers(), len(tasks), most_workers())
    refusal = obstacle() if workers > 1 else ""
    if refusal:
        _LOG.warning("Worker processes cannot be started, because %s; the tasks run in this process.", refusal)
    if workers <= 1 or refusal:
        yield from run_here(function, tasks)
        return
    unfinished = dict(tasks)
    for attempt in range(retries + 1):
        pool = _Pool(name_of(function), min(workers, len(unfinished)))
        with closing(pool.outcomes(unfinished)) as outcomes:
            for number, outcome in outcomes:
                del unfinished[number]
                yield number, outcome
        if not unfinished:
            return
        if pool.refusal:
            _LOG.warning("Worker processes cannot be started (%s); the tasks run in this process.", pool.refusal)
            yield from run_here(function, unfinished)
            return
        if attempt < retries:
            _LOG.warning("A worker process was killed; the %d unfinished tasks are started again.", len(unfinished))
    raise WorkerError(
        f"A worker process was killed {retries + 1} times, with {len(unfinished)} of {len(tasks)} tasks unfinished, "
        f"most likely for want of memory; use fewer workers than {workers}, or a machine with more memory."
    )


class _Pool:
    """One set of worker processes; it ends with the first that is killed."""

    def __init__(self, name: str, workers: int) -> None:
        self._name = name
        self._workers = workers
        self.refusal = ""
        """Why no worker could be started; empty if they could."""

    def outcomes(self, tasks: Mapping[int, TaskData]) -> Generator[tuple[int, Outcome], None, None]:
        """Yield numbers and outcomes until all tasks have finished or a worker was killed."""
        context = WorkerContext()
        try:
            executor = ProcessPoolExecutor(self._workers, mp_context=context, initializer=begin_worker)
        except (OSError, ImportError, NotImplementedError) as error:  # no semaphores on this system
            self.refusal = first_line(error)
            return
        try:
            numbers = self._submit(executor, tasks)
            for future in as_completed(numbers):
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    continue
                yield numbers.pop(future), outcome
        except BaseException:
            # An interrupt, or a run that needs no more results, does not wait for the tasks that are running.
            context.kill()
            raise
        finally:
            executor.shutdown(cancel_futures=True)

    def _submit(self, executor: ProcessPoolExecutor, tasks: Mapping[int, TaskData]) -> dict[Future[Outcome], int]:
        numbers: dict[Future[Outcome], int] = {}
        try:
            for number, data in tasks.items():
                numbers[executor.submit(call_by_name, self._name, __version__, data)] = number
        except BrokenProcessPool:
            pass  # a worker was killed already; the futures know
        except (OSError, RuntimeError) as error:
            # No more processes or threads; with some workers running, these do all the tasks that they have.
            self.refusal = first_line(error)
        return numbers
