"""Looks at the installation and at the machine: what is there, what works, which widths pay."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import onnxruntime
import psutil

from oamip_onnx.bench import describe_environment, measure_alignment, package_version
from oamip_onnx.converters.base import ENTRY_POINT_GROUP  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.converters.common import is_installed  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import first_line
from oamip_onnx.report.doctor import (
    AlignmentRecord,
    CacheRecord,
    CheckRecord,
    ConverterRecord,
    CpuRecord,
    DoctorReport,
    ExtraRecord,
)
from oamip_onnx.runtime import RuntimeOptions
from oamip_onnx.runtime.providers import CPU, trial_model
from oamip_onnx.tasks import default_cache

PACKAGE = "oamip-onnx"

# Extras for those who work on this package.
_DEVELOPERS = frozenset({"dev", "docs"})

# Both builds of ONNX Runtime bring the same module; the second would overwrite the first.
_COMMANDS = {"gpu": "pip uninstall onnxruntime && pip install onnxruntime-gpu"}

# Builds of ONNX Runtime; the last one that is installed is the one to stay.
_BUILDS = ("onnxruntime", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-gpu")

# A provider may take long to start the first time, and a broken one may never end.
_PROVIDER_SECONDS = 120

# In a process of its own: a broken provider may end it, and says why on standard error only.
_START = """
import sys
import numpy
import onnxruntime
session = onnxruntime.InferenceSession(sys.stdin.buffer.read(), providers=list(dict.fromkeys(sys.argv[1:])))
session.run(None, {"x": numpy.ones((1, 2), numpy.float32)})
print(session.get_providers()[0])
"""

# Distributions of solvers that cvxpy knows by another name.
_DISTRIBUTIONS = {"HIGHS": "highspy", "GUROBI": "gurobipy", "SCIP": "pyscipopt", "CPLEX": "cplex"}

_VECTORS = re.compile(r"sse4_2|avx\w*|fma|f16c|amx_\w+|asimd\w*|neon|sve\w*|bf16|i8mm|altivec|vsx")

_TOLERANCE = 1e-3


def examine(*, measure: bool = True, seconds: float = 4.0) -> DoctorReport:
    """Return what is installed, what works, and which widths pay on this CPU.

    Parameters
    ----------
    measure
        Whether the widths are measured.
    seconds
        About how long to measure.
    """
    # The load before anything is tried here.
    environment = describe_environment(RuntimeOptions())
    providers = [_try_provider(name) for name in onnxruntime.get_available_providers()]
    providers += _overwritten()
    solvers = [_try_scip(), *_try_solvers_of_cvxpy()]
    if not any(check.name == CPU for check in providers):
        providers.append(_check(CPU, needed=True, reason="This build of ONNX Runtime has none."))
    return DoctorReport(
        healthy=all(check.works for check in [*providers, *solvers] if check.needed),
        operating_system=environment.operating_system,
        packages={PACKAGE: environment.oamip_onnx, "python": environment.python, **_dependencies()},
        providers=providers,
        solvers=sorted(solvers, key=lambda check: not check.needed),
        extras=_extras(),
        converters=_converters(),
        cache=_cache(),
        cpu=CpuRecord(
            model=environment.cpu,
            logical_cores=environment.logical_cores,
            physical_cores=psutil.cpu_count(logical=False),
            vector_extensions=vector_extensions(),
            load=environment.load_before,
        ),
        alignment=_alignment(seconds) if measure else [],
    )


def requirements() -> Iterator[tuple[str, str | None]]:
    """Yield the packages that this one asks for, each with the extra that it belongs to; None for those always needed.

    Read from the installed package, so that a new extra needs no change here.
    """
    for text in metadata.requires(PACKAGE) or ():
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", text)
        name = re.match(r"[A-Za-z0-9][\w.-]*", text)
        if name is not None:
            yield name.group(), None if extra is None else extra.group(1)


def vector_extensions(file: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return the vector extensions that the first processor of Linux's list names; none on other systems."""
    if not file.is_file():
        return []
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, flags = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return [flag for flag in flags.split() if _VECTORS.fullmatch(flag)]
    return []


