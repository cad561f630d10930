"""One thread for linear algebra while a task runs, so that its bits do not depend on where it runs."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Read by a library when it is loaded; a task may be the first to need one.
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class _Limits:
    """The limits of a whole process; they end with the last of the tasks that run at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks = 0
        self._variables: dict[str, str | None] = {}
        self._limited: Any = None
        self._known: set[str] = set()

    def begin(self, controller: Any) -> None:
        with self._lock:
            if self._tasks == 0:
                self._variables = {name: os.environ.get(name) for name in _VARIABLES}
                os.environ.update(dict.fromkeys(_VARIABLES, "1"))
                self._known = {library.filepath for library in controller.lib_controllers}
                self._limited = controller.limit(limits=1, user_api="blas")
            self._tasks += 1

    def end(self) -> None:
        from threadpoolctl import ThreadpoolController  # noqa: PLC0415 - importing the package starts no work

        with self._lock:
            self._tasks -= 1
            if self._tasks > 0:
                return
            self._limited.restore_original_limits()
            for name, value in self._variables.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            # What a task was the first to load goes back to what the user would have found.
            asked = os.environ.get("OMP_NUM_THREADS", "")
            threads = int(asked) if asked.isdecimal() else os.cpu_count() or 1
            for library in ThreadpoolController().lib_controllers:
                if library.filepath not in self._known:
                    library.set_num_threads(threads)


_LIMITS = _Limits()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread, libraries that are loaded meanwhile included."""
    from threadpoolctl import ThreadpoolController  # noqa: PLC0415 - as above

    controller = ThreadpoolController()
    _LIMITS.begin(controller)
    try:
        # OpenMP counts by calling thread, BLAS by process.
        with controller.limit(limits=1, user_api="openmp"):
            yield
    finally:
        _LIMITS.end()
