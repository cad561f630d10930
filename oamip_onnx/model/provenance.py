"""What a model file says about its making: the steps that it went through, in its metadata."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import onnx

from oamip_onnx.errors import DataError

HISTORY_KEY = "oamip.history"


@dataclass(frozen=True)
class Step:
    """One command that a model went through.

    Attributes
    ----------
    command
        The command, such as ``prune``.
    options
        What it was told, as on the command line, less the paths of files.
    version
        The version of this package.
    source_sha256
        Digest of the file that the command read, as `Model.sha256`; empty where it read no model.
    """

    command: str
    options: tuple[str, ...]
    version: str
    source_sha256: str


def history(proto: onnx.ModelProto) -> tuple[Step, ...]:
    """Return the steps that a model's metadata tell of, the oldest first; none if there are none, or unreadable ones.

    Examples
    --------
    >>> import onnx
    >>> from oamip_onnx.model import history
    >>> history(onnx.load("model.onnx"))
    ()
    """
    text = next((entry.value for entry in proto.metadata_props if entry.key == HISTORY_KEY), "[]")
    try:
        return tuple(_step(one) for one in json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError):
        return ()  # foreign metadata may use the key; a model is none the worse for it


def _step(entry: Mapping[str, object]) -> Step:
    command, options, package, digest = (entry[name] for name in ("command", "options", "version", "source_sha256"))
    if not isinstance(options, list):
        raise TypeError("The options are no list.")
    return Step(str(command), tuple(map(str, options)), str(package), str(digest))


def history_entry(proto: onnx.ModelProto, command: str, options: Sequence[str], source_sha256: str) -> dict[str, str]:
    """Return the metadata entry that tells of one more step than a model's own; it holds neither times nor paths.

    Parameters
    ----------
    proto
        The model that the command read.
    command, options, source_sha256
        See `Step`.
    """
    steps = [*history(proto), Step(command, tuple(options), version("oamip-onnx"), source_sha256)]
    return {HISTORY_KEY: json.dumps([asdict(step) for step in steps], separators=(",", ":"))}


def with_metadata(
    entries: Iterable[onnx.StringStringEntryProto], added: Mapping[str, str]
) -> list[onnx.StringStringEntryProto]:
    """Return metadata with these entries added, or in the place of those with the same key."""
    others = [entry for entry in entries if entry.key not in added]
    return [*others, *(onnx.StringStringEntryProto(key=key, value=value) for key, value in added.items())]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
