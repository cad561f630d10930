"""The command line's streams: results on standard output; progress, notes and errors on standard error."""

import datetime as dt
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from oamip_onnx.errors import UsageError, closest
from oamip_onnx.model import check_writable, write_text

LogFormat = Literal["text", "json"]

# A pipe has no width; tables are not folded there.
_PIPE_COLUMNS = 120


@dataclass
class _Run:
    """What one command has said and done so far."""

    log_format: LogFormat = "text"
    written: list[Path] = field(default_factory=list)


_RUN: ContextVar[_Run | None] = ContextVar("run", default=None)


@contextmanager
def fresh_run() -> Iterator[None]:
    """Begin a command: nothing written yet, the log as text, no handlers of an earlier command."""
    token = _RUN.set(_Run())
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        yield
    finally:
        _RUN.reset(token)
        root.handlers[:] = before
        root.setLevel(level)


def _run() -> _Run:
    found = _RUN.get()
    return _Run() if found is None else found


def output() -> Console:
    """Return the console for results, on standard output."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS, highlight=False)


def messages() -> Console:
    """Return the console for progress and notes, on standard error."""
    return Console(stderr=True, highlight=False)


def choose_log_format(log_format: str) -> str:
    """Choose how this command speaks on standard error.

    Raises
    ------
    UsageError
        If there is no such format.
    """
    if log_format not in {"text", "json"}:
        raise UsageError(f"There is no log format {log_format!r}{closest(log_format, ['text', 'json'])}.")
    _run().log_format = "json" if log_format == "json" else "text"
    return log_format


def start_logging(*, verbose: bool) -> None:
    """Let the log through to standard error where it is wanted."""
    as_json = logs_json()
    if not (verbose or as_json):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else logging.Formatter("%(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)


def logs_json() -> bool:
    """Return whether standard error carries JSON lines."""
    return _run().log_format == "json"


def emit(event: str, level: str = "info", *, fields: Mapping[str, object]) -> None:
    """Write one JSON line on standard error."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    sys.stderr.write(json.dumps({"time": now, "level": level, "event": event, **fields}, ensure_ascii=False) + "\n")
    sys.stderr.flush()


class _JsonFormatter(logging.Formatter):
    """Log records as the JSON lines that `emit` writes."""

    def format(self, record: logging.LogRecord) -> str:
        when = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        fields = {"logger": record.name, "message": record.getMessage()}
        return json.dumps({"time": when, "level": record.levelname.lower(), "event": "log", **fields})


def say_notes(notes: Iterable[str]) -> None:
    """Write what the user should know beside the result."""
    for note in notes:
        if logs_json():
            emit("note", "warning", fields={"message": note})
        else:
            messages().print(f"note: {note}", markup=False, soft_wrap=True)


def say_error(code: str, message: str, exit_code: int) -> None:
    """Write why the command failed."""
    if logs_json():
        emit("error", "error", fields={"code": code, "message": message, "exit_code": exit_code})
    else:
        messages().print(f"error[{code}]: {message}", markup=False, soft_wrap=True)


def mark_written(path: Path) -> None:
    """Remember that a file is in place, for an interruption that comes later."""
    _run().written.append(path)


def written() -> list[Path]:
    """Return the files that this command has put in place."""
    return list(_run().written)


def write_result(text: str, path: Path) -> None:
    """Write a text file atomically and remember it.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_text(text, path)
    mark_written(path)


def write_json(text: str, target: str | None) -> None:
    """Write JSON to a path, or to standard output for ``-``.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    if target == "-":
        sys.stdout.write(text + "\n")
    elif target:
        write_result(text + "\n", Path(target))


def check_json_target(target: str | None) -> None:
    """Raise before the work starts if the JSON could not be written after it.

    Raises
    ------
    OutputError
        If the folder is missing or not writable.
    """
    if target and target != "-":
        check_writable(Path(target))
