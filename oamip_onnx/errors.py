"""One tree of errors: every message is a sentence that says what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class OamipError(Exception):
    """Base of every error this package raises on purpose.

    Attributes
    ----------
    code
        What the command line shows in brackets, and programs read: `docs/errors.md` explains each.
    exit_code
        What the command line returns.

    Examples
    --------
    >>> import oamip_onnx
    >>> try:
    ...     oamip_onnx.prune("missing.onnx", "calibration.npz")
    ... except oamip_onnx.OamipError as error:
    ...     print(error.code, error.exit_code, error)
    model 3 The model file 'missing.onnx' does not exist; check the path.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 3


class UsageError(OamipError):
    """The user asked for something that does not make sense: an unknown option, pattern, target or name."""

    code = "usage"
    exit_code = 2


class ModelError(OamipError):
    """The model is missing, is no ONNX file, is invalid, or uses a version that ONNX Runtime does not take."""

    code = "model"


class DataError(OamipError):
    """The calibration or test data have a wrong key, shape, dtype or value."""

    code = "data"


class NothingToPruneError(OamipError):
    """No channel of the model can be removed; the message gives the reasons."""

    code = "nothing-to-prune"


class UnsupportedOperatorError(OamipError):
    """The mathematical program cannot express an operator; the message names it and its position.

    Attributes
    ----------
    detail
        The message without what to do instead, which differs with what was wanted.
    """

    code = "unsupported-operator"

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(f"{detail}; {remedy}." if remedy else detail)
        self.detail = detail


class OutputError(OamipError):
    """The result cannot be written where the user wants it."""

    code = "output"


class MissingExtraError(OamipError):
    """An optional dependency is needed and not installed."""

    code = "missing-extra"


class TargetError(OamipError):
    """The target cannot be reached; the message says what can."""

    code = "target"


class VerificationError(OamipError):
    """The pruned model does not equal the masked one, or an imported one its source; nothing was written."""

    code = "verification"
    exit_code = 1


class RegressionError(OamipError):
    """A model runs slower than it did, or a pipeline misses what it asks for; the report is written."""

    code = "regression"
    exit_code = 1


class SolverError(OamipError):
    """A solver ended without a usable solution; the message carries its status and advice."""

    code = "solver"
    exit_code = 4


def closest(name: str, candidates: Iterable[str]) -> str:
    """Return a half-sentence naming the candidates closest to `name`, or an empty string if none is close."""
    near = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}" if near else ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that says something, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
