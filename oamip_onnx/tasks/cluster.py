"""Tasks on a Dask cluster."""

import asyncio
import importlib
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Union

from oamip_onnx import __version__
from oamip_onnx.errors import MissingExtraError, UsageError, first_line
from oamip_onnx.tasks.call import Outcome, call_by_name
from oamip_onnx.tasks.data import TaskData
from oamip_onnx.tasks.errors import WorkerError

if TYPE_CHECKING:
    from distributed import Client

_LOG = logging.getLogger(__name__)

Scheduler = Union[str, "Client"]
"""Address of a Dask scheduler, or a client that is connected to one."""

_CONNECT_SECONDS = 10

# Fewer tasks at a time would keep a cluster small that grows with its queue; all at once would fill its memory.
_FEWEST_AT_ONCE = 64

# Dask warns of inputs above 10 MB because they delay its graph; here every task is a graph of its own.
_QUIET = {"distributed.admin.large-graph-warning-threshold": "1 TB"}


def run_on_cluster(
    name: str, tasks: Mapping[int, TaskData], scheduler: Scheduler, retries: int
) -> Iterator[tuple[int, Outcome]]:
    """Run tasks on a cluster; Dask itself gives the tasks of a worker that is killed to another.

    Parameters
    ----------
    name
        The function's `module:name`.
    tasks
        Inputs by number.
    scheduler
        Where to run them. A client stays open.
    retries
        How often a task is sent again that a worker could not take. How many workers may die of a task is a setting of
        the scheduler, `distributed.scheduler.allowed-failures`.

    Yields
    ------
    tuple
        A task's number and outcome, as soon as it has finished.

    Raises
    ------
    MissingExtraError
        If Dask's package `distributed` is not installed.
    UsageError
        If the client is closed or asynchronous.
    WorkerError
        If the scheduler does not answer or is lost, or workers cannot run the tasks.
    """
    distributed = _import_distributed()
    with _connected(distributed, scheduler) as client:
        yield from _Queue(distributed, client, name, retries).outcomes(tasks)


class _Queue:
    """Tasks on their way through a cluster, so many at a time as keep it busy."""

    def __init__(self, distributed: Any, client: Any, name: str, retries: int) -> None:
        self._distributed = distributed
        self._client = client
        self._address = client.scheduler.address
        self._name = name
        self._retries = retries
        self._sent: dict[Any, int] = {}

    def outcomes(self, tasks: Mapping[int, TaskData]) -> Iterator[tuple[int, Outcome]]:
        threads = sum(self._client.nthreads().values())
        if not threads:
            _LOG.warning("The Dask scheduler at %s has no workers yet; the tasks wait for one.", self._address)
        waiting = list(tasks.items())[::-1]
        finished = self._distributed.as_completed(loop=self._client.loop)
        try:
            for _ in range(min(len(waiting), max(_FEWEST_AT_ONCE, 2 * threads))):
                finished.add(self._send(*waiting.pop()))
            for future in finished:
                outcome = self._outcome(future)
                yield self._sent.pop(future), outcome
                if waiting:
                    finished.add(self._send(*waiting.pop()))
        finally:
            # After an interrupt or an error the cluster does not go on with what nobody waits for.
            if self._sent and self._client.status == "running":
                self._client.cancel(list(self._sent))

    def _send(self, number: int, data: TaskData) -> Any:
        with importlib.import_module("dask.config").set(_QUIET):
            # Not pure: Dask would take two tasks with equal inputs for one, and hash the inputs to find out.
            future = self._client.submit(call_by_name, self._name, __version__, data, pure=False, retries=self._retries)
        self._sent[future] = number
        return future

    def _outcome(self, future: Any) -> Outcome:
        """Return what a worker sent back; what the task itself raised is in it, any other error is Dask's."""
        try:
            outcome: Outcome = future.result()
        except self._distributed.KilledWorker as error:
            raise WorkerError(
                f"A task ended several workers of the Dask cluster at {self._address}, most likely for want of memory; "
                "give the workers more memory or fewer threads each."
            ) from error
        except self._distributed.CancelledError as error:
            raise WorkerError(
                f"The Dask scheduler at {self._address} was lost while tasks were running; check that it is up, and "
                "run again."
            ) from error
        except Exception as error:
            raise WorkerError(
                f"The workers of the Dask cluster at {self._address} cannot run the tasks ({first_line(error)}); "
                f"install oamip-onnx {__version__} there with the packages that it has here."
            ) from error
        return outcome


@contextmanager
def _connected(distributed: Any, scheduler: Scheduler) -> Iterator[Any]:
    """Yield a client; one that is opened here is closed here."""
    if not isinstance(scheduler, str):
        if scheduler.asynchronous or scheduler.status != "running":
            state = "asynchronous" if scheduler.asynchronous else scheduler.status
            raise UsageError(f"The Dask client given as scheduler is {state}; give one that is open and synchronous.")
        yield scheduler
        return
    try:
        _greet(distributed, scheduler)
        client = distributed.Client(scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
    except Exception as error:
        raise WorkerError(
            f"No Dask scheduler answers at {scheduler!r} ({first_line(error)}); check the address, that "
            "`dask scheduler` is running there, and that no firewall is between."
        ) from error
    with client:
        yield client


def _greet(distributed: Any, address: str) -> None:
    """Raise unless a scheduler answers: Dask's timeout covers the connection only, and a hanging peer takes that."""

    async def connect() -> None:
        security = distributed.Security().get_connection_args("client")
        async with asyncio.timeout(_CONNECT_SECONDS + 1):
            connection = await distributed.comm.connect(address, timeout=_CONNECT_SECONDS, **security)
        await connection.close()

    # In a thread, because a notebook runs an event loop in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, connect()).result()


def _import_distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise MissingExtraError(
            "Running on a Dask cluster needs the package distributed, which is not installed; "
            "run: pip install 'oamip-onnx[dask]'"
        ) from error
