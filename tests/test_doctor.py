"""`oamip doctor`: what works is tried, what does not is named with the reason, and widths are measured."""

import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cvxpy
import numpy as np
import onnxruntime
import pytest
from command import failed, oamip
from rich.console import Console

from oamip_onnx import doctor
from oamip_onnx.bench import MULTIPLES, Alignment, find_alignment, measure_alignment

WIDTHS = [97, 107, 117, 127, 98, 106, 118, 126, 100, 108, 116, 124, 104, 120, 112, 96, 128]


# As ONNX Runtime logs it, with colours.
LOG = (
    b"\x1b[1;31m2026-01-01 01:02:03.4 [E:onnxruntime:Default, bridge.cc:2458 operator()] /src/bridge.cc:2043 Get() "
    b"[ONNXRuntimeError] : 1 : FAIL : Failed to load library x.so with error: libc.so.13: no\n\x1b[m\n"
)


@pytest.fixture(scope="module")
def examined() -> dict[str, Any]:
    ran = oamip("doctor", "--seconds", "0.5", "--json", "-")
    assert ran.code == 0, ran
    return json.loads(ran.out)


def test_a_sound_installation_is_healthy(examined: dict[str, Any]) -> None:
    assert examined["healthy"] is True
    works = {check["name"]: check["works"] for check in [*examined["providers"], *examined["solvers"]]}
    assert works["CPUExecutionProvider"]
    assert works["CLARABEL"]
    assert works["SCIP"]
    assert set(works) >= {*onnxruntime.get_available_providers(), *cvxpy.installed_solvers()}
    assert examined["packages"]["onnxruntime"] == onnxruntime.__version__
    assert {"python", "onnx", "cvxpy", "pyscipopt", "pydantic"} <= set(examined["packages"])
    assert "pytest" not in examined["packages"]
    extras = {extra["name"]: extra for extra in examined["extras"]}
    assert {"gpu", "torch", "report", "dask"} <= set(extras)
    assert not {"dev", "docs"} & set(extras)
    assert extras["torch"]["command"] == "pip install 'oamip-onnx[torch]'"
    assert extras["gpu"]["command"].startswith("pip uninstall onnxruntime")
    assert "torch" in {converter["name"] for converter in examined["converters"]}
    assert examined["cache"]["writable"]
    assert examined["cpu"]["logical_cores"] >= 1


def test_widths_are_measured(examined: dict[str, Any]) -> None:
    assert [found["operator"] for found in examined["alignment"]] == ["Conv", "MatMul"]
    for found in examined["alignment"]:
        assert found["multiple"] in MULTIPLES
        assert found["relative"]["32"] == 1
        assert set(found["relative"]) == set(map(str, MULTIPLES))
        assert found["runs"] >= 1


def test_page_is_readable_on_a_narrow_console(examined: dict[str, Any]) -> None:
    report = doctor.DoctorReport.model_validate(examined)
    for width in (40, 100):
        console = Console(file=io.StringIO(), width=width, no_color=True)
        console.print(report)
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width
        for word in (
            "onnxruntime",
            "CLARABEL",
            "SCIP",
            "CPU",
            "Extras",
            "--round-to",
            "Everything that is needed works",
        ):
            assert word in text


def test_what_every_run_needs_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvxpy, "installed_solvers", lambda: ["SCS"])
    ran = oamip("doctor", "--no-measure")
    assert ran.code == 1
    assert "does not work (needed): cvxpy does not find it; pip install clarabel." in ran.out
    assert "Not well: CLARABEL does not work." in ran.out
    monkeypatch.setattr(doctor, "_try_scip", lambda: doctor._check("SCIP", needed=True, reason="It is broken."))
    assert "Not well: SCIP, CLARABEL do not work." in oamip("doctor", "--no-measure").out
    ran = oamip("doctor", "--no-measure", "--json", "-")
    assert (ran.code, json.loads(ran.out)["healthy"], json.loads(ran.out)["alignment"]) == (1, False, [])


def test_a_solver_is_believed_only_if_its_answer_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._try_cvxpy("CLARABEL").works
    missing = doctor._try_cvxpy("MOSEK")
    assert not missing.works
    assert "MOSEK" in missing.detail
    monkeypatch.setattr(cvxpy.Problem, "solve", lambda *_, **__: 2.0)
    wrong = doctor._try_cvxpy("SCS")
    assert (wrong.works, wrong.needed) == (False, False)
    assert wrong.detail == "It answers 2 to a program whose optimum is 1."


def test_a_provider_that_does_not_start_says_why() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = doctor._try_provider("WarpExecutionProvider")
    assert (found.works, found.needed) == (False, False)
    assert "WarpExecutionProvider" in found.detail
    assert doctor._try_provider("CPUExecutionProvider").works


@pytest.mark.parametrize(
    ("code", "out", "err", "reason"),
    [
        (
            0,
            b"*** EP Error ***\nCPUExecutionProvider\n",
            LOG,
            "ONNX Runtime fell back to CPUExecutionProvider: Failed to load library x.so with error: libc.so.13: no",
        ),
        (-11, b"", b"", "It ended with -11."),
        (1, b"", b"Traceback\nRuntimeError: no device\n", "RuntimeError: no device"),
    ],
)
def test_the_reason_of_a_provider_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, code: int, out: bytes, err: bytes, reason: str
) -> None:
    done = SimpleNamespace(returncode=code, stdout=out, stderr=err)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    found = doctor._try_provider("CUDAExecutionProvider")
    assert (found.works, found.detail) == (False, reason)


