"""The command line's streams: results on standard output; progress, notes and errors on standard error."""

import datetime as dt
import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from oamip_onnx.errors import OutputError, UsageError, closest
from oamip_onnx.model import check_writable, write_text

LogFormat = Literal["text", "json"]

# A pipe has no width; tables are not folded there.
_PIPE_COLUMNS = 120


@dataclass
class _Run:
    """What one command has said and done so far."""

    log_format: LogFormat = "text"
    written: list[Path] = field(default_factory=list)


# One command runs at a time; the thread that watches for interruptions reads it as well.
_CURRENT: list[_Run] = [_Run()]


@contextmanager
def fresh_run() -> Iterator[None]:
    """Begin a command: nothing written yet, the log as text, no handlers of an earlier command."""
    _CURRENT.append(_Run())
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        yield
    finally:
        _CURRENT.pop()
        root.handlers[:] = before
        root.setLevel(level)


def _run() -> _Run:
    return _CURRENT[-1]


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
    _say(json.dumps({"time": now, "level": level, "event": event, **fields}))


def _say(line: str) -> None:
    """Write a line on standard error; a reader that is gone must not end the job."""
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - written to until the end


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
            _say(f"note: {note}")


def say_error(code: str, message: str, exit_code: int) -> None:
    """Write why the command failed."""
    if logs_json():
        emit("error", "error", fields={"code": code, "message": message, "exit_code": exit_code})
    else:
        _say(f"error[{code}]: {message}")


def mark_written(path: Path) -> None:
    """Remember that a file is in place, for an interruption that comes later."""
    _run().written.append(path)


@contextmanager
def checkpoints_in(folder: Path | None) -> Iterator[None]:
    """On an interruption, remember the folder if it holds a checkpoint of a training, or of several."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is not None and any(folder.rglob("*.pt")):
            mark_written(folder)
        raise


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
        _write_utf8(text + "\n")
    elif target:
        write_result(text + "\n", Path(target))


def _write_utf8(text: str) -> None:
    """Write JSON on standard output: in UTF-8, whatever the terminal's encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(text)


def check_targets(sources: Iterable[str | Path | None], targets: Iterable[str | Path | None]) -> None:
    """Raise before the work starts if a result would take the place of what is read, or of another result.

    Parameters
    ----------
    sources, targets
        Files that are read, and files to write; None and ``-`` are neither.

    Raises
    ------
    OutputError
        If a target is a source or another target.
    """
    read = {Path(source).resolve() for source in sources if source is not None}
    seen: set[Path] = set()
    for target in targets:
        if target is None or str(target) == "-":
            continue
        path = Path(target).resolve()
        if path in read:
            raise OutputError(f"The result would overwrite {str(target)!r}, which is read; choose another name.")
        if path in seen:
            raise OutputError(f"Two results would go to {str(target)!r}; choose another name for one of them.")
        seen.add(path)


def check_json_target(target: str | None) -> None:
    """Raise before the work starts if the JSON could not be written after it.

    Raises
    ------
    OutputError
        If the folder is missing or not writable.
    """
    if target and target != "-":
        check_writable(Path(target))
