"""The latency model: exact as a table, right about what it is made of, measured once."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import GRAPHS, Builder
from oracle import Analysed, analysed, feeds_for

from oamip_onnx.bench import profile_nodes
from oamip_onnx.budget.counting import CostCounter, WidthPolynomial
from oamip_onnx.budget.widths import first_units
from oamip_onnx.latency import LatencyModel, measure_latency_model
from oamip_onnx.latency.configurations import choose_configurations, configuration_count
from oamip_onnx.latency.fitting import fit, node_features
from oamip_onnx.latency.measuring import BETWEEN, Measurements, named_nodes, node_locator, typical_times
from oamip_onnx.latency.views import BLOCKS, FITTING_BLOCKS, RAW, WHOLE, all_whole, through, view_widths
from oamip_onnx.progress import Step
from oamip_onnx.runtime import RuntimeOptions
from oamip_onnx.surgery import cut

ONE_THREAD = RuntimeOptions(threads=1)
BLOCK = 16

# The factors are found from a solver's doubles, and there are a few dozens: far above their rounding.
EXACT = 1e-6

# The module, which has the name of no attribute of the package.
model_module = import_module("oamip_onnx.latency.model")


def layers(*widths: int, batch: int | str = "N") -> Analysed:
    """Return convolutions with activations, one after the other, and a classifier."""
    b = Builder([batch, 3, 8, 8])
    x, before = "x", 3
    for width in widths:
        x, before = b.add("Relu", b.conv(x, before, width)), width
    return analysed(b.finish(b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), before, 5)))


def features_of(found: Analysed) -> dict[int, list[WidthPolynomial]]:
    counter = CostCounter(found.model, found.analysis)
    return node_features(found.model, found.analysis, counter.macs_by_node(), counter)


def synthetic(found: Analysed, seed: int = 0, count: int = 44) -> tuple[Measurements, Callable[[Any], float]]:
    """Return measurements of a network whose nodes take known sums of their features, and the function behind them."""
    generator = np.random.default_rng(seed)
    features = features_of(found)
    widths = choose_configurations(found.analysis.groups, count, seed)
    full = view_widths(widths[0], BLOCK).tolist()
    # Each feature takes about as long as any other.
    nodes = {
        node: [f * float(generator.random() / (abs(f(full)) or 1)) for f in own if generator.random() < 0.7]
        for node, own in features.items()
    }

    def time_of(own: Any) -> float:
        views = view_widths(own, BLOCK).tolist()
        return float(sum(f(views) for parts in nodes.values() for f in parts))

    views = [view_widths(own, BLOCK).tolist() for own in widths]
    times = {node: np.array([sum(f(v) for f in parts) for v in views], np.float64) for node, parts in nodes.items()}
    return Measurements(widths, np.array([time_of(own) for own in widths]), times), time_of


def fitted(found: Analysed, seed: int = 0) -> LatencyModel:
    measured, _ = synthetic(found, seed)
    result = fit(measured, features_of(found), BLOCK)
    return LatencyModel(float(measured.total_ms[0]), result.spread, result.polynomial, BLOCK)


def random_widths(found: Analysed, generator: np.random.Generator) -> tuple[int, ...]:
    return tuple(
        int(generator.integers(1, g.width // g.block_count + 1)) * g.block_count for g in found.analysis.groups
    )


def forbidden(*_args: Any, **_settings: Any) -> Measurements:
    raise AssertionError("It was measured again.")


@pytest.mark.parametrize("name", ["layers", "residual"])
def test_the_tables_of_a_budget_are_the_prediction(name: str) -> None:
    found = layers(24, 40, 20) if name == "layers" else analysed(GRAPHS[name]())
    latency = fitted(found)
    generator = np.random.default_rng(1)
    candidates = [np.unique(generator.integers(1, g.width + 1, 6)) for g in found.analysis.groups]
    budget = latency.budget("latency", 1.5, candidates)
    assert budget.limit == 1.5
    assert budget.shown(1.5) == "1.5 ms"
    assert all(g < h for g, h in budget.pairwise)
    predictions = set()
    for _ in range(200):
        positions = [int(generator.integers(own.size)) for own in candidates]
        widths = [int(own[p]) for own, p in zip(candidates, positions, strict=True)]
        assert budget.cost(positions) == latency.predict(widths)
        views = view_widths(widths, BLOCK).tolist()
        assert latency.predict(widths) == pytest.approx(latency.polynomial(views), rel=1e-12)
        predictions.add(latency.predict(widths))
    assert len(predictions) > 10


@pytest.mark.parametrize("seed", range(3))
def test_a_known_latency_is_found_again(seed: int) -> None:
    found = layers(48, 64, 32)
    measured, time_of = synthetic(found, seed)
    result = fit(measured, features_of(found), BLOCK)
    generator = np.random.default_rng(seed + 10)
    for _ in range(50):
        widths = random_widths(found, generator)
        assert result.polynomial(view_widths(widths, BLOCK).tolist()) == pytest.approx(time_of(widths), rel=EXACT)
    assert result.spread < EXACT


def test_a_width_that_is_rounded_up_is_seen() -> None:
    found = layers(64, 64)
    counter = CostCounter(found.model, found.analysis)
    node, macs = next(iter(sorted(counter.macs_by_node().items())[1:]))  # from one group to the other
    rounded = through(macs, FITTING_BLOCKS, BLOCKS, {0})
    widths = tuple(own for own in choose_configurations(found.analysis.groups, 40, 0) if not any(w % 4 for w in own))
    times = np.array([1e-6 * rounded(view_widths(own, BLOCK).tolist()) for own in widths])
    result = fit(Measurements(widths, times, {node: times}), features_of(found), BLOCK)
    latency = LatencyModel(float(times[0]), result.spread, result.polynomial, BLOCK)
    assert latency.predict([36, 64]) == pytest.approx(latency.predict([48, 64]), rel=EXACT)
    assert latency.predict([52, 64]) == pytest.approx(4 / 3 * latency.predict([48, 64]), rel=EXACT)


def test_noise_of_the_measurements_is_the_spread() -> None:
    found = layers(48, 64, 32)
    measured, _ = synthetic(found)
    noise = np.random.default_rng(3).normal(1, 0.05, measured.total_ms.size)
    noisy = replace(
        measured,
        total_ms=measured.total_ms * noise,
        node_ms={node: times * noise for node, times in measured.node_ms.items()},
    )
    assert 0.03 < fit(noisy, features_of(found), BLOCK).spread < 0.15


@pytest.mark.parametrize("widths", [(32, 32), (16, 16), (7, 9), (32, 5)])
def test_fused_nodes_count_for_the_convolution_in_them(widths: tuple[int, int]) -> None:
    found = layers(32, 32)
    named = named_nodes(found.model)
    assert not any(node.name.startswith("oamip") for node in found.model.graph.node)
    heavy = {p for p, node in enumerate(named.graph.node) if node.op_type in {"Conv", "Gemm"}}
    relus = {p for p, node in enumerate(named.graph.node) if node.op_type == "Relu"}
    times = profile_nodes(
        cut(named, found.analysis, first_units(found.analysis, widths)), feeds_for(found.model, 0), ONE_THREAD, runs=2
    )
    located = node_locator(named, heavy)(times)
    assert heavy <= set(located)
    assert not relus & set(located)  # the convolutions have taken them in
    assert set(located) <= {BETWEEN, *range(len(named.graph.node))}
    assert sum(located.values()) == pytest.approx(sum(time.milliseconds for time in times))


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_every_configuration_can_be_cut(name: str) -> None:
    found = analysed(GRAPHS[name]())
    groups = found.analysis.groups
    configurations = choose_configurations(groups, 20, 0)
    assert configurations == choose_configurations(groups, 20, 0)
    assert len(configurations) == 20
    assert configurations[0] == tuple(group.width for group in groups)
    for widths in configurations:
        for group, width in zip(groups, widths, strict=True):
            assert max(group.minimum_width, group.block_count) <= width <= group.width
            assert width % group.block_count == 0


def test_large_and_slow_networks_are_measured_at_fewer_widths() -> None:
    most, fewest = configuration_count(10**6, 10**6), configuration_count(10**12, 10**6)
    assert most > fewest == configuration_count(10**6, 10**10)
    assert most >= configuration_count(10**6, 80 * 10**6) > fewest


class Store:
    """Counts measurements, which are made up, and keeps them in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.count = folder, 0
        self.found = layers(24, 16)
        monkeypatch.setattr(model_module, "measure", self._measure)

    def _measure(self, *_args: Any, **_settings: Any) -> Measurements:
        self.count += 1
        return synthetic(self.found, self.count)[0]

    def __call__(
        self, *, found: Analysed | None = None, batch: int = 2, options: RuntimeOptions = ONE_THREAD, seed: int = 0
    ) -> LatencyModel:
        own = found or self.found
        feeds = feeds_for(own.model, 0, batch)
        return measure_latency_model(own.model, own.analysis, feeds, options, seed=seed, cache=self.folder)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(tmp_path / "cache", monkeypatch)


