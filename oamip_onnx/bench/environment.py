"""Where a benchmark ran, and why its figures may mislead."""

import dataclasses
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import onnxruntime
import psutil

from oamip_onnx.bench.statistics import Latency
from oamip_onnx.runtime import RuntimeOptions, short_name

BUSY_LOAD_PER_CORE = 0.5
NOISY_SPREAD = 1.5

# A sweep may have many noisy rows; a sentence names this many.
_NAMED = 3

# Where Linux says how the CPU chooses its frequency; the drivers of AMD and others, and of Intel, say it differently.
_FREQUENCY_FILES = Path("/sys/devices/system/cpu")
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Environment:
    """The machine and the software of a benchmark; nothing in it names the machine, its user or the time.

    Attributes
    ----------
    cpu
        Model name of the processor.
    logical_cores
        The logical cores of the machine.
    provider
        Short name of the execution provider.
    threads
        Intra-operator threads as asked for; 0 left the choice to ONNX Runtime.
    operating_system
        Its name and version, and the architecture.
    python
        The version of Python; the fields after it are those of the packages.
    load_before, load_after
        The load average over one minute; afterwards it includes the benchmark itself.
    frequency_governor
        How the operating system chooses the CPU's frequency, such as ``performance``; ``unknown`` where it does not
        tell.
    frequency_boost
        Whether the CPU may go beyond its nominal frequency: ``on``, ``off`` or ``unknown``.
    """

    cpu: str
    logical_cores: int
    provider: str
    threads: int
    operating_system: str
    python: str
    onnx: str
    onnxruntime: str
    onnx_graphsurgeon: str
    cvxpy: str
    pyscipopt: str
    numpy: str
    oamip_onnx: str
    load_before: float
    load_after: float
    frequency_governor: str = _UNKNOWN
    frequency_boost: str = _UNKNOWN

    def after(self) -> "Environment":
        """Return the same environment with the load as it is now."""
        return dataclasses.replace(self, load_after=_load())


def describe_environment(options: RuntimeOptions) -> Environment:
    """Return the environment before a benchmark with these options; call `Environment.after` when it has ended."""
    load = _load()
    return Environment(
        cpu=_cpu_model(),
        logical_cores=os.cpu_count() or 1,
        provider=short_name(options.provider_names()[0]),
        threads=options.threads,
        operating_system=platform.platform(),
        python=platform.python_version(),
        onnx=_stated_version("onnx"),
        # The module knows better than the package: it may come as onnxruntime-gpu or another build.
        onnxruntime=str(onnxruntime.__version__),
        onnx_graphsurgeon=_stated_version("onnx-graphsurgeon"),
        cvxpy=_stated_version("cvxpy"),
        pyscipopt=_stated_version("pyscipopt"),
        numpy=_stated_version("numpy"),
        oamip_onnx=_stated_version("oamip-onnx"),
        load_before=load,
        load_after=load,
        frequency_governor=_read(_FREQUENCY_FILES / "cpu0/cpufreq/scaling_governor") or _UNKNOWN,
        frequency_boost=_boost(),
    )


def warnings(environment: Environment, latencies: Mapping[str, Latency], *, minimum_runs: int = 50) -> list[str]:
    """Return a sentence for each reason to doubt the figures.

    Parameters
    ----------
    environment
        Where they were measured.
    latencies
        The run times by the name of the model in a sentence, such as ``the pruned model``.
    minimum_runs
        Fewer runs than this are worth a word.
    """
    found = []
    load_per_core = environment.load_before / environment.logical_cores
    if load_per_core > BUSY_LOAD_PER_CORE:
        found.append(
            f"The machine was busy before the benchmark (load {environment.load_before:.1f} on "
            f"{environment.logical_cores} cores), so the run times may be too long; end other programs, measure again."
        )
    spreads = {
        name: one.p90_ms / one.p50_ms for name, one in latencies.items() if one.p90_ms > NOISY_SPREAD * one.p50_ms
    }
    if spreads:
        largest = max(spreads.values())
        found.append(
            f"The run times of {_enumerated(spreads)} vary widely (p90 is {'up to ' if len(spreads) > 1 else ''}"
            f"{largest:.1f} times p50); end other programs or use fewer threads, and measure again."
        )
    short = {name: latency.runs for name, latency in latencies.items() if latency.runs < minimum_runs}
    if short:
        found.append(
            f"The time limit left only {min(short.values())} of {minimum_runs} runs for {_enumerated(short)}, so the "
            "percentiles are uncertain; use a smaller batch, or measure fewer models at once."
        )
    return found


def _enumerated(names: Iterable[str]) -> str:
    """Return the first three names, and how many more there are."""
    first, rest = list(names)[:_NAMED], list(names)[_NAMED:]
    if rest:
        return f"{', '.join(first)} and {len(rest)} more"
    return " and ".join(filter(None, [", ".join(first[:-1]), first[-1]]))


def frequency_warning(environment: Environment) -> str:
    """Return a sentence if the CPU changes its frequency by itself, and otherwise an empty text."""
    scales = environment.frequency_governor not in {"performance", _UNKNOWN}
    if not scales and environment.frequency_boost != "on":
        return ""
    reasons = [f"its governor is {environment.frequency_governor!r}"] if scales else []
    reasons += ["its boost is on"] if environment.frequency_boost == "on" else []
    remedy = "choose the governor 'performance'" if scales else "switch the boost off"
    return (
        f"The CPU changes its frequency with load and heat ({' and '.join(reasons)}), so that times of different "
        f"benchmarks differ, while ratios within one do not; {remedy} to compare with another benchmark."
    )


def _boost() -> str:
    boost = _read(_FREQUENCY_FILES / "cpufreq/boost")
    if boost:
        return "on" if boost == "1" else "off"
    no_turbo = _read(_FREQUENCY_FILES / "intel_pstate/no_turbo")
    if no_turbo:
        return "off" if no_turbo == "1" else "on"
    return _UNKNOWN


def _read(path: Path) -> str:
    """Return the content of a file of the system, or an empty text where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""  # another system, or a virtual machine whose host decides


def _load() -> float:
    return round(psutil.getloadavg()[0], 2)


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _stated_version(package: str) -> str:
    return package_version(package) or "not installed"


def _cpu_model() -> str:
    try:
        # Python's own `platform.processor` is empty or only the architecture on Linux.
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not on Linux
    return platform.processor() or platform.machine()
