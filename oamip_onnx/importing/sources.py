"""From what the user gave to a model in its framework: which converter reads it, and what it makes of it."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oamip_onnx.calibration.scripts import import_file
from oamip_onnx.converters.base import (  # type: ignore[import-not-found,unused-ignore]
    Converter,
    FrameworkModel,
    ImportOptions,
    converter_points,
    install_command,
    load_converter,
    require_packages,
)
from oamip_onnx.converters.common import is_installed  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import ModelError, OamipError, UsageError, first_line

# What a file.py without a function is asked for.
_FACTORY = "model"


@dataclass(frozen=True)
class Found:
    """What is to be imported: a path that a converter reads, or an object that it takes.

    Attributes
    ----------
    name
        What sentences call it.
    source
        The path or the object.
    converter
        Who reads it.
    examples
        The example inputs that a factory returned beside the model, by name.
    path
        The file or folder that was read; None for an object.
    """

    name: str
    source: Any
    converter: Converter
    examples: Mapping[str, Any]
    path: Path | None


def find_source(source: object, converter: str | None) -> Found:
    """Return what is to be imported, and by whom; a factory is called.

    Parameters
    ----------
    source
        A path, ``file.py:factory``, or a model.
    converter
        The converter to take; by default the first that reads the source.

    Raises
    ------
    ModelError
        If the source does not exist, its factory fails, or no converter reads it.
    UsageError
        If there is no such converter, or the file has no such function.
    """
    if not isinstance(source, str | Path):
        return _taken(f"The object of the type {type(source).__name__}", source, converter, {}, None)
    text = str(source)
    script, _, function = text.rpartition(":")
    if not script.endswith(".py"):
        script, function = text, _FACTORY
    if script.endswith(".py"):
        made = _made(Path(script), function)
        examples: Mapping[str, Any] = {}
        if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping):
            made, examples = made
        what = f"What {function}() in {script!r} returned, of the type {type(made).__name__},"
        return _taken(what, made, converter, examples, Path(script))
    path = Path(text)
    if not path.exists():
        raise ModelError(f"The source {text!r} does not exist; check the path.")
    chosen = [load_converter(converter)] if converter else _converters()
    reader = next((one for one in chosen if converter or one.reads(path)), None)
    if reader is None:
        raise ModelError(f"No converter reads {text!r}; {_tried(chosen)}.")
    return Found(repr(text), path, reader, {}, path)


def load_source(found: Found, options: ImportOptions) -> FrameworkModel:
    """Return the model in its framework.

    Raises
    ------
    MissingExtraError
        If what the converter needs is not installed.
    ModelError
        If it cannot read the source.
    """
    require_packages(found.converter)
    with own_failures(f"The converter {found.converter.name!r} cannot read {found.name}"):
        return found.converter.load(found.source, options)


@contextlib.contextmanager
def own_failures(what: str) -> Iterator[None]:
    """Turn whatever a framework raises into one sentence; errors of this package are that already.

    Raises
    ------
    ModelError
        With the first line of what was raised.
    """
    try:
        yield
    except OamipError:
        raise
    except Exception as error:  # frameworks raise anything, and run the user's own code
        raise ModelError(f"{what}: {type(error).__name__}: {_plain(first_line(error))}") from error


def _plain(line: str) -> str:
    """Return a line without the colours of a terminal."""
    return "".join(character for character in line if character.isprintable())


def _made(path: Path, function: str) -> object:
    """Return what a factory of the user's file returns; the modules beside the file can be imported."""
    if not path.is_file():
        raise ModelError(f"The file {str(path)!r} of the model does not exist; check the path.")
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    try:
        # What the user's code prints must not get into the JSON on standard output.
        with contextlib.redirect_stdout(sys.stderr):
            factory = getattr(import_file(path, "model"), function, None)
            if factory is not None:
                return factory() if callable(factory) else factory
    except Exception as error:  # the user's code may raise anything
        raise ModelError(
            f"The function {function}() in {str(path)!r} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
    raise UsageError(f"The file {str(path)!r} has no function {function!r}; name one as file.py:factory.")


def _taken(what: str, source: object, converter: str | None, examples: Mapping[str, Any], path: Path | None) -> Found:
    chosen = [load_converter(converter)] if converter else _converters()
    reader = next((one for one in chosen if converter or one.takes(source)), None)
    if reader is None:
        raise ModelError(f"{what} is no model that a converter takes; {_tried(chosen)}.")
    arrays = {name: np.asarray(values) for name, values in examples.items()}
    return Found(what.removesuffix(","), source, reader, arrays, path)


def _converters() -> list[Converter]:
    return [load_converter(name) for name in converter_points()]


def _tried(converters: list[Converter]) -> str:
    """Return what each converter reads, and how to get those whose packages are missing."""
    told = []
    for one in converters:
        missing = not all(is_installed(module) for module in one.packages)
        told.append(f"{one.name} reads {one.sources}{f' ({install_command(one)})' if missing else ''}")
    return "; ".join(told)
