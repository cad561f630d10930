"""One tree of errors: every message is a sentence that says what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class OamipError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 3


class UsageError(OamipError):
    """The user asked for something that does not make sense: an unknown option, pattern, target or name."""

    exit_code = 2


class ModelError(OamipError):
    """The model is missing, is no ONNX file, is invalid, or uses a version that ONNX Runtime does not take."""


class DataError(OamipError):
    """The calibration or test data have a wrong key, shape, dtype or value."""


class NothingToPruneError(OamipError):
    """No channel of the model can be removed; the message gives the reasons."""


class UnsupportedOperatorError(OamipError):
    """The mathematical program cannot express an operator; the message names it and its position.

    Attributes
    ----------
    detail
        The message without what to do instead, which differs with what was wanted.
    """

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(f"{detail}; {remedy}." if remedy else detail)
        self.detail = detail


class OutputError(OamipError):
    """The result cannot be written where the user wants it."""


class MissingExtraError(OamipError):
    """An optional dependency is needed and not installed."""


class TargetError(OamipError):
    """The target cannot be reached; the message says what can."""


class VerificationError(OamipError):
    """The pruned model does not equal the masked one; nothing was written."""

    exit_code = 1


class SolverError(OamipError):
    """A solver ended without a usable solution; the message carries its status and advice."""

    exit_code = 4


def closest(name: str, candidates: Iterable[str]) -> str:
    """Return a half-sentence naming the candidates closest to `name`, or an empty string if none is close."""
    near = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that says something, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
