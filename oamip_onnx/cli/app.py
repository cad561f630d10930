"""The command line's frame: the application, the streams, the progress display, errors and exit codes."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from oamip_onnx.errors import OamipError, UsageError
from oamip_onnx.importance import Progress as ProgressCallback
from oamip_onnx.model import check_writable, write_text

INTERRUPTED = 130

app = typer.Typer(
    name="oamip",
    help="Make a trained ONNX model smaller and faster, without training.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(value: bool | None) -> None:  # noqa: FBT001 - typer hands the flag over by position
    if value:
        sys.stdout.write(f"oamip {version('oamip-onnx')} (onnx {version('onnx')}, onnxruntime {_runtime_version()})\n")
        raise typer.Exit


def _runtime_version() -> str:
    # The GPU build is a package of another name.
    import onnxruntime  # noqa: PLC0415 - only --version needs it here

    return str(onnxruntime.__version__)


@app.callback()
def common(
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log the stages on standard error.")] = False,
    version_: Annotated[
        bool | None, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions.")
    ] = None,
) -> None:
    """Make a trained ONNX model smaller and faster, without training."""
    del version_
    if verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")


def output() -> Console:
    """Return the console for results, on standard output."""
    # A pipe has no width; tables are not folded there.
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def messages() -> Console:
    """Return the console for progress and notes, on standard error."""
    return Console(stderr=True, highlight=False)


@contextmanager
def progress() -> Iterator[ProgressCallback | None]:
    """Show the stages of a run on standard error if that is a terminal; nothing otherwise."""
    console = messages()
    if not console.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("start", total=1.0)

        def report(stage: str, share: float) -> None:
            display.update(task, description=stage, completed=share)

        yield report


def write_json(text: str, target: str | None) -> None:
    """Write JSON to a path, or to standard output for ``-``."""
    if target == "-":
        sys.stdout.write(text + "\n")
    elif target:
        write_text(text + "\n", Path(target))


def check_json_target(target: str | None) -> None:
    """Raise before the work starts if the JSON could not be written after it.

    Raises
    ------
    OutputError
        If the folder is missing or not writable.
    """
    if target and target != "-":
        check_writable(Path(target))


def parse_input_shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Return shapes such as ``x=1,3,224,224`` by input name.

    Raises
    ------
    UsageError
        If a text is no name with positive integers.
    """
    shapes = {}
    for text in texts or []:
        name, separator, sizes = text.rpartition("=")
        parts = sizes.split(",")
        if not separator or not name or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
            raise UsageError(f"The input shape {text!r} is not of the form name=1,3,224,224.")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def run() -> int:
    """Run the command line and return its exit code; errors become one sentence on standard error."""
    try:
        app()
    except OamipError as error:
        messages().print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return _interrupted() if code == INTERRUPTED else code
    return 0


def _interrupted() -> int:
    messages().print("error: interrupted; nothing was written.", markup=False)
    return INTERRUPTED
