"""The yardstick of a benchmark: it costs little, and takes the speed of the machine out of comparisons."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from command import failed, oamip
from onnx import numpy_helper

from oamip_onnx.bench import (
    YARDSTICK_VERSION,
    BenchSettings,
    YardstickRatio,
    in_yardsticks,
    latency,
    measure_latency,
    slow_down_in_yardsticks,
    yardstick_feeds,
    yardstick_model,
)
from oamip_onnx.bench.latency import take_turns
from oamip_onnx.errors import ModelError, UsageError
from oamip_onnx.report import read_bench_report
from oamip_onnx.runtime import RuntimeOptions, Session

Samples = npt.NDArray[np.float64]

# Long enough for narrow intervals; the clock of these tests costs nothing.
MEASURED = ["--seconds", "0", "--runs", "500", "--no-cold-start"]
MODEL_S, YARDSTICK_S = 0.002, 0.0004


class NoisyClock:
    """A clock that only the runners move, each by its seconds with noise of 5 %."""

    def __init__(self, noise: float = 0.05) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self._noise, self._generator = noise, np.random.default_rng(0)

    def __call__(self) -> float:
        return self.now

    def runner(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds * float(np.exp(self._noise * self._generator.normal()))

        return run


# --- the network


def test_a_changed_network_has_another_version() -> None:
    model = yardstick_model()
    onnx.checker.check_model(model, full_check=True)
    shapes = [tuple(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    found = (
        [node.op_type for node in model.graph.node],
        shapes,
        {name: array.shape for name, array in yardstick_feeds().items()},
        [(opset.domain, opset.version) for opset in model.opset_import],
        model.ir_version,
    )
    # Who changes the network raises the version, and writes both down here.
    assert YARDSTICK_VERSION == 1
    assert found == (
        ["Conv", "Relu"] * 4 + ["Reshape", "MatMul"],
        [(32, 32, 3, 3)] * 4 + [(256, 32)],
        {"x": (1, 32, 16, 16)},
        [("", 17)],
        8,
    )


def test_the_network_is_the_same_every_time_and_its_numbers_are_ordinary() -> None:
    first, second = yardstick_model(), yardstick_model()
    assert first.SerializeToString() == second.SerializeToString()
    assert all(
        np.isfinite(numpy_helper.to_array(t)).all()
        for t in first.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT
    )
    (output,) = Session(first, RuntimeOptions(threads=1)).run(yardstick_feeds()).values()
    # Subnormal numbers would take longer.
    assert 0.1 < np.std(np.asarray(output, np.float64)) < 10


# --- turns


def turns(model_s: float, settings: BenchSettings) -> tuple[Samples, Samples, NoisyClock]:
    clock = NoisyClock(noise=0.0)
    runners = [clock.runner("a", model_s), clock.runner("b", model_s)]
    generator = np.random.default_rng(0)
    samples_ms, yardstick_ms = take_turns(
        runners, settings, generator, clock, yardstick=clock.runner("yardstick", YARDSTICK_S)
    )
    return samples_ms, yardstick_ms, clock


def test_it_opens_every_round_of_slow_models() -> None:
    samples_ms, yardstick_ms, clock = turns(0.02, BenchSettings(warmup_seconds=0.0))
    np.testing.assert_allclose(yardstick_ms, YARDSTICK_S * 1e3, rtol=1e-6)
    assert yardstick_ms.shape == (samples_ms.shape[1],)
    assert set(clock.calls[::3]) == {"yardstick"}
    np.testing.assert_allclose(samples_ms, 20.0)


@pytest.mark.parametrize("model_s", [1e-4, 1e-3])
def test_it_costs_a_tenth_of_the_time_of_fast_models_at_most(model_s: float) -> None:
    samples_ms, yardstick_ms, _ = turns(model_s, BenchSettings(warmup_seconds=0.0))
    runs = int((~np.isnan(yardstick_ms)).sum())
    assert runs >= 50
    assert np.nansum(yardstick_ms) <= 0.1 * samples_ms.sum() + YARDSTICK_S * 1e3
    # Evenly over the whole measurement.
    assert len(set(np.diff(np.flatnonzero(~np.isnan(yardstick_ms))))) == 1


def test_it_runs_often_enough_beside_models_that_take_no_time() -> None:
    for settings in (BenchSettings(50, 0.0, 1, 0.0), BenchSettings(maximum_runs=200)):
        _, yardstick_ms, _ = turns(1e-6, settings)
        assert (~np.isnan(yardstick_ms)).sum() >= 50


def test_it_leaves_the_order_of_the_models_as_it_is() -> None:
    *_, clock = turns(0.01, BenchSettings(50, 0.0, 1, 0.0))
    plain = NoisyClock(noise=0.0)
    runners = [plain.runner("a", 0.01), plain.runner("b", 0.01)]
    _, nothing = take_turns(runners, BenchSettings(50, 0.0, 1, 0.0), np.random.default_rng(0), plain)
    assert [call for call in clock.calls if call != "yardstick"] == plain.calls
    assert np.isnan(nothing).all()


# --- ratios


def test_the_ratio_is_taken_inside_each_turn() -> None:
    generator = np.random.default_rng(0)
    # The machine's speed wanders by more than the models differ.
    machine = np.exp(np.cumsum(generator.normal(0, 0.05, 400)))
    yardstick_ms = np.where(np.arange(400) % 4 == 0, 0.4 * machine, np.nan)
    found = in_yardsticks(2.0 * machine, yardstick_ms)
    assert (found.version, found.runs) == (YARDSTICK_VERSION, 100)
    assert (found.ratio, found.low, found.high) == pytest.approx((5.0, 5.0, 5.0))
    assert found.median_ms == pytest.approx(np.nanmedian(yardstick_ms))
    with pytest.raises(UsageError, match="No run was measured"):
        in_yardsticks(np.ones(3), np.full(3, np.nan))


def test_a_machine_that_changed_leaves_room_for_what_networks_do_not_share() -> None:
    before, now = (YardstickRatio(1, median_ms, 100, 5.0, 4.9, 5.1) for median_ms in (0.4, 0.8))
    same, slower, faster = (slow_down_in_yardsticks(*pair) for pair in ((before, before), (before, now), (now, before)))
    assert same.ratio == slower.ratio == faster.ratio == 1.0
    assert slower.low < same.low < 1 < same.high < slower.high
    assert (slower.low, slower.high) == pytest.approx((faster.low, faster.high))


def test_a_slow_down_is_held_against_the_limit_with_its_interval() -> None:
    before = YardstickRatio(1, 0.4, 100, 5.0, 5.0, 5.0)
    found = slow_down_in_yardsticks(before, YardstickRatio(1, 0.4, 100, 5.5, 5.5, 5.5))
    assert found.exceeds(0.05)
    assert not found.exceeds(0.08)
    assert found.low == pytest.approx(1.1 / 1.01**2)


def test_real_sessions_are_measured_beside_it() -> None:
    settings = BenchSettings(6, 0.0, 1, 0.0)
    options = RuntimeOptions(threads=1)
    measured = measure_latency([yardstick_model()], yardstick_feeds(), options, settings=settings, yardstick=True)
    found = measured.in_yardsticks(0)
    assert found is not None
    assert found.runs == 6
    assert found.low <= found.ratio <= found.high
    assert measure_latency([yardstick_model()], yardstick_feeds(), options, settings=settings).in_yardsticks(0) is None


# --- comparisons


@pytest.fixture
def at_speed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Return what makes models and yardstick take that many times as long as at first, by a clock of their own."""

    def change(model: float, machine: float) -> None:
        def faked(
            runners: list[Callable[[], None]],
            settings: BenchSettings,
            generator: np.random.Generator,
            *,
            yardstick: Callable[[], None] | None,
        ) -> tuple[Samples, Samples]:
            clock = NoisyClock()
            slower = [clock.runner("model", MODEL_S * model * machine) for _ in runners]
            beat = None if yardstick is None else clock.runner("yardstick", YARDSTICK_S * machine)
            return take_turns(slower, settings, generator, clock, yardstick=beat)

        monkeypatch.setattr(latency, "take_turns", faked)

    return change


