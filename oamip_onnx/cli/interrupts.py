"""Ctrl-C at any time: held back while libraries load, and heard while a native solver does not return."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
MESSAGE = "error[interrupted]: interrupted; nothing was written.\n"

# A native solver keeps Python from hearing of an interruption; after these seconds the user is told, and the process
# ends. It cannot be writing then: files are written by Python, which would have heard.
_TOLD_AFTER_SECONDS, _ENDED_AFTER_SECONDS = 2.0, 10.0


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Hold interruptions back: one inside a library's start ends as an error of its own.

    Raises
    ------
    KeyboardInterrupt
        Afterwards, if there was one.
    """
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """End the process where an interruption does not reach Python for a while."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    heard = threading.Event()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, heard), daemon=True).start()
    try:
        yield
    finally:
        heard.set()
        signal.set_wakeup_fd(before)
        os.close(writer)  # the thread reads its end and goes


def _watch(reader: int, heard: threading.Event) -> None:
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while byte := pipe.read(1):
            if byte[0] != signal.SIGINT:
                continue
            if heard.wait(_TOLD_AFTER_SECONDS):
                return
            sys.stderr.write("interrupting; a solver has not let go yet.\n")
            sys.stderr.flush()
            if not heard.wait(_ENDED_AFTER_SECONDS - _TOLD_AFTER_SECONDS):
                sys.stderr.write(MESSAGE)
                sys.stderr.flush()
                os._exit(INTERRUPTED)
