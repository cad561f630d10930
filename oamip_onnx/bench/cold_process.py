"""One cold start: what a fresh process does and measures. It is run as a script and imports nothing of this package.

It reads the task as JSON on standard input and writes what it measured as JSON on standard output.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Load a model, run it once, and report."""
    task = json.load(sys.stdin)
    with np.load(task["feeds"]) as archive:
        feeds = {name: archive[str(number)] for number, name in enumerate(task["inputs"])}
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = task["threads"]
    # As in the other measurements, whose sessions take turns.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    before_bytes = start_of_peak_memory()
    began = time.perf_counter()
    # Its own fallback to another provider would print on standard output.
    session = onnxruntime.InferenceSession(task["model"], settings, providers=task["providers"], enable_fallback=0)
    loaded = time.perf_counter()
    session.run(None, feeds)
    ended = time.perf_counter()
    after_bytes = peak_memory_bytes()
    found = {
        "load_ms": (loaded - began) * 1e3,
        "first_output_ms": (ended - began) * 1e3,
        "peak_memory_bytes": None if before_bytes is None or after_bytes is None else after_bytes - before_bytes,
        "provider": session.get_providers()[0],
    }
    sys.stdout.write(json.dumps(found))


def start_of_peak_memory() -> int | None:
    """Return the resident memory in bytes from which the peak counts, or None where it cannot be measured."""
    # The peak so far is that of the imports; on Linux it can be set back to what is resident now. Elsewhere the peak
    # counts from that of the imports.
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="utf-8")
    return peak_memory_bytes()


def peak_memory_bytes() -> int | None:
    """Return the peak of the resident memory in bytes, or None where it cannot be measured."""
    try:
        # `getrusage` also counts what the process was before it became this program: a copy of its parent.
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not on Linux
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


if __name__ == "__main__":
    main()
