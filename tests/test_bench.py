"""Latency benchmarks: fair turns, honest intervals, complete records."""

import dataclasses
import json
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import signal

from oamip_onnx.bench import (
    BenchSettings,
    Environment,
    Latency,
    SlowDown,
    Speedup,
    compare,
    compare_latency,
    describe_environment,
    frequency_warning,
    measure_latency,
    median_interval,
    slow_down,
    summarise,
    warnings,
)
from oamip_onnx.bench import environment as environment_module
from oamip_onnx.bench.latency import Measurement, interleave
from oamip_onnx.bench.statistics import _median_interval
from oamip_onnx.errors import DataError, ModelError, UsageError
from oamip_onnx.runtime import RuntimeOptions, Session, session

OPTIONS = RuntimeOptions(threads=1)
QUICK = BenchSettings(minimum_runs=30, minimum_seconds=0.05, warmup_runs=3, warmup_seconds=0.0)
Samples = npt.NDArray[np.float64]


def dense(width: int, layers: int = 1) -> onnx.ModelProto:
    """Return `layers` square matrix products with ReLU from `x` to `y`."""
    weight = numpy_helper.from_array(np.full((width, width), 0.01, np.float32), "w")
    nodes = []
    for layer in range(layers):
        source = "x" if layer == 0 else f"r{layer - 1}"
        target = "y" if layer == layers - 1 else f"r{layer}"
        nodes += [
            helper.make_node("MatMul", [source, "w"], [f"m{layer}"]),
            helper.make_node("Relu", [f"m{layer}"], [target]),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph(nodes, "dense", [x], [y], [weight])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def feeds(width: int, batch: int = 4) -> dict[str, npt.NDArray[np.float32]]:
    return {"x": np.ones((batch, width), np.float32)}


def times(count: int, median_ms: float, generator: np.random.Generator, phi: float = 0.5) -> Samples:
    """Return run times with autocorrelated log-normal noise of 5 %."""
    noise = signal.lfilter([1.0], [1.0, -phi], generator.normal(size=count + 100))[100:] * np.sqrt(1 - phi**2)
    return np.asarray(median_ms * np.exp(0.05 * noise), np.float64)


class FakeClock:
    """A clock that only the runners move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[int] = []

    def __call__(self) -> float:
        return self.now

    def runner(self, index: int, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(index)
            self.now += seconds

        return run


# --- statistics


def test_percentiles_are_those_of_the_samples() -> None:
    found = summarise(np.arange(101, dtype=np.float64))
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.runs) == (50.0, 90.0, 99.0, 101)
    np.testing.assert_allclose(found.percentiles_ms, np.arange(101), rtol=1e-12)


def test_no_samples_are_an_error() -> None:
    with pytest.raises(UsageError, match="No run was measured"):
        summarise(np.empty(0))


@pytest.mark.parametrize(("count", "phi"), [(200, 0.0), (200, 0.5), (500, 0.5)])
def test_bootstrap_interval_holds_the_truth(count: int, phi: float) -> None:
    generator = np.random.default_rng(count)
    hits = 0
    for _ in range(100):
        low, high = _median_interval(times(count, 1.25, generator, phi), generator)
        hits += low <= 1.25 <= high
    assert hits >= 90


def test_equal_models_are_no_significant_change() -> None:
    generator = np.random.default_rng(1)
    found = [
        compare(times(200, 2.0, generator), times(200, 2.0, generator), seed=seed).significant for seed in range(200)
    ]
    assert sum(found) <= 20


@pytest.mark.parametrize("count", [50, 200])
def test_a_tenth_slower_is_found(count: int) -> None:
    generator = np.random.default_rng(2)
    found = 0
    for seed in range(200):
        speedup = compare(times(count, 2.0, generator), times(count, 2.2, generator), seed=seed)
        found += speedup.significant and speedup.median < 1
    assert found >= 180


def test_noise_that_both_models_share_cancels_out() -> None:
    generator = np.random.default_rng(3)
    machine = times(400, 1.0, generator, phi=0.99) ** 10
    speedup = compare(2.2 * machine, 2.0 * machine)
    assert speedup.median == pytest.approx(1.1)
    assert speedup.high - speedup.low < 0.03


def test_speedup_repeats_with_its_seed() -> None:
    generator = np.random.default_rng(4)
    original, pruned = times(100, 2.0, generator), times(100, 1.9, generator)
    assert compare(original, pruned, seed=5) == compare(original, pruned, seed=5)
    assert compare(original, pruned, seed=5) != compare(original, pruned, seed=6)


def test_five_pairs_never_suffice() -> None:
    speedup = compare(np.full(5, 2.0), np.full(5, 1.0))
    assert (speedup.median, speedup.significant) == (2.0, False)


def test_six_equal_pairs_suffice() -> None:
    assert compare(np.full(6, 2.0), np.full(6, 1.0)).significant


def test_unpaired_samples_are_an_error() -> None:
    with pytest.raises(UsageError, match="got 3 and 4"):
        compare(np.ones(3), np.ones(4))


def test_sentences_of_the_speedup() -> None:
    assert Speedup(1.84, 1.8, 1.88, significant=True).describe() == "1.84 times as fast (95 % interval 1.80 to 1.88)"
    assert Speedup(0.98, 0.97, 0.99, significant=True).describe().startswith("slower: 0.980 times as fast")
    assert Speedup(1.0, 0.99, 1.01, significant=False).describe().startswith("no significant change (95 % interval")


def test_interval_of_a_median_holds_the_median_of_its_samples() -> None:
    for values in (np.array([3.0]), np.array([1.0, 2.0, 9.0]), np.linspace(1, 2, 500), np.full(50, 2.0)):
        low, high = median_interval(values)
        assert low <= np.median(values) <= high
    with pytest.raises(UsageError, match="No run was measured"):
        median_interval(np.empty(0))


def measured_apart(ratio: float, generator: np.random.Generator, seed: int) -> SlowDown:
    before, now = times(200, 2.0, generator), times(200, 2.0 * ratio, generator)
    medians = [float(np.median(samples)) for samples in (before, now)]
    return slow_down(medians[0], median_interval(before, seed=seed), medians[1], median_interval(now, seed=seed))


def test_slow_down_of_two_measurements_holds_the_truth() -> None:
    generator = np.random.default_rng(7)
    found = [measured_apart(1.2, generator, seed) for seed in range(100)]
    assert sum(one.low <= 1.2 <= one.high for one in found) >= 90
    assert sum(one.exceeds(0.05) for one in found) >= 90


def test_the_same_speed_is_no_regression() -> None:
    generator = np.random.default_rng(8)
    # An interval of 95 % errs in 2.5 % on this side; even with no limit at all.
    assert sum(measured_apart(1.0, generator, seed).exceeds(0.0) for seed in range(100)) <= 5


def test_a_slow_down_needs_size_and_certainty() -> None:
    certain = slow_down(1.0, (1.0, 1.0), 1.1, (1.1, 1.1))
    assert (certain.exceeds(0.05), certain.exceeds(0.2)) == (True, False)
    assert not slow_down(1.0, (0.8, 1.2), 1.1, (0.9, 1.3)).exceeds(0.05)
    # Exact medians leave the 1 % by which two loads of a model may differ.
    assert (certain.low, certain.high) == pytest.approx((1.1 / 1.01, 1.1 * 1.01))
    with pytest.raises(UsageError, match="not inside its interval"):
        slow_down(1.0, (1.1, 1.2), 1.0, (1.0, 1.0))


# --- turns


def test_every_round_runs_every_model_once_in_random_order() -> None:
    clock = FakeClock()
    runners = [clock.runner(index, 0.001) for index in range(3)]
    interleave(runners, BenchSettings(60, 0.0, 1, 0.0), np.random.default_rng(0), clock)
    rounds = np.array(clock.calls).reshape(-1, 3)
    assert len(rounds) == 61
    assert (np.sort(rounds, axis=1) == [0, 1, 2]).all()
    assert len({tuple(turn) for turn in rounds.tolist()}) == 6


def test_order_repeats_with_its_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        clock = FakeClock()
        runners = [clock.runner(0, 0.1), clock.runner(1, 0.2)]
        interleave(runners, BenchSettings(), np.random.default_rng(seed), clock)
        orders.append(clock.calls)
    assert orders[0] == orders[1] != orders[2]


def test_run_times_belong_to_their_models() -> None:
    clock = FakeClock()
    samples_ms = interleave(
        [clock.runner(0, 0.25), clock.runner(1, 0.5)], BenchSettings(), np.random.default_rng(0), clock
    )
    assert samples_ms.shape == (2, 50)
    np.testing.assert_allclose(samples_ms, [[250.0] * 50, [500.0] * 50])


def test_fast_model_still_gets_its_seconds() -> None:
    clock = FakeClock()
    runners = [clock.runner(0, 0.05), clock.runner(1, 0.01)]
    samples_ms = interleave(runners, BenchSettings(), np.random.default_rng(0), clock)
    assert samples_ms.shape[1] == pytest.approx(300, abs=1)
    assert clock.calls.count(1) - samples_ms.shape[1] == pytest.approx(50, abs=1)


def test_runs_are_limited_for_tiny_models() -> None:
    clock = FakeClock()
    settings = BenchSettings(maximum_runs=1000)
    samples_ms = interleave([clock.runner(0, 1e-6)], settings, np.random.default_rng(0), clock)
    assert samples_ms.shape == (1, 1000)


def test_fuse_ends_the_benchmark_of_a_huge_model() -> None:
    clock = FakeClock()
    samples_ms = interleave([clock.runner(0, 10.0)], BenchSettings(), np.random.default_rng(0), clock)
    assert samples_ms.shape[1] == 9
    assert clock.now == 120.0


def test_fuse_leaves_at_least_one_run() -> None:
    clock = FakeClock()
    samples_ms = interleave([clock.runner(0, 500.0)], BenchSettings(), np.random.default_rng(0), clock)
    assert samples_ms.shape == (1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"minimum_runs": 0},
        {"warmup_runs": 0},
        {"maximum_seconds": 0.0},
        {"warmup_seconds": -1.0},
        {"maximum_runs": 49},
        {"cold_processes": -1},
    ],
)
def test_contradictory_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(BenchSettings(), **change)  # type: ignore[arg-type]


# --- real models


def test_smaller_model_is_faster(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(dense(256, layers=8), path)
    result = compare_latency(path, dense(256, layers=1), feeds(256, batch=16), OPTIONS, settings=QUICK)
    assert result.speedup.significant
    assert result.speedup.median > 1.5
    assert result.original.p50_ms > result.pruned.p50_ms
    assert result.original.p50_ms <= result.original.p90_ms <= result.original.p99_ms
    assert result.original.runs == result.pruned.runs >= QUICK.minimum_runs


def test_model_against_itself_is_near_one() -> None:
    model = dense(128, layers=4)
    result = compare_latency(model, model, feeds(128, batch=16), OPTIONS, settings=QUICK)
    assert result.speedup.median == pytest.approx(1.0, abs=0.2)


def test_figures_are_computed_once() -> None:
    measured = Measurement(np.ones((2, 20)), seed=0)
    assert measured.latencies is measured.latencies
    assert measured.speedup(1) is measured.speedup(1)
    assert measured.speedup(1) is not measured.speedup(0, reference=1)


def test_any_number_of_models() -> None:
    measured = measure_latency([dense(8), dense(8), dense(8)], feeds(8), OPTIONS, settings=QUICK, seed=3)
    assert len(measured.latencies) == 3
    assert measured.speedup(1, reference=2).median == pytest.approx(1 / measured.speedup(2, reference=1).median)


def test_no_model_is_an_error() -> None:
    with pytest.raises(UsageError, match="at least one model"):
        measure_latency([], feeds(8), OPTIONS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"z": np.ones((1, 8), np.float32)}, r"inputs of model 1 are 'x', but the benchmark's data hold 'z'"),
        ({}, "hold nothing"),
        ({"x": np.ones((1, 8))}, r"takes float32 of shape \(N, 8\), but the benchmark's array is float64 of shape"),
        ({"x": np.ones((1, 9), np.float32)}, r"float32 of shape \(1, 9\)"),
        ({"x": np.ones(8, np.float32)}, r"float32 of shape \(8\)"),
    ],
)
def test_wrong_feeds_say_what_is_expected(wrong: dict[str, npt.NDArray[np.generic]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure_latency([dense(8)], wrong, OPTIONS, settings=QUICK)


def test_wrong_feeds_name_the_model_that_refuses_them(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    onnx.save(dense(9), path)
    with pytest.raises(DataError, match=r"Input 'x' of .*other\.onnx"):
        compare_latency(dense(8), path, feeds(8), OPTIONS, settings=QUICK)


def test_provider_that_falls_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(session, "_create", lambda model, settings, _: _cpu_session(model, settings))
    with pytest.raises(UsageError, match="offers CUDAExecutionProvider but fell back to CPUExecutionProvider"):
        measure_latency([dense(8)], feeds(8), RuntimeOptions(provider="cuda"), settings=QUICK)


def _cpu_session(model: onnx.ModelProto, settings: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def test_binding_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    # A provider without memory of its own takes the binding path on any machine.
    monkeypatch.setattr(Session, "provider", "OtherExecutionProvider")
    bindings = []
    original = onnxruntime.InferenceSession.run_with_iobinding

    def spy(self: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> None:
        original(self, binding)
        bindings.append(binding)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", spy)
    bound = Session(dense(8), OPTIONS)
    run = bound.bind(feeds(8))
    assert bindings == []
    run()
    np.testing.assert_allclose(bindings[0].copy_outputs_to_cpu()[0], np.full((4, 8), 0.08, np.float32), rtol=1e-5)


def test_binding_refuses_what_the_model_refuses() -> None:
    with pytest.raises(ModelError, match="failed while running"):
        Session(dense(8), OPTIONS).bind(feeds(9))


# --- environment


def test_environment_is_complete_and_flat() -> None:
    found = describe_environment(RuntimeOptions(provider="CPU", threads=3)).after()
    record = json.loads(json.dumps(dataclasses.asdict(found)))
    assert all(isinstance(value, str | int | float) for value in record.values())
    assert all(value != "" for value in record.values())
    assert (found.provider, found.threads, found.python) == ("cpu", 3, platform.python_version())
    assert (found.onnx, found.onnxruntime) == (onnx.__version__, onnxruntime.__version__)
    assert platform.node() not in json.dumps(record).split()


def test_quiet_machine_gets_no_warning() -> None:
    assert warnings(environment(load=0.9), {"the model": latency(1.0, 1.4, 50)}) == []


def test_busy_machine_noise_and_few_runs_are_warned_of() -> None:
    latencies = {"the original model": latency(1.0, 1.6, 50), "the pruned model": latency(1.0, 1.0, 7)}
    busy, noisy, short = warnings(environment(load=1.1), latencies)
    assert "load 1.1 on 2 cores" in busy
    assert "the original model vary widely (p90 is 1.6 times p50)" in noisy
    assert "only 7 of 50 runs for the pruned model" in short


def test_a_sweep_names_its_noisy_rows_in_one_sentence() -> None:
    noisy = {f"m{number}": latency(1.0, 2.0 + number, 7) for number in range(5)}
    spread, short = warnings(environment(load=0.0), noisy)
    assert "The run times of m0, m1, m2 and 2 more vary widely (p90 is up to 6.0 times p50)" in spread
    assert "only 7 of 50 runs for m0, m1, m2 and 2 more" in short


@pytest.mark.parametrize(
    ("governor", "boost", "said"),
    [
        ("powersave", "on", ["its governor is 'powersave' and its boost is on", "choose the governor 'performance'"]),
        ("schedutil", "off", ["(its governor is 'schedutil')"]),
        ("performance", "on", ["(its boost is on)", "switch the boost off"]),
        ("performance", "off", []),
        ("unknown", "unknown", []),
    ],
)
def test_a_changing_frequency_is_warned_of(governor: str, boost: str, said: list[str]) -> None:
    found = dataclasses.replace(environment(load=0.0), frequency_governor=governor, frequency_boost=boost)
    sentence = frequency_warning(found)
    assert bool(sentence) == bool(said)
    assert all(part in sentence for part in said)


@pytest.mark.parametrize(
    ("file", "content", "boost"),
    [("cpufreq/boost", "1\n", "on"), ("intel_pstate/no_turbo", "1\n", "off"), ("other", "1", "unknown")],
)
def test_frequency_is_read_from_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str, boost: str
) -> None:
    monkeypatch.setattr(environment_module, "_FREQUENCY_FILES", tmp_path)
    for name, text in ((file, content), ("cpu0/cpufreq/scaling_governor", "powersave\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = describe_environment(OPTIONS)
    assert (found.frequency_governor, found.frequency_boost) == ("powersave", boost)


def latency(p50_ms: float, p90_ms: float, runs: int) -> Latency:
    return Latency(p50_ms, p90_ms, p90_ms, runs, (p50_ms,) * 101)


def environment(load: float) -> Environment:
    found = describe_environment(OPTIONS)
    return dataclasses.replace(found, logical_cores=2, load_before=load, load_after=load)
