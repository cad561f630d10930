"""Ctrl-C at any time: held back while libraries load, and heard while native code does not return."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
MESSAGE = "interrupted; nothing was written."

# Native code, such as a solver, keeps Python from hearing of an interruption; after these seconds the user is told, and
# the process ends. It cannot be writing then: files are written by Python, which would have heard.
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
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        # Somebody else's, or ignored, as in a job in the background.
        yield
        return
    heard = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        heard.set()
        signal.default_int_handler(number, frame)

    reader, writer = socket.socketpair()  # Windows wakes up by sockets alone
    writer.setblocking(False)
    woken = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, hear)
    threading.Thread(target=_watch, args=(reader, heard), daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(woken)
        heard.set()
        writer.close()  # the thread reads its end and goes


def _watch(reader: socket.socket, heard: threading.Event) -> None:
    with reader:
        while byte := reader.recv(1):
            if byte[0] != signal.SIGINT:
                continue
            if not heard.wait(_TOLD_AFTER_SECONDS):
                sys.stderr.write("interrupting; native code has not let go yet.\n")
                sys.stderr.flush()
                if not heard.wait(_ENDED_AFTER_SECONDS - _TOLD_AFTER_SECONDS):
                    say_interrupted()
                    os._exit(INTERRUPTED)
            heard.clear()


def say_interrupted() -> None:
    """Say that the command was interrupted, and whether anything was written."""
    from oamip_onnx.cli.streams import say_error, written  # noqa: PLC0415 - slow to import; interrupts come earlier

    done = ", ".join(repr(str(path)) for path in written())
    say_error("interrupted", f"interrupted; {done} was written before." if done else MESSAGE, INTERRUPTED)
