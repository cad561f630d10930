"""The entry point of the command `oamip`."""

import importlib
import sys

from oamip_onnx.cli import COMMANDS
from oamip_onnx.cli.interrupts import INTERRUPTED, interrupts_heard, interrupts_later, say_interrupted


def _register() -> None:
    """Import the commands, which register themselves; the libraries take a second or two."""
    for name in COMMANDS:
        importlib.import_module(f"oamip_onnx.cli.{name}")


def run() -> int:
    """Run the command line and return its exit code."""
    _register()
    from oamip_onnx.cli.app import run as run_app  # noqa: PLC0415 - as above

    return run_app()


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        with interrupts_later():
            _register()
        with interrupts_heard():
            code = run()
    except KeyboardInterrupt:
        say_interrupted()
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
