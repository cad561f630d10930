"""Cold starts: what loading a model and its first output cost a fresh process."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from oamip_onnx.bench.sessions import Feeds
from oamip_onnx.errors import DataError, ModelError, UsageError, first_line
from oamip_onnx.runtime import RuntimeOptions

_SCRIPT = Path(__file__).with_name("cold_process.py")


@dataclass(frozen=True)
class ColdStart:
    """What a fresh process spends until a model's first output; medians over several processes.

    The time to start Python and to import ONNX Runtime is not in it. The model's file was read before, so that it comes
    from the operating system's cache.

    Attributes
    ----------
    load_ms
        Milliseconds to create the session.
    first_output_ms
        Milliseconds from the same begin to the first output, loading included.
    peak_memory_bytes
        By how many bytes the process's peak of resident memory exceeds what was resident before loading; on a device,
        its own memory is not in it. None where the system does not tell.
    processes
        How many processes the medians are over.
    """

    load_ms: float
    first_output_ms: float
    peak_memory_bytes: int | None
    processes: int


class _Measured(TypedDict):
    """What one process writes."""

    load_ms: float
    first_output_ms: float
    peak_memory_bytes: int | None
    provider: str


def measure_cold_start(
    models: Sequence[Path], feeds: Feeds, options: RuntimeOptions, *, processes: int = 3, seed: int = 0
) -> tuple[ColdStart, ...]:
    """Return the cold start of each model, in their order; the processes run one at a time, in random turns.

    Parameters
    ----------
    models
        The paths of the models' files.
    feeds
        One batch for each input, by name.
    options
        Provider and threads.
    processes
        How many processes each model is started in.
    seed
        Seed of the random turns.

    Raises
    ------
    DataError
        If an input cannot be handed to another process; see `is_portable`.
    ModelError
        If a process fails.
    UsageError
        If `processes` is not positive, or the provider does not start.
    """
    if processes < 1:
        raise UsageError(f"A cold start needs at least one process, but {processes} were asked for; raise the number.")
    if not is_portable(feeds):
        kinds = ", ".join(f"{name!r} of {array.dtype}" for name, array in feeds.items())
        raise DataError(
            f"The cold start takes inputs of plain numbers only, but these are {kinds}; leave it out with "
            "--no-cold-start."
        )
    generator = np.random.default_rng(seed)
    found: list[list[_Measured]] = [[] for _ in models]
    with tempfile.TemporaryDirectory(prefix="oamip-") as folder:
        archive = Path(folder) / "feeds.npz"
        # By position: not every name of an input can name a member of the archive.
        arrays = {str(position): array for position, array in enumerate(feeds.values())}
        np.savez(archive, allow_pickle=False, **arrays)
        task = {
            "feeds": str(archive),
            "inputs": list(feeds),
            "providers": options.provider_names(),
            "threads": options.threads,
        }
        for _ in range(processes):
            for position in generator.permutation(len(models)).tolist():
                found[position].append(_start(models[position], task, options))
    return tuple(_median(one) for one in found)


def is_portable(feeds: Feeds) -> bool:
    """Return whether a fresh process can read the inputs from a file: numbers of NumPy's own types, and booleans.

    Texts would need pickle, and types of other packages lose their names in the file.
    """
    return all(array.dtype.kind in "biufc" and array.dtype.isbuiltin == 1 for array in feeds.values())


def _start(model: Path, task: dict[str, object], options: RuntimeOptions) -> _Measured:
    """Return what one fresh process measures."""
    # Without -P the script's folder would be searched first, and its modules taken for those of Python.
    command = [sys.executable, "-P", str(_SCRIPT)]
    request = json.dumps({**task, "model": str(model)})
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)  # noqa: S603 - own script
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1].strip().rstrip(".") if lines else "it gave no message"
        raise ModelError(
            f"A fresh process could not run {str(model)!r} for the cold start: {said}. Leave the cold start out with "
            "--no-cold-start."
        )
    try:
        measured = cast("_Measured", json.loads(done.stdout))
    except ValueError as error:
        raise ModelError(
            f"The process of the cold start of {str(model)!r} gave no result: {first_line(error)}."
        ) from error
    wanted = options.provider_names()[0]
    if measured["provider"] != wanted:
        raise UsageError(
            f"In a fresh process ONNX Runtime offers {wanted} but fell back to another provider; install the libraries "
            "that the provider needs, or use --provider cpu."
        )
    return measured


def _median(found: Sequence[_Measured]) -> ColdStart:
    memory = [one["peak_memory_bytes"] for one in found if one["peak_memory_bytes"] is not None]
    return ColdStart(
        load_ms=statistics.median(one["load_ms"] for one in found),
        first_output_ms=statistics.median(one["first_output_ms"] for one in found),
        peak_memory_bytes=round(statistics.median(memory)) if memory else None,
        processes=len(found),
    )