def _check(name: str, *, needed: bool, reason: str = "", version: str = "") -> CheckRecord:
    return CheckRecord(name=name, version=version, needed=needed, works=not reason, detail=reason)


def _try_provider(name: str) -> CheckRecord:
    """Start a session of a tiny model on a provider, and see which one it runs on."""
    needed, version = name == CPU, str(onnxruntime.__version__)
    # Without -P the folder that the user is in would be searched first, and its modules taken for those of Python.
    command = [sys.executable, "-P", "-c", _START, name, CPU]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, and names that ONNX Runtime gives
            command, input=trial_model(), capture_output=True, timeout=_PROVIDER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return _check(name, needed=needed, version=version, reason=f"It did not start in {_PROVIDER_SECONDS} seconds.")
    started = (done.stdout.decode(errors="replace").split() or [""])[-1]  # behind what a provider may print itself
    if done.returncode == 0 and started == name:
        return _check(name, needed=needed, version=version)
    said = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode == 0:
        why = (
            f": {_plain(said[0])}" if said else "; it has no kernel for a matrix product, or its libraries are missing."
        )
        return _check(name, needed=needed, version=version, reason=f"ONNX Runtime fell back to {started}{why}")
    return _check(
        name, needed=needed, version=version, reason=_plain(said[-1]) if said else f"It ended with {done.returncode}."
    )


def _overwritten() -> list[CheckRecord]:
    """Return a finding if several builds of ONNX Runtime are installed, which bring the same module."""
    builds = [name for name in _BUILDS if package_version(name)]
    if len(builds) < 2:
        return []
    named, best = " and ".join(builds), builds[-1]
    reason = (
        f"{named} are installed over each other, so which one runs is chance; "
        f"run: pip uninstall {' '.join(builds)} && pip install {best}"
    )
    return [_check("onnxruntime", needed=False, version=str(onnxruntime.__version__), reason=reason)]


def _plain(line: str) -> str:
    """Return a line of ONNX Runtime's log without colours, time, source file, function and codes."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", line)
    text = re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^\S+ \S+ \[[A-Z]:[^\]]*\]\s*", "", text)


def _try_solvers_of_cvxpy() -> list[CheckRecord]:
    """Try every solver that cvxpy finds, CLARABEL first; SCIP is used without cvxpy."""
    try:
        import cvxpy  # noqa: PLC0415 - takes 0.9 s to import, and a broken one is a finding
    except Exception as error:  # noqa: BLE001 - its libraries may fail to load in any way
        return [_check("CLARABEL", needed=True, reason=f"cvxpy cannot be imported: {first_line(error)}")]
    names = [name for name in cvxpy.installed_solvers() if name != "SCIP"]
    missing = [_check("CLARABEL", needed=True, reason="cvxpy does not find it; pip install clarabel.")]
    return [*([] if "CLARABEL" in names else missing), *(_try_cvxpy(name) for name in names)]


def _try_cvxpy(name: str) -> CheckRecord:
    """Solve a tiny program by a solver that cvxpy finds: with exponential cones, as OAMIP's, for CLARABEL."""
    import cvxpy  # noqa: PLC0415 - as above

    x = cvxpy.Variable(3)
    if name == "CLARABEL":
        problem, expected = cvxpy.Problem(cvxpy.Minimize(cvxpy.log_sum_exp(x)), [cvxpy.sum(x) == 0]), 1.0986
    else:
        problem, expected = cvxpy.Problem(cvxpy.Minimize(x @ [1.0, 2.0, 3.0]), [cvxpy.sum(x) >= 1, x >= 0]), 1.0
    return _solve(name, lambda: float(problem.solve(solver=name)), expected, needed=name == "CLARABEL")