def earlier(work: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Write a report, each of whose entries is changed."""
    ran = oamip("bench", "model.onnx", *MEASURED, "--json", "old.json", cwd=work)
    assert ran.code == 0, ran.err
    report = json.loads((work / "old.json").read_text())
    for entry in report["models"]:
        change(entry)
    (work / "old.json").write_text(json.dumps(report))


COMPARED = ["bench", "model.onnx", *MEASURED, "--compare", "old.json", "--max-slowdown", "5%"]


def test_a_slower_machine_is_no_regression(work: Path, at_speed: Callable[[float, float], None]) -> None:
    at_speed(1.0, 1.0)
    earlier(work)
    at_speed(1.0, 1.4)
    ran = oamip(*COMPARED, "--json", "new.json", cwd=work)
    assert ran.code == 0, ran.err
    assert "in milliseconds" not in ran.err
    report = read_bench_report(work / "new.json")
    assert [entry.name for entry in report.models] == ["model.onnx"]
    (compared,) = report.comparison.entries
    assert compared.now_ms / compared.before_ms == pytest.approx(1.4, rel=0.02)
    assert compared.yardstick_now_ms / compared.yardstick_before_ms == pytest.approx(1.4, rel=0.02)
    assert compared.slow_down == pytest.approx(1.0, abs=0.02)
    text = " ".join(ran.out.split())
    assert f"the yardstick taking {compared.yardstick_now_ms:.3f} ms" in text
    assert f"{100 * (compared.yardstick_now_ms / compared.yardstick_before_ms - 1):+.1f} %" in text


def test_a_slower_model_is_a_regression(work: Path, at_speed: Callable[[float, float], None]) -> None:
    at_speed(1.0, 1.0)
    earlier(work)
    at_speed(1.1, 1.0)
    ran = oamip(*COMPARED, cwd=work)
    assert ran.code == 1
    assert "Slower than in 'old.json' by more than the 5 % allowed: model.onnx by +" in ran.err
    # A machine that is faster by as much does not hide it, where the model lost more than is uncertain then.
    at_speed(1.3, 1 / 1.3)
    assert oamip(*COMPARED, cwd=work).code == 1


def without(entry: dict[str, Any]) -> None:
    del entry["yardstick"]


def of_another_version(entry: dict[str, Any]) -> None:
    entry["yardstick"]["version"] += 1


@pytest.mark.parametrize("change", [without, of_another_version])
def test_reports_without_it_are_compared_in_milliseconds(
    work: Path, at_speed: Callable[[float, float], None], change: Callable[[dict[str, Any]], None]
) -> None:
    at_speed(1.0, 1.0)
    earlier(work, change)
    at_speed(1.0, 1.4)
    ran = oamip(*COMPARED, cwd=work)
    assert ran.code == 1
    assert "'old.json' holds no times of the present yardstick (version 1)" in ran.err
    assert "a change of the machine's speed looks like one of the model; make a new report" in ran.err
    at_speed(1.0, 1.0)
    ran = oamip(*COMPARED, cwd=work)
    assert ran.code == 0
    assert "Change of the time" in ran.out


def test_a_provider_that_cannot_run_it_is_measured_all_the_same(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier(work)

    def refuse() -> onnx.ModelProto:
        raise ModelError("no kernel")

    monkeypatch.setattr(latency, "yardstick_model", refuse)
    quick = ["bench", "model.onnx", "--seconds", "0", "--runs", "6", "--no-cold-start"]
    ran = oamip(*quick, "--compare", "old.json", "--max-slowdown", "1e9", "--json", "new.json", cwd=work)
    assert ran.code == 0, ran.err
    assert "since the yardstick does not run on cpu" in ran.err
    assert "the yardstick taking" not in ran.out
    assert read_bench_report(work / "new.json").models[0].yardstick is None


def test_a_report_with_an_impossible_time_is_refused(work: Path, at_speed: Callable[[float, float], None]) -> None:
    at_speed(1.0, 1.0)
    earlier(work, lambda entry: entry["yardstick"].update(median_ms=0.0))
    failed(oamip(*COMPARED, cwd=work), 3, "is no report of oamip bench --json: models.0.yardstick.median_ms: Input")