def test_builds_that_overwrite_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._overwritten() == []
    installed = {"onnxruntime": "1.20.0", "onnxruntime-gpu": "1.20.0"}
    monkeypatch.setattr(doctor, "package_version", installed.get)
    (found,) = doctor._overwritten()
    assert not found.works
    assert "run: pip uninstall onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in found.detail
    assert oamip("doctor", "--no-measure").out.count("installed over each other") == 1


def test_new_extras_appear_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        "numpy>=1.26",
        'no-such-package>=1; extra == "sparkle"',
        'numpy; extra == "plain"',
        'ruff; extra == "dev"',
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: listed)
    found = {extra.name: extra for extra in doctor._extras()}
    assert set(found) == {"sparkle", "plain"}
    assert (found["sparkle"].installed, found["sparkle"].packages) == (False, {"no-such-package": None})
    assert found["sparkle"].command == "pip install 'oamip-onnx[sparkle]'"
    assert found["plain"].installed
    assert set(doctor._dependencies()) == {"numpy", "onnxruntime"}


def test_a_converter_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ImportError("no framework")

    broken = SimpleNamespace(name="broken", dist=SimpleNamespace(name="other"), load=load)
    monkeypatch.setattr(doctor.metadata, "entry_points", lambda **_: [broken])
    (found,) = doctor._converters()
    assert (found.package, found.usable, found.detail) == ("other", False, "It cannot be loaded: no framework")


def test_a_cache_folder_that_cannot_be_looked_into_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("OAMIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "exists", refuse)
    found = doctor._cache()
    assert not found.writable
    assert found.describe() == f"{tmp_path / 'cache'} (not writable: Permission denied)"


def test_modules_of_the_present_folder_are_not_taken_for_those_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('the wrong module')")
    monkeypatch.chdir(tmp_path)
    assert doctor._try_provider("CPUExecutionProvider").works


def test_the_cache_folder_is_looked_at_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAMIP_CACHE_DIR", str(tmp_path / "cache"))
    found = doctor._cache()
    assert (found.exists, found.writable, found.size_bytes) == (False, True, 0)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache" / "ab").mkdir(parents=True)
    (tmp_path / "cache" / "ab" / "entry.npz").write_bytes(b"12345")
    assert doctor._cache().size_bytes == 5
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OAMIP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert not doctor._cache().writable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu sse4_2 fma avx2 avx512f avx512_vnni amx_tile\n", ["sse4_2", "fma", "avx2", "avx512f"]),
        ("processor : 0\nFeatures\t: fp asimd sve bf16\n", ["asimd", "sve", "bf16"]),
        ("nothing\n", []),
    ],
)
def test_vector_extensions(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert doctor.vector_extensions(tmp_path / "cpuinfo")[: len(expected)] == expected
    assert doctor.vector_extensions(tmp_path / "none") == []


def timings(block: int, *, waste: float = 1.0, runs: int = 40, noise: float = 0.0) -> dict[int, list[float]]:
    """Return made-up run times of kernels that round widths up to a block, as far as `waste` says."""
    generator = np.random.default_rng(0)
    slow = generator.uniform(1, 3, runs)  # whole rounds are slow now and then
    padded = {width: width + waste * (-width % block) for width in WIDTHS}
    return {w: list(cost * slow * generator.uniform(1 - noise, 1 + noise, runs)) for w, cost in padded.items()}


@pytest.mark.parametrize("block", MULTIPLES)
def test_the_block_of_made_up_kernels_is_found(block: int) -> None:
    found = find_alignment("Conv", timings(block, waste=8.0, noise=0.02))
    assert found == Alignment("Conv", block, found.relative, 40, is_sure=True)
    assert found.relative[32] == 1
    assert all(cost == pytest.approx(1, abs=0.02) for multiple, cost in found.relative.items() if multiple >= block)


def test_a_small_waste_does_not_count() -> None:
    assert find_alignment("Conv", timings(32, waste=0.1)).multiple == 1
    # What a smaller multiple gains by chance does not help where a larger one loses.
    times = timings(1)
    times[112] = [2 * time for time in times[112]]
    assert find_alignment("Conv", times).multiple == 32


def test_few_or_contradicting_runs_are_not_sure() -> None:
    assert not find_alignment("Conv", timings(8, runs=5)).is_sure
    times = timings(8, waste=3.0)
    flat = timings(1)
    mixed = {w: [times[w][i] if i % 2 else flat[w][i] for i in range(40)] for w in WIDTHS}
    assert not find_alignment("Conv", mixed).is_sure


def test_measuring_keeps_to_its_time() -> None:
    convolution, product = measure_alignment(0.4)
    assert (convolution.operator, product.operator) == ("Conv", "MatMul")
    assert set(convolution.relative) == set(MULTIPLES)


def test_errors(work: Path) -> None:
    failed(oamip("doctor", "--seconds", "0", cwd=work), 2, "--seconds")
    failed(oamip("doctor", "--json", "no/r.json", cwd=work), 3, "does not exist")
