"""What a pipeline has already done: the key of each stage, and the digests of what it wrote."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime

from oamip_onnx.bench import package_version
from oamip_onnx.calibration.datasets import is_built_in
from oamip_onnx.errors import DataError
from oamip_onnx.model import file_digest, load_model, write_text

_FILE = "stages.json"

# What a result depends on beside its inputs, where it is installed.
_PACKAGES = tuple(
    "oamip-onnx onnx onnx-graphsurgeon numpy scipy scikit-learn cvxpy clarabel pyscipopt torch keras tensorflow "
    "tf2onnx skl2onnx jax jax2onnx paddlepaddle paddle2onnx onnxscript onnxslim openvino coremltools onnx2tf".split()
)


@dataclass(frozen=True)
class Done:
    """A stage that has run.

    Attributes
    ----------
    key
        What it was made from; see `stage_key`.
    files
        SHA-256 of each file that it wrote, by name.
    seconds
        How long it took.
    notes
        What it had to say.
    """

    key: str
    files: Mapping[str, str]
    seconds: float
    notes: tuple[str, ...]


class Store:
    """The stages that have run into a folder; an unreadable record is as good as none.

    Parameters
    ----------
    folder
        Where the results are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done = self._read()

    def find(self, stage: str, key: str) -> Done | None:
        """Return a stage that ran with this key and whose files are still what it wrote."""
        found = self._done.get(stage)
        if found is None or found.key != key:
            return None
        is_whole = all(
            (self._folder / name).is_file() and file_digest(self._folder / name) == digest
            for name, digest in found.files.items()
        )
        return found if is_whole else None

    def add(self, stage: str, key: str, files: Sequence[str], seconds: float, notes: Sequence[str]) -> Done:
        """Record a stage that has run; the files are named relative to the folder."""
        digests = {name: file_digest(self._folder / name) for name in files}
        self._done[stage] = Done(key, digests, seconds, tuple(notes))
        content = {name: asdict(done) for name, done in self._done.items()}
        write_text(json.dumps(content, indent=2) + "\n", self._folder / _FILE)
        return self._done[stage]

    def _read(self) -> dict[str, Done]:
        try:
            content = json.loads((self._folder / _FILE).read_text(encoding="utf-8"))
            return {name: Done(**{**done, "notes": tuple(done["notes"])}) for name, done in content.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}  # the stages run again


def stage_key(
    stage: str, settings: Mapping[str, object], files: Mapping[str, str], more: Mapping[str, object] | None = None
) -> str:
    """Return the SHA-256 of all that a stage's result depends on: settings, the content of files, versions.

    Parameters
    ----------
    stage, settings
        Its name and its settings.
    files
        Digests of what it reads, by role.
    more
        Anything else, such as the machine.
    """
    versions = {name: package_version(name) for name in _PACKAGES} | {"onnxruntime": onnxruntime.__version__}
    content = [stage, settings, files, more or {}, versions]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def content_digest(source: str, what: str) -> str:
    """Return the SHA-256 of what a source names: a file, all files of a folder, a model with its weights, a script.

    A script counts by its own text, not by what it imports and reads.

    Raises
    ------
    DataError
        If there is no such file or folder; the sentence says that it is `what`.
    """
    if is_built_in(source):
        return hashlib.sha256(source.encode()).hexdigest()
    path = Path(source)
    if not path.exists() and ":" in source:
        path = Path(source.rpartition(":")[0])
    if not path.exists():
        raise DataError(f"{what} {source!r} does not exist; check the path.")
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(inner for inner in path.rglob("*") if inner.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()} {file_digest(file)}\n".encode())
        return digest.hexdigest()
    return load_model(path).sha256 if path.suffix.lower() == ".onnx" else file_digest(path)
