"""Runs the command line in this process, and what a failed command must look like."""

import contextlib
import io
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from oamip_onnx.cli.main import run

FAST = ["--importance", "magnitude", "--no-bench"]


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


def oamip(*arguments: object, cwd: Path | None = None) -> Ran:
    """Run the command line in this process: a process of its own would spend most of its time on imports."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["oamip", *map(str, arguments)])
        patch.setenv("COLUMNS", "120")
        if cwd:
            patch.chdir(cwd)
        code = run()
    logging.getLogger().handlers.clear()
    return Ran(code, out.getvalue(), err.getvalue())


def failed(ran: Ran, code: int, message: str, work: Path | None = None) -> None:
    """Assert an exit code, one sentence on standard error, nothing on standard output, and nothing written."""
    assert ran.code == code, ran
    assert message in ran.err, ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    lines = [line for line in ran.err.splitlines() if line.strip()]
    assert lines[-1].startswith("error["), ran.err
    if work is not None:
        assert not (work / "out.onnx").exists()
        assert not list(work.glob(".oamip-*"))