def _try_scip() -> CheckRecord:
    """Fill a tiny knapsack by SCIP."""

    def solve() -> float:
        import pyscipopt  # noqa: PLC0415 - loads SCIP's shared library

        model = pyscipopt.Model()
        model.hideOutput()
        chosen = [model.addVar(vtype="B") for _ in range(3)]
        model.addCons(2 * chosen[0] + 3 * chosen[1] + chosen[2] <= 5)
        model.setObjective(5 * chosen[0] + 4 * chosen[1] + 3 * chosen[2], "maximize")
        model.optimize()
        return float(model.getObjVal())

    return _solve("SCIP", solve, 9.0, needed=True)


def _solve(name: str, solve: Callable[[], float], expected: float, *, needed: bool) -> CheckRecord:
    version = package_version(_DISTRIBUTIONS.get(name, name.lower())) or ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the answer is checked
            found = solve()
    except Exception as error:  # noqa: BLE001 - a solver may fail in any way, a missing licence included
        return _check(name, needed=needed, version=version, reason=first_line(error))
    wrong = abs(found - expected) > _TOLERANCE
    reason = f"It answers {found:.6g} to a program whose optimum is {expected:.6g}." if wrong else ""
    return _check(name, needed=needed, version=version, reason=reason)


def _dependencies() -> dict[str, str]:
    found = {name: package_version(name) or "not installed" for name, extra in requirements() if extra is None}
    # The module knows better than the package: it may come as onnxruntime-gpu or another build.
    return found | {"onnxruntime": str(onnxruntime.__version__)}


def _extras() -> list[ExtraRecord]:
    packages: dict[str, dict[str, str | None]] = {}
    for name, extra in requirements():
        if extra is not None and extra not in _DEVELOPERS:
            packages.setdefault(extra, {})[name] = package_version(name)
    return [
        ExtraRecord(
            name=extra,
            installed=all(version is not None for version in found.values()),
            packages=found,
            command=_COMMANDS.get(extra, f"pip install '{PACKAGE}[{extra}]'"),
        )
        for extra, found in packages.items()
    ]


def _converters() -> list[ConverterRecord]:
    have = {extra.name: extra.installed for extra in _extras()}
    found = []
    for point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name):
        package = "" if point.dist is None else point.dist.name
        extra, detail = "", ""
        try:
            loaded = point.load()
            extra, command = str(getattr(loaded, "extra", "")), str(getattr(loaded, "install", ""))
            missing = [name for name in getattr(loaded, "packages", ()) if not is_installed(name)]
        except Exception as error:  # noqa: BLE001 - another package's code may fail in any way
            detail = f"It cannot be loaded: {first_line(error)}"
        else:
            if not have.get(extra, True):
                detail = f"It needs pip install '{PACKAGE}[{extra}]'."
            elif missing:
                detail = f"It needs {command}." if command else f"It needs {' and '.join(missing)}."
        found.append(ConverterRecord(name=point.name, package=package, extra=extra, usable=not detail, detail=detail))
    return found


def _cache() -> CacheRecord:
    folder = default_cache()
    if folder is None:
        return CacheRecord(path=None, exists=False, writable=False, size_bytes=0)
    try:
        # The folder is made when the first program is solved: until then its nearest parent counts.
        place = next(p for p in [folder, *folder.parents] if p.exists())
        size = sum(file.stat().st_size for file in folder.glob("??/*") if file.is_file())
        writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
        return CacheRecord(path=str(folder), exists=folder.is_dir(), writable=writable, size_bytes=size)
    except OSError as error:  # a folder that this user may not look into, or a name that the system does not take
        detail = error.strerror or first_line(error)
        return CacheRecord(path=str(folder), exists=False, writable=False, size_bytes=0, detail=detail)


def _alignment(seconds: float) -> list[AlignmentRecord]:
    found = []
    for alignment in measure_alignment(seconds):
        relative = {str(multiple): round(cost, 4) for multiple, cost in alignment.relative.items()}
        found.append(AlignmentRecord(**{**asdict(alignment), "relative": relative}))
    return found
