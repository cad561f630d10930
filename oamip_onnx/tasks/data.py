"""What goes into a task and what comes out: named arrays and settings, with one form in memory and one on disk."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

# Booleans, integers, floats, complex numbers and texts: what the .npy format holds without pickling.
_KINDS = "biufcSU"


@dataclass(frozen=True, eq=False)
class TaskData:
    """Input or result of a task, the same wherever the task runs.

    Attributes
    ----------
    arrays
        Arrays by name; numbers, booleans and texts of any shape. They are held in C order and cannot be written to.
    settings
        JSON values by name; numbers that are not finite are allowed, tuples become lists.
    """

    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = {name: _canonical(name, self.arrays[name]) for name in sorted(self.arrays)}
        object.__setattr__(self, "arrays", MappingProxyType(arrays))
        # The way to JSON and back makes the settings what another process would read.
        settings = json.loads(json.dumps(dict(self.settings)))
        object.__setattr__(self, "settings", MappingProxyType(settings))

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, so that the arrays are read-only and in order at the other end too.
        return type(self), (dict(self.arrays), dict(self.settings))

    def digest(self) -> str:
        """Return the SHA-256 of names, dtypes, shapes, array bytes and settings, in hexadecimal."""
        described = [[name, array.dtype.str, array.shape] for name, array in self.arrays.items()]
        header = json.dumps([described, dict(self.settings)], sort_keys=True)
        digest = hashlib.sha256(header.encode())
        digest.update(b"\0")  # stands in no JSON text, so that the header ends at one place only
        for array in self.arrays.values():
            digest.update(array.tobytes())
        return digest.hexdigest()

    def save(self, file: Path | IO[bytes]) -> None:
        """Write an .npz archive of the arrays, with names and settings as JSON bytes beside them."""
        header = json.dumps({"names": list(self.arrays), "settings": dict(self.settings)}, sort_keys=True)
        encoded = np.frombuffer(header.encode(), np.uint8)
        # By position, because a keyword would keep an array from being called `file`.
        if not isinstance(file, Path):
            np.savez(file, *self.arrays.values(), header=encoded)
            return
        with file.open("wb") as stream:
            np.savez(stream, *self.arrays.values(), header=encoded)

    @classmethod
    def load(cls, file: Path | IO[bytes]) -> Self:
        """Read what `save` wrote; nothing in the file is executed."""
        with np.load(file, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            arrays = {name: archive[f"arr_{number}"] for number, name in enumerate(header["names"])}
        return cls(arrays, header["settings"])


def _canonical(name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a read-only view in C order and aligned: sums over another layout can end in other bits."""
    array = np.require(np.asarray(value), requirements=["C_CONTIGUOUS", "ALIGNED"])
    # bfloat16 and the like come back from a file as something else.
    if array.dtype.kind not in _KINDS or array.dtype.isbuiltin == 2:
        raise TypeError(f"The array {name!r} of a task has dtype {array.dtype}; convert it to a dtype of numpy's own.")
    view = array.view()
    view.flags.writeable = False
    return view
