"""Worker processes of this machine: how they are started and stopped, and whether they can be."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import connection, spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

# Windows waits for at most 63 things at once, two of which are not workers.
_LARGEST_POOL_ON_WINDOWS = 61

_START = threading.Lock()


class WorkerProcess(SpawnProcess):
    """A worker process that does not run the user's script again.

    Processes started afresh import the main module, and a script without `if __name__ == "__main__"` would repeat all
    that it does. Tasks are found by the names of their modules and need no main module.
    """

    def start(self) -> None:
        """Start with all that a fresh process needs to know, but for the main module."""
        starter = threading.get_ident()
        with _START:
            prepare = spawn.get_preparation_data

            def without_main(name: str) -> dict[str, Any]:
                whole = prepare(name)
                if threading.get_ident() != starter:
                    return whole  # a process that someone else starts meanwhile
                return {key: value for key, value in whole.items() if not key.startswith("init_main_")}

            try:
                spawn.get_preparation_data = without_main
                super().start()
            finally:
                spawn.get_preparation_data = prepare


class WorkerContext(SpawnContext):
    """Starts the workers of one pool, and remembers them so that they can be stopped at once.

    Fresh processes rather than forks: ONNX Runtime's threads in this process may hold locks, which a fork would keep.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[WorkerProcess] = []

    # A method in the place of multiprocessing's class attribute, whose name it has to bear.
    def Process(self, *args: Any, **kwargs: Any) -> WorkerProcess:  # type: ignore[override]  # noqa: N802 - as above
        """Make a worker."""
        process = WorkerProcess(*args, **kwargs)
        self._made.append(process)
        return process

    def kill(self) -> None:
        """Stop all workers, whatever they are doing."""
        for process in self._made:
            if process.pid is not None:
                process.kill()


def begin_worker() -> None:
    """Prepare a worker: the interrupt key is for the starting process, and without that the worker ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def usual_workers() -> int:
    """Return one worker per core that this process may use."""
    # Comes with scikit-learn; it knows of affinities and of the limits of containers, which os.cpu_count does not.
    from joblib import cpu_count  # noqa: PLC0415 - takes a tenth of a second to import

    return int(cpu_count())


def most_workers() -> int:
    """Return how many workers the operating system lets one process have."""
    return _LARGEST_POOL_ON_WINDOWS if sys.platform == "win32" else sys.maxsize


def obstacle() -> str:
    """Return why no process can be started from here; empty if one can."""
    current = multiprocessing.current_process()
    if current.daemon:
        return "this process is a worker itself"
    if getattr(current, "_inheriting", False):
        # Another library starts processes that run an unguarded script again; here that has to stop.
        return 'the script was started again by a new process (put its code under `if __name__ == "__main__":`)'
    if getattr(sys, "frozen", False) or not sys.executable:
        return "there is no Python interpreter to start"
    return ""
