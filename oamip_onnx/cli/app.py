"""The command line's frame: the application, errors and exit codes."""

import os
import platform
import sys
from importlib.metadata import version
from typing import Annotated, Any, cast

import typer
import typer.core

from oamip_onnx.cli import COMMANDS
from oamip_onnx.cli.interrupts import INTERRUPTED, say_interrupted
from oamip_onnx.cli.streams import choose_log_format, fresh_run, say_error, start_logging
from oamip_onnx.errors import OamipError, UsageError

# What a report of a problem should name beside onnx and ONNX Runtime.
_MORE_VERSIONS = ("onnx-graphsurgeon", "cvxpy", "pyscipopt", "numpy")

# What wrong arguments raise: the base class of all of them, which typer does not export.
_Misuse = cast("type[Exception]", typer.BadParameter.__mro__[2])


class _InOrder(typer.core.TyperGroup):
    """Commands in the order of `COMMANDS`, whichever was imported first."""

    def list_commands(self, _context: Any) -> list[str]:
        return [name for name in COMMANDS if name in self.commands]


app = typer.Typer(
    name="oamip",
    cls=_InOrder,
    help="Make a trained ONNX model smaller and faster, without training.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(value: bool | None) -> None:  # noqa: FBT001 - typer hands the flag over by position
    if value:
        others = ", ".join(f"{name} {version(name)}" for name in _MORE_VERSIONS)
        sys.stdout.write(
            f"oamip {version('oamip-onnx')} (onnx {version('onnx')}, onnxruntime {_runtime_version()})\n"
            f"{others}, Python {platform.python_version()}\n"
        )
        raise typer.Exit


def _runtime_version() -> str:
    # The GPU build is a package of another name.
    import onnxruntime  # noqa: PLC0415 - only --version needs it here

    return str(onnxruntime.__version__)


@app.callback()
def common(
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log the stages on standard error.")] = False,
    log_format: Annotated[
        str,
        # At once, so that wrong arguments behind it are told in this format too.
        typer.Option(
            help="text, or json: an object a line.",
            metavar="NAME",
            envvar="OAMIP_LOG_FORMAT",
            callback=choose_log_format,
            is_eager=True,
        ),
    ] = "text",
    version_: Annotated[
        bool | None, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions.")
    ] = None,
) -> None:
    """Make a trained ONNX model smaller and faster, without training."""
    del version_, log_format
    start_logging(verbose=verbose)


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
    with fresh_run():
        try:
            code = app(prog_name="oamip", standalone_mode=False)
            sys.stdout.flush()
        except OamipError as error:
            say_error(error.code, str(error), error.exit_code)
            return error.exit_code
        except _Misuse as error:
            return _misused(error)
        except (KeyboardInterrupt, typer.Abort):
            return _interrupted()
        except BrokenPipeError:
            return _reader_gone()
        except SystemExit as error:
            # What typer and rich make of a closed pipe.
            if isinstance(error.__context__, BrokenPipeError):
                return _reader_gone()
            raise
        return _interrupted() if code == INTERRUPTED else int(code or 0)


def _misused(error: Any) -> int:
    context = getattr(error, "ctx", None)
    hint = f" See {context.command_path} --help." if context is not None else ""
    message = str(error.format_message()).strip()
    if message.startswith("Usage:"):
        # The help, for want of any argument.
        sys.stderr.write(message + "\n")
    else:
        say_error(UsageError.code, message + ("" if message.endswith((".", "?")) else ".") + hint, UsageError.exit_code)
    return UsageError.exit_code


def _interrupted() -> int:
    say_interrupted()
    return INTERRUPTED


def _reader_gone() -> int:
    """End quietly: the reader of standard output has had enough, and what goes to files is written before."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - Python flushes it at exit
    return 0