def test_a_network_is_measured_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store()
    monkeypatch.setattr(model_module, "measure", forbidden)
    assert store() == first
    assert store(found=other_weights(store.found)) == first  # their values do not matter


def other_weights(found: Analysed) -> Analysed:
    proto = onnx.ModelProto()
    proto.CopyFrom(found.model.proto)
    for tensor in proto.graph.initializer:
        tensor.raw_data = (2 * np.frombuffer(tensor.raw_data, np.float32)).tobytes()
    return analysed(proto)


def test_another_network_or_machine_is_measured_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store()
    calls: list[dict[str, Any]] = [
        {"options": RuntimeOptions(threads=2)},
        {"options": RuntimeOptions(threads=1, optimise=False)},
        {"batch": 3},
        {"seed": 1},
        {"found": analysed(store.found.model.proto, ignore=[store.found.analysis.groups[0].name])},
    ]
    for number, settings in enumerate(calls):
        if "found" in settings:
            store.found = settings["found"]
        store(**settings)
        assert store.count == number + 2
    monkeypatch.setattr("oamip_onnx.bench.environment._cpu_model", lambda: "Another CPU")
    store()
    assert store.count == len(calls) + 2


def test_a_broken_file_is_ignored_and_replaced(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store()
    (path,) = store.folder.glob("*/*")
    for content in (b"", b"not an archive", path.read_bytes()[:-50]):
        path.write_bytes(content)
        count = store.count
        again = store()
        assert store.count == count + 1
        assert store() == again
        assert store.count == count + 1
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_is_measured_end_to_end(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = layers(64, 64, 32)  # its batch is dynamic
    steps: list[Step] = []
    options, feeds = RuntimeOptions(threads=threads), feeds_for(found.model, 0, 4)
    latency = measure_latency_model(found.model, found.analysis, feeds, options, cache=tmp_path, progress=steps.append)
    assert steps[0].done == 0
    assert steps[-1].share == 1
    assert 0 < latency.spread < 1
    # Generous: the machine may be busy.
    full = [group.width for group in found.analysis.groups]
    assert latency.original_ms / 2 < latency.predict(full) < 2 * latency.original_ms
    assert 0 < latency.predict([1, 1, 1]) < latency.predict(full)
    monkeypatch.setattr(model_module, "measure", forbidden)
    assert measure_latency_model(found.model, found.analysis, feeds, options, cache=tmp_path) == latency


def test_nothing_is_written_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAMIP_CACHE_DIR", str(tmp_path / "default"))
    found = layers(16)
    monkeypatch.setattr(model_module, "measure", lambda *_args, **_settings: synthetic(found)[0])
    measure_latency_model(found.model, found.analysis, feeds_for(found.model, 0), ONE_THREAD)
    assert not list(tmp_path.iterdir())


def test_what_slows_a_whole_round_down_does_not_count() -> None:
    times = np.outer([1.0, 2.0, 5.0], [1.0, 1.0, 4.0, 1.0, 8.0, 8.0, 1.0])
    times[0, 0] = times[1, 1] = 20.0  # something else, in one turn only
    first, second, third = typical_times(times)
    assert second / first == pytest.approx(2)
    assert third / first == pytest.approx(5)


def test_views_of_widths() -> None:
    views = {16: [16, 16, 16, 16, 16, 1], 20: [20, 32, 20, 32, 0, 0], 21: [21, 32, 0, 0, 0, 0], 7: [7, 16, 7, 16, 0, 0]}
    assert view_widths(list(views), BLOCK).tolist() == [view for own in views.values() for view in own]
    assert view_widths([[own] for own in views], BLOCK).tolist() == list(views.values())


def test_costs_through_views() -> None:
    def at(cost: WidthPolynomial, *widths: int) -> float:
        return cost(view_widths(widths, BLOCK).tolist())

    cost = WidthPolynomial(2.0, {0: 3.0, 1: 1.0}, {(0, 1): 1.0})
    assert at(through(cost, RAW), 3, 5) == cost([3, 5])
    assert at(through(cost, FITTING_BLOCKS), 20, 5) == cost([32, 16])
    assert at(through(cost, WHOLE), 20, 32) == cost([0, 32])
    for read, expected in ((0, cost([20, 16])), (1, cost([32, 5]))):
        assert at(through(cost, RAW, BLOCKS, {read}), 20, 5) == expected
    assert at(through(WidthPolynomial(products={(0, 0): 1.0}), RAW, BLOCKS, {0}), 20) == 20 * 32


@pytest.mark.parametrize(("widths", "expected"), [((16, 32), 2 + 3 * 16 + 32), ((16, 8), 2), ((8, 16), 2)])
def test_tensors_of_two_groups_are_whole_together(widths: tuple[int, int], expected: float) -> None:
    cost = WidthPolynomial(2.0, {0: 3.0, 1: 1.0})
    assert all_whole(cost)(view_widths(widths, BLOCK).tolist()) == expected
