"""Tasks that the tests run; worker processes import them from here."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from oamip_onnx.errors import SolverError
from oamip_onnx.tasks import TaskData


class TwoPartError(Exception):
    """Cannot be unpickled: its constructor takes more than the message."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


def numbered(folder: Path, count: int, **settings: object) -> list[TaskData]:
    """Return inputs for `counted` and `failing`."""
    shared = {"folder": str(folder), **settings}
    return [TaskData({"x": np.full(3, float(number))}, {"number": number, **shared}) for number in range(count)]


def note(data: TaskData) -> None:
    """Leave a line in the file `runs` that says who ran."""
    with Path(data.settings["folder"], "runs").open("a") as file:
        file.write(f"{data.settings.get('number', 0)} {os.getpid()}\n")


def counted(data: TaskData) -> TaskData:
    """Return the double, and leave a line."""
    note(data)
    time.sleep(data.settings.get("seconds", 0.0))
    return TaskData({name: 2 * array for name, array in data.arrays.items()}, data.settings)


def factorised(data: TaskData) -> TaskData:
    """Return what depends on the order of a sum, with a library that is loaded no earlier than here."""
    from scipy import linalg

    matrix = data.arrays["matrix"]
    gram = matrix.T @ matrix
    return TaskData({"values": linalg.svd(gram, compute_uv=False), "sum": np.asarray(gram.sum())}, data.settings)


def killed_once(data: TaskData) -> TaskData:
    """Die at the first attempt, half-way, where the settings say so."""
    marker = Path(data.settings["folder"], "killed")
    if data.settings["dies"] and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return factorised(data)


def killed(_data: TaskData) -> TaskData:
    """Die at every attempt."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def failing(data: TaskData) -> TaskData:
    """Raise what the settings ask for."""
    note(data)
    time.sleep(data.settings.get("seconds", 0.0))
    match data.settings.get("error"):
        case "solver":
            raise SolverError(f"Task {data.settings['number']} has no solution; relax it.")
        case "other":
            raise ValueError(f"task {data.settings['number']}")
        case "two parts":
            raise TwoPartError("wrong", "here")
    return data


def writing(data: TaskData) -> TaskData:
    """Try to change the input."""
    data.arrays["x"][0] = 1.0
    return data


def thread_counts(_data: TaskData) -> TaskData:
    """Return how many threads linear algebra has, in libraries loaded here too."""
    import sklearn  # brings OpenMP and a second BLAS
    from threadpoolctl import threadpool_info

    assert sklearn
    return TaskData(settings={"counts": [library["num_threads"] for library in threadpool_info()]})
