"""What several converters do: look for packages, keep frameworks quiet, name the ends of a graph."""

import contextlib
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx


def is_installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ValueError, ModuleNotFoundError):  # blocked in sys.modules, or inside a package that is missing
        return False


def packages_of(source: object) -> set[str]:
    """Return the top-level packages of an object's class and of the classes that it inherits from."""
    return {str(kind.__module__).partition(".")[0] for kind in type(source).__mro__}


def framework_version(*distributions: str) -> str:
    """Return names and versions of distributions, such as ``torch 2.13.0``."""
    return ", ".join(f"{name} {version(name)}" for name in distributions)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what frameworks say while they convert from the user: hints at settings that are chosen here."""
    root = logging.getLogger()
    disabled, level, handlers = root.manager.disable, root.level, list(root.handlers)
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        # Some frameworks put handlers of their own there when they are imported.
        root.setLevel(level)
        root.handlers[:] = handlers


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep what libraries write past Python on standard output and standard error from the user, beside `quiet`.

    What fails is raised as an exception as well.
    """
    with quiet(), Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stderr.flush()
        kept = {stream: os.dup(stream) for stream in (1, 2)}
        try:
            for stream in kept:
                os.dup2(nowhere.fileno(), stream)
            yield
        finally:
            for stream, copy in kept.items():
                os.dup2(copy, stream)
                os.close(copy)


def output_names(count: int) -> list[str]:
    """Return names for outputs that have none: ``y``, or ``y0``, ``y1`` and so on."""
    return ["y"] if count == 1 else [f"y{number}" for number in range(count)]


def name_ends(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the inputs and outputs of a model, in place, other names; there are as many as the model has.

    Raises
    ------
    ValueError
        If there are more or fewer.
    """
    graph = model.graph
    pairs = list(zip([value.name for value in graph.input], inputs, strict=True))
    pairs += list(zip([value.name for value in graph.output], outputs, strict=True))
    wanted = {old: new for old, new in pairs if old != new}
    # What has one of the new names already makes way.
    inner = {name for node in graph.node for name in node.output} | {one.name for one in graph.initializer}
    wanted |= {new: f"{new}_inner" for new in wanted.values() if new in inner and new not in wanted}
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = wanted.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = wanted.get(tensor.name, tensor.name)
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = wanted.get(name, name)


def free_first_dimension(model: onnx.ModelProto) -> None:
    """Call the free first dimension of inputs and outputs ``N``, in place, whatever the framework called it."""
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and dimensions[0].dim_value <= 0:
            dimensions[0].dim_param = "N"
