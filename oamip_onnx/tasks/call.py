"""Calling a task function: directly, or by its name in another process."""

import importlib
import operator
import pickle
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from oamip_onnx import __version__
from oamip_onnx.errors import OamipError, first_line
from oamip_onnx.tasks.data import TaskData
from oamip_onnx.tasks.errors import WorkerError
from oamip_onnx.tasks.threads import one_thread

TaskFunction = Callable[[TaskData], TaskData]


@dataclass(frozen=True)
class Outcome:
    """Result of a task, or the error that it raised."""

    result: TaskData | None = None
    error: Exception | None = None


def name_of(function: TaskFunction) -> str:
    """Return `module:name`, by which every process finds the function.

    Raises
    ------
    TypeError
        If it cannot be found by a name.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module and name and module != "__main__" and "<" not in name:
        found = sys.modules.get(module)
        if found is not None and operator.attrgetter(name)(found) is function:
            return f"{module}:{name}"
    raise TypeError(
        f"{function!r} cannot be a task; take a function at the top level of a module that can be imported."
    )


def call(function: TaskFunction, data: TaskData) -> TaskData:
    """Run a task in this process, with one thread for linear algebra."""
    with one_thread():
        result = function(data)
    if not isinstance(result, TaskData):
        raise TypeError(f"The task {name_of(function)} returned a {type(result).__name__}; it must return TaskData.")
    return result


def call_by_name(name: str, version: str, data: TaskData) -> Outcome:
    """Run a task in a worker process.

    The function comes by name and an error goes back as a value, so that one that cannot be imported or pickled is told
    apart from a worker that has died.
    """
    if version != __version__:
        return Outcome(
            error=WorkerError(
                f"A worker has oamip-onnx {__version__} and this process {version}; install one version on both."
            )
        )
    module, _, attribute = name.partition(":")
    try:
        function = operator.attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        return Outcome(
            error=WorkerError(
                f"A worker cannot import the task {name} ({first_line(error)}); install there what is installed here."
            )
        )
    try:
        return Outcome(call(function, data))
    except Exception as error:  # noqa: BLE001 - whatever the task raises is the run's error
        return Outcome(error=_portable(error))


def _portable(error: Exception) -> Exception:
    """Return the error if it survives the way to another process, else one that says the same."""
    where = f"In the worker process:\n{traceback.format_exc()}"
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - written in this line
        is_same = type(copy) is type(error) and str(copy) == str(error)
    except Exception:  # noqa: BLE001 - an error's own code runs here
        is_same = False
    portable = error if is_same else RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, OamipError):  # whose sentence says all that a user needs
        portable.add_note(where)
    return portable
