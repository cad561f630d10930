"""Execution providers: what a build offers is taken by its name, what does not start is said, devices are bound to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from command import failed, oamip
from graphs import GRAPHS
from oracle import analysed

import oamip_onnx
from oamip_onnx.bench import BenchSettings, measure_latency
from oamip_onnx.budget.counting import CostCounter
from oamip_onnx.errors import OamipError, UsageError
from oamip_onnx.latency.measuring import measure
from oamip_onnx.runtime import RuntimeOptions, Session, available_providers, options_that_start, short_name
from oamip_onnx.runtime import session as session_module
from oamip_onnx.runtime.providers import PROVIDERS

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
X = {"x": np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)}

# Providers that run on devices, by short name, that this build of ONNX Runtime offers and that start here.
DEVICES = [
    name
    for name in available_providers()
    if name in set(PROVIDERS) - {"cpu"} and not options_that_start(RuntimeOptions(name))[1]
]


class Build:
    """A build of ONNX Runtime that offers providers which this machine does not have; all of them run on the CPU.

    Attributes
    ----------
    offered
        ONNX Runtime's names.
    broken
        Those that fall back to the CPU as soon as a session is made.
    sessions
        The providers that each session was asked for.
    bound
        The calls of input and output bindings: name and memory.
    """

    def __init__(self, *offered: str, broken: tuple[str, ...] = ()) -> None:
        self.offered, self.broken = [*offered, CPU], broken
        self.sessions: list[list[str]] = []
        self.patterns: list[bool] = []
        self.bound: list[tuple[str, str]] = []

    def create(self, model: Any, settings: Any, providers: list[str], **more: Any) -> Any:
        assert more == {"enable_fallback": 0}
        self.sessions.append(providers)
        self.patterns.append(settings.enable_mem_pattern)
        real = _create(model, settings, providers=[CPU])
        return _Stub(real, [CPU] if providers[0] in self.broken else providers, self)


class _Stub:
    """A session that says it runs on a device, and binds to the memory of the CPU in its place."""

    def __init__(self, real: onnxruntime.InferenceSession, providers: list[str], build: Build) -> None:
        self._real, self._providers, self._build = real, providers, build

    def get_providers(self) -> list[str]:
        return self._providers

    def io_binding(self) -> "_Binding":
        return _Binding(self._real.io_binding(), self._build)

    def run_with_iobinding(self, binding: "_Binding") -> None:
        self._real.run_with_iobinding(binding.real)
        self._build.bound.append(("run", ""))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Binding:
    def __init__(self, real: onnxruntime.IOBinding, build: Build) -> None:
        self.real, self._build = real, build

    def bind_ortvalue_input(self, name: str, value: tuple[np.ndarray[Any, Any], str]) -> None:
        self._build.bound.append((name, value[1]))
        self.real.bind_cpu_input(name, value[0])

    def bind_output(self, name: str, memory: str, _device: int) -> None:
        self._build.bound.append((name, memory))
        self.real.bind_output(name, "cpu", 0)

    def synchronize_outputs(self) -> None:
        self._build.bound.append(("synchronise", ""))


_create = onnxruntime.InferenceSession


@pytest.fixture
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    made: Build = request.param
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: made.offered)
    monkeypatch.setattr(onnxruntime, "InferenceSession", made.create)
    # Arrays on a device: here the array, and the memory it was meant for.
    stub = type("OrtValue", (), {"ortvalue_from_numpy": staticmethod(lambda array, memory, _: (array, memory))})
    monkeypatch.setattr(session_module.onnxruntime, "OrtValue", stub)
    yield made
    made.sessions.clear()


def offering(*builds: Build) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("build", builds, indirect=True)


@offering(Build(TENSORRT, CUDA, "DmlExecutionProvider", "XnnpackExecutionProvider"))
def test_names_are_short_and_known_ones_have_their_usual_name(build: Build) -> None:
    assert available_providers() == ["tensorrt", "cuda", "directml", "xnnpack", "cpu"]
    for name in ("directml", "dml", "DmlExecutionProvider", "DirectML"):
        assert RuntimeOptions(name).provider_names() == ["DmlExecutionProvider", CPU], name
    assert RuntimeOptions("xnnpack").provider_names() == ["XnnpackExecutionProvider", CPU]
    assert [short_name(name) for name in build.offered] == available_providers()


@offering(Build(TENSORRT, CUDA), Build(TENSORRT))
def test_cuda_takes_what_tensorrt_has_no_kernel_for(build: Build) -> None:
    assert RuntimeOptions("tensorrt").provider_names() == build.offered
    assert RuntimeOptions("cpu").provider_names() == [CPU]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "run: pip uninstall onnxruntime && pip install onnxruntime-gpu; or use --provider cpu."),
        ("tensorrt", "pip install onnxruntime-gpu"),
        ("openvino", "pip install onnxruntime-openvino"),
        ("directml", "run on Windows: pip uninstall onnxruntime && pip install onnxruntime-directml"),
        ("coreml", "run on macOS"),
        ("cpuu", "did you mean 'cpu'"),
        ("warp", r"available: .*cpu\. Install the package that brings it, or use --provider cpu\."),
    ],
)
def test_a_provider_that_is_missing_names_what_brings_it(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider", CPU])
    with pytest.raises(UsageError, match=message):
        RuntimeOptions(name).provider_names()


@offering(Build(CUDA))
def test_inputs_and_outputs_are_bound_to_the_device_once_and_each_run_waits(build: Build) -> None:
    run = Session(GRAPHS["residual"](), RuntimeOptions("cuda")).bind(X)
    assert build.sessions == [[CUDA, CPU]]
    assert [entry for entry in build.bound if entry[0] in X] == [("x", "cuda")]
    assert {memory for _, memory in build.bound} == {"cuda"}
    before = len(build.bound)
    run()
    run()
    assert build.bound[before:] == [("run", ""), ("synchronise", "")] * 2


@offering(Build("DmlExecutionProvider"))
def test_directml_gets_no_memory_pattern_and_its_own_memory(build: Build) -> None:
    Session(GRAPHS["residual"](), RuntimeOptions("directml")).bind(X)
    assert build.patterns == [False]
    assert {memory for _, memory in build.bound} == {"dml"}


@offering(Build("OpenVINOExecutionProvider"))
def test_openvino_is_bound_to_the_memory_of_the_cpu(build: Build) -> None:
    Session(GRAPHS["residual"](), RuntimeOptions("openvino")).bind(X)
    assert {memory for _, memory in build.bound} == {"cpu"}
    assert build.patterns == [True]


@offering(Build(CUDA))
def test_prune_calibrates_verifies_and_times_on_the_provider(build: Build, work: Path) -> None:
    ran = oamip(
        "prune", "model.onnx", "out.onnx", "--data", "data.npz", "--provider", "cuda", "--importance", "activation",
        "--json", "result.json", cwd=work,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "does not start" not in ran.err
    # Shapes are a matter of the CPU; whatever else runs the model does so on the provider.
    assert build.sessions.count([CUDA, CPU]) > 5
    assert [CUDA, CPU] in build.sessions
    assert ("run", "") in build.bound
    assert '"provider": "cuda"' in (work / "result.json").read_text()


@offering(Build(CUDA))
def test_latencies_for_a_target_are_of_the_provider(build: Build) -> None:
    found = analysed(GRAPHS["residual"]())
    macs = CostCounter(found.model, found.analysis).macs_by_node()
    widths = [tuple(group.width for group in found.analysis.groups)]
    build.sessions.clear()
    options = RuntimeOptions("cuda", 1)
    measured = measure(found.model, found.analysis, macs, widths, X, options, seed=0, progress=lambda _: None)
    assert measured.total_ms[0] > 0
    # Profiled and timed; both with tensors that stay on the device.
    assert build.sessions == [[CUDA, CPU]] * 2
    assert build.bound.count(("run", "")) > 10


@offering(Build(CUDA, broken=(CUDA,)))
def test_a_provider_that_does_not_start_gives_way_to_the_cpu_and_that_is_said(build: Build, work: Path) -> None:
    ran = oamip("prune", "model.onnx", "out.onnx", "--data", "data.npz", "--provider", "cuda", "--importance",
                "magnitude", "--json", "result.json", cwd=work)  # fmt: skip
    assert ran.code == 0, ran.err
    note = "ONNX Runtime offers CUDAExecutionProvider, but it does not start here, so everything ran on the CPU"
    assert note in " ".join(ran.err.split())
    assert build.sessions.count([CUDA, CPU]) == 1
    result = (work / "result.json").read_text()
    assert '"provider": "cpu"' in result
    assert note in result


@offering(Build(CUDA, broken=(CUDA,)))
@pytest.mark.usefixtures("build")
def test_figures_of_the_wrong_device_are_refused(work: Path) -> None:
    ran = oamip("prune", "model.onnx", "out.onnx", "--data", "data.npz", "--provider", "cuda", "--target",
                "latency=0.5", cwd=work)  # fmt: skip
    failed(ran, 2, "limits a latency on cuda, which does not start here", work)
    ran = oamip("bench", "model.onnx", "--provider", "cuda", cwd=work)
    failed(ran, 2, "but fell back to CPUExecutionProvider", work)


@offering(Build(CUDA, broken=(CUDA,)))
@pytest.mark.usefixtures("build")
def test_export_says_that_a_provider_does_not_start(work: Path) -> None:
    report = oamip_onnx.export(
        work / "model.onnx", work / "half.onnx", format="fp16", data=work / "data.npz", provider="cuda", bench=False
    )
    assert any("does not start here" in note for note in report.notes)


# --- on a device: the same promises, with nothing in the place of the provider


@pytest.fixture(params=DEVICES or ["none"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "none":
        pytest.skip("ONNX Runtime starts no provider of a device here")
    return str(request.param)


@pytest.mark.gpu
def test_a_device_computes_what_the_cpu_computes(device: str) -> None:
    model = GRAPHS["residual"]()
    here, there = (Session(model, RuntimeOptions(name)).run(X) for name in ("cpu", device))
    for name, values in here.items():
        # TensorFloat-32 keeps 10 bits of the mantissa.
        np.testing.assert_allclose(there[name], values, rtol=2e-2, atol=2e-2 * float(np.abs(values).max()))


@pytest.mark.gpu
def test_a_device_is_measured_with_bound_tensors(device: str) -> None:
    quick = BenchSettings(minimum_runs=10, minimum_seconds=0.1, maximum_seconds=5)
    (found,) = measure_latency([GRAPHS["residual"]()], X, RuntimeOptions(device), settings=quick).latencies
    assert found.p50_ms > 0


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["macs=0.5", "latency=0.9"])
def test_prune_works_on_a_device(device: str, target: str, work: Path) -> None:
    ran = oamip("prune", "model.onnx", "out.onnx", "--data", "data.npz", "--provider", device, "--target", target,
                cwd=work)  # fmt: skip
    # A network of a few channels may have no narrower form that is faster on a device.
    assert ran.code in ({0, 3} if target.startswith("latency") else {0}), ran.err
    if ran.code == 0:
        onnx.checker.check_model(str(work / "out.onnx"), full_check=True)
    else:
        assert "error[target]" in ran.err


def test_errors_of_a_run_on_a_provider_are_of_this_package(work: Path) -> None:
    with pytest.raises(OamipError, match="no provider 'warp'"):
        oamip_onnx.export(work / "model.onnx", work / "out.ort", format="ort", provider="warp")
