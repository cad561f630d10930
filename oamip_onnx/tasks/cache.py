"""Results of tasks on disk, under a key that says what was computed from what."""

import hashlib
import io
import logging
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from oamip_onnx import __version__
from oamip_onnx.tasks.data import TaskData

_LOG = logging.getLogger(__name__)

LARGEST_BYTES = 1_000_000_000

# After the oldest entries have gone, this share of the limit is in use, so that they need not go at every write.
_SHARE_KEPT = 0.9

_FILE = re.compile(r"[0-9a-f]{62}\.npz|[0-9a-f]{32}\.tmp")


def default_cache() -> Path | None:
    """Return the user's cache folder: `OAMIP_CACHE_DIR`, else `oamip_onnx` in `XDG_CACHE_HOME` or `~/.cache`.

    None where there is no home folder.
    """
    own = os.environ.get("OAMIP_CACHE_DIR")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if Path(shared).is_absolute():  # the specification says to ignore any other
        return Path(shared) / "oamip_onnx"
    try:
        return Path.home() / ".cache" / "oamip_onnx"
    except RuntimeError:
        return None


def task_key(name: str, data: TaskData) -> str:
    """Return the key of a result: a SHA-256 over this package's version, the function's name and its input."""
    return hashlib.sha256(f"{__version__} {name} {data.digest()}".encode()).hexdigest()


class Cache:
    """A folder of results, `ab/cdef….npz`, safe to share between processes.

    Parameters
    ----------
    folder
        Where the entries stand; it is made when the first one is written.
    largest_bytes
        Above this size the entries go whose last use is longest ago.
    """

    def __init__(self, folder: Path, largest_bytes: int = LARGEST_BYTES) -> None:
        self.folder = folder
        self.largest_bytes = largest_bytes
        self._is_writable = True
        self._bytes: int | None = None

    def get(self, key: str) -> TaskData | None:
        """Return a result, or None where there is none that can be trusted."""
        path = self._path(key)
        try:
            with path.open("rb") as stream:
                entry = TaskData.load(stream)
            result = TaskData(entry.arrays, entry.settings["settings"])
            is_sound = entry.settings["key"] == key and entry.settings["checksum"] == result.digest()
        except OSError:
            return None
        except Exception:  # noqa: BLE001 - damage can show in any layer: archive, compression, array header, JSON
            is_sound = False
        if not is_sound:
            _LOG.warning("The cache entry %s is damaged; its task is run again.", path)
            return None
        with suppress(OSError):  # a folder that can only be read serves as well
            os.utime(path)
        return result

    def put(self, key: str, result: TaskData) -> None:
        """Write a result; a folder that cannot be written to is reported once, and nothing more is written."""
        if not self._is_writable:
            return
        settings = {"key": key, "checksum": result.digest(), "settings": dict(result.settings)}
        stream = io.BytesIO()
        TaskData(result.arrays, settings).save(stream)
        if stream.tell() > self.largest_bytes * _SHARE_KEPT:
            return
        path = self._path(key)
        # A name of its own: two processes may write the same entry, and a reader sees a whole one or none.
        temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(stream.getbuffer())
            temporary.replace(path)
        except OSError as error:
            self._is_writable = False
            reason = error.strerror or error
            _LOG.warning("The cache folder %s cannot be written to (%s); results are not kept.", self.folder, reason)
        else:
            self._make_room(stream.tell())
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.npz"

    def _make_room(self, written: int) -> None:
        """Count what was written, and remove the entries used longest ago where it has become too much."""
        if self._bytes is not None:
            self._bytes += written
            if self._bytes <= self.largest_bytes:
                return
        files = []
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(OSError):  # another process may have removed it
                if _FILE.fullmatch(path.name):
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
        self._bytes = sum(size for _, size, _ in files)
        if self._bytes <= self.largest_bytes:
            return
        for _, size, path in sorted(files):
            with suppress(OSError):
                path.unlink()
            self._bytes -= size
            if self._bytes <= self.largest_bytes * _SHARE_KEPT:
                return
