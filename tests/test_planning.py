"""Damage curves, widths by the program, limits of every kind, drops of a metric, minimum widths."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from command import failed, oamip
from graphs import GRAPHS
from oracle import analysed

import oamip_onnx
from oamip_onnx import planning
from oamip_onnx.budget import Budget, candidate_widths, costs_of, first_units, parse_target
from oamip_onnx.calibration import ActivationStream
from oamip_onnx.config import make_config
from oamip_onnx.errors import TargetError, UsageError
from oamip_onnx.importance import damage_curves, loss_of
from oamip_onnx.importance.damage import _interpolated
from oamip_onnx.masking import MASK_INPUT, MaskedSuffixes
from oamip_onnx.preparation import Prepared, prepare
from oamip_onnx.report import Result
from oamip_onnx.scoring import importance_context, planner, score
from oamip_onnx.verify import Metric, load_metric

FASHION = Path(__file__).resolve().parent.parent / "examples" / "fashion"
NETWORK = FASHION / "resnet8.onnx"

FAST: dict[str, object] = {"round_to": 1, "threads": 1, "workers": 1, "cache": False, "bench": False, "samples": 200}
# Ranks and repairs that take no time, where the widths alone matter.
PLAIN = {"importance": "magnitude", "repair": "bias"}


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """The example's network on a few of its images."""
    return prepare(NETWORK, FASHION / "calibration.npz", make_config(FAST))


# Damage curves.


@pytest.mark.parametrize("repair", ["least-squares", "none"])
def test_curves_fall_to_nothing_at_the_full_width(prepared: Prepared, repair: str) -> None:
    context = importance_context(prepared, make_config(FAST, {"repair": repair}), None)
    candidates = candidate_widths(prepared.analysis.groups, 4)
    curves = damage_curves(context, candidates)
    for widths, curve in zip(candidates, curves, strict=True):
        assert curve.shape == widths.shape
        assert curve[-1] == 0.0
        assert (np.diff(curve) <= 0).all()
        assert curve[0] > 3 * curve[len(curve) // 2] > 0


def test_refit_readers_lose_less(prepared: Prepared) -> None:
    candidates = candidate_widths(prepared.analysis.groups, 4)
    plain, refit = (
        damage_curves(importance_context(prepared, make_config(FAST, {"repair": name}), None), candidates)
        for name in ("none", "least-squares")
    )
    middle = [len(widths) // 2 for widths in candidates]
    lower = [new[m] < old[m] for old, new, m in zip(plain, refit, middle, strict=True)]
    assert sum(lower) >= len(lower) - 1


def test_a_measured_width_has_the_loss_of_the_masked_model(prepared: Prepared) -> None:
    """Without a refit, the narrowest width of the last group is measured with exactly its units masked."""
    context = importance_context(prepared, make_config(FAST, {"repair": "none"}), None)
    groups = prepared.analysis.groups
    candidates = [np.array([1, group.width]) for group in groups]
    curve = damage_curves(context, candidates)[-1]
    masked = MaskedSuffixes(prepared.model, prepared.analysis, prepared.options, prepared.logits)
    every = np.ones(prepared.analysis.unit_count, dtype=np.bool_)
    original = np.concatenate([masked.whole(feeds, every) for feeds in prepared.samples.batches(64)])
    loss = loss_of(original.shape, original)
    found = []
    for unit in range(groups[-1].width):
        alive = every.copy()
        alive[groups[-1].units] = np.arange(groups[-1].width) == unit
        values = np.concatenate([masked.whole(feeds, alive) for feeds in prepared.samples.batches(64)])
        found.append(loss(loss.read(values)))
    # Which unit is left the elimination decides.
    assert np.min(np.abs(np.array(found) - curve[0])) <= 1e-6 * curve[0]


def test_losses_between_measured_widths_follow_the_error() -> None:
    errors = np.array([0.01, 0.1, 1.0, 10.0])
    found = _interpolated(errors, np.array([1, 2]), np.array([0.02, 0.2]))
    # Between the points ten times the error has ten times the loss; beyond them it grows like its power of 1.25.
    np.testing.assert_allclose(found, [0.02 * 0.1**1.25, 0.02, 0.2, 0.2 * 10**1.25], rtol=1e-9)


@pytest.mark.parametrize("name", ["residual", "conv_grouped", "squeeze_and_excite"])
def test_every_kind_of_graph_gets_curves(name: str, tmp_path: Path) -> None:
    onnx.save(GRAPHS[name](), tmp_path / "model.onnx")
    settings = make_config(FAST, {"samples": 16})
    own = prepare(tmp_path / "model.onnx", None, settings, random_data=True)
    candidates = candidate_widths(own.analysis.groups)
    for widths, curve in zip(
        candidates, damage_curves(importance_context(own, settings, None), candidates), strict=True
    ):
        assert np.isfinite(curve).all()
        assert (curve >= 0).all()
        assert curve[-1] == 0
        assert curve.shape == widths.shape


def test_changed_weights_run_behind_a_group_as_in_the_whole_model(prepared: Prepared) -> None:
    masked = MaskedSuffixes(prepared.model, prepared.analysis, prepared.options, prepared.logits)
    feeds = prepared.samples.take(slice(0, 8)).feeds
    generator = np.random.default_rng(0)
    for number, group in enumerate(prepared.analysis.groups):
        reader = next(
            c for c in prepared.analysis.contractions if np.isin(c.units, range(*group.units.indices(999))).any()
        )
        weight = prepared.model.graph.node[reader.node].input[1]
        new = (prepared.model.array(weight) * generator.uniform(0.5, 1.5)).astype(np.float32)
        alive = np.ones(prepared.analysis.unit_count, dtype=np.bool_)
        alive[group.first_unit] = False
        prefix = masked.prefix(number, feeds, np.ones_like(alive))
        (found,) = masked.run_changed(number, [prefix], alive, {weight: new})
        changed = onnx.ModelProto()
        changed.CopyFrom(prepared.model.proto)
        for tensor in changed.graph.initializer:
            if tensor.name == weight:
                tensor.CopyFrom(onnx.numpy_helper.from_array(new, weight))
        whole = MaskedSuffixes(
            type(prepared.model)(changed, 0, False, None, ()), prepared.analysis, prepared.options, prepared.logits
        )
        np.testing.assert_allclose(found, whole.whole(feeds, alive), rtol=1e-3, atol=1e-4)
        assert MASK_INPUT not in prefix


# Widths by the program.


@pytest.mark.parametrize("text", ["macs=0.5", "params=0.4", "size=0.5", "macs=0.6,params=0.5,size=100KB"])
def test_the_programs_widths_keep_every_limit(prepared: Prepared, text: str) -> None:
    config = make_config(FAST, PLAIN, {"target": text, "widths": "program"})
    scores, plan = score(prepared, config)
    assert plan.kind == "program"
    assert scores.solver[0].task == "widths"
    assert scores.solver[0].gap is not None
    result = oamip_onnx.prune(NETWORK, FASHION / "calibration.npz", config=config).report
    assert result.plan is not None
    assert result.plan.widths == "program"
    assert [group.after for group in result.groups] == list(plan.widths)
    for limit in parse_target(text).limits:
        before, after = (
            {"macs": m.macs, "params": m.parameters, "size": m.size_bytes}[limit.kind]
            for m in (result.original, result.pruned)
        )
        assert after <= limit.absolute(before)
        assert after >= 0.9 * limit.absolute(before) or len(parse_target(text).limits) > 1


def test_the_better_of_both_kinds_of_widths_is_taken(prepared: Prepared) -> None:
    scores, plan = score(prepared, make_config(FAST, PLAIN, {"target": "macs=0.5"}))
    (reason,) = (note for note in scores.notes if note.startswith("Of the widths"))
    words = "widths by the program" if plan.kind == "program" else "uniform widths"
    assert f"Of the widths, {words} were taken: after the repair" in reason
    uniform, program = planner(prepared, make_config(FAST, PLAIN)).plans(parse_target("macs=0.5"))
    assert plan.widths in (uniform.widths, program.widths)


def test_settings_choose_the_widths(prepared: Prepared) -> None:
    for widths in ("uniform", "program"):
        (plan,) = planner(prepared, make_config(FAST, PLAIN, {"widths": widths})).plans(parse_target("macs=0.5"))
        assert plan.kind == widths
    (plan,) = planner(prepared, make_config(FAST)).plans(parse_target("ratio=0.5"))
    assert plan.kind == "uniform"


@dataclass(frozen=True)
class _Table:
    """Stands for measured tables: the time is proportional to the sum of the widths."""

    original_ms: float = 2.0
    groups: int = 6

    def predict(self, widths: Sequence[int]) -> float:
        """Return the predicted time."""
        return 0.01 * sum(widths)

    def budget(self, name: str, limit_ms: float, candidates: Sequence[npt.NDArray[np.int64]]) -> Budget:
        """Return the tables."""
        return Budget(name, limit_ms, 0.0, {g: 0.01 * widths for g, widths in enumerate(candidates)})


@dataclass(frozen=True)
class _Latency:
    p50_ms: float


@dataclass(frozen=True)
class _Speedup:
    median: float


@dataclass(frozen=True)
class _Compared:
    original: _Latency
    pruned: _Latency
    speedup: _Speedup


def _timed(monkeypatch: pytest.MonkeyPatch, slowness: float) -> list[int]:
    """Let every model take its width in weights times a factor; return the list of its uses."""
    runs: list[int] = []

    def compare(original: onnx.ModelProto, pruned: onnx.ModelProto, *_: object, **__: object) -> _Compared:
        runs.append(1)
        first, second = (
            sum(t.dims[0] for t in m.graph.initializer if len(t.dims) == 4) * 0.01 for m in (original, pruned)
        )
        return _Compared(_Latency(first), _Latency(slowness * second), _Speedup(first / (slowness * second)))

    monkeypatch.setattr(planning, "measure_latency_model", lambda *_, **__: _Table())
    monkeypatch.setattr(planning, "compare_latency", compare)
    return runs


@pytest.mark.parametrize("slowness", [0.8, 1.0, 1.25])
def test_a_wrong_prediction_is_corrected_by_what_is_measured(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, slowness: float
) -> None:
    runs = _timed(monkeypatch, slowness)
    found = planner(prepared, make_config(FAST, PLAIN))
    plan = found.program(parse_target("latency=0.6"))
    full = sum(group.width for group in prepared.analysis.groups)
    # The convolutions' outputs are the groups, two of them twice: shares differ from those of the table a little.
    kept = first_units(prepared.analysis, plan.widths)
    (limit,) = parse_target("latency=0.6").limits
    assert found._real(limit, plan.widths) <= limit.absolute(found._whole("latency"))
    assert kept.sum() == sum(plan.widths)
    assert plan.predicted_share == pytest.approx(sum(plan.widths) / full)
    assert 3 < len(runs) <= 3 * (5 + 5 + 1)


@pytest.mark.parametrize("slowness", [0.8, 1.0, 1.25])
def test_uniform_widths_are_timed_and_corrected_too(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, slowness: float
) -> None:
    runs = _timed(monkeypatch, slowness)
    target = parse_target("latency=0.6")
    found = planner(prepared, make_config(FAST, PLAIN, {"widths": "uniform"}))
    (plan,) = found.plans(target)
    assert plan.kind == "uniform"
    (limit,) = target.limits
    assert found._real(limit, plan.widths) <= limit.absolute(found._whole("latency"))
    # Where the table is right, its first answer is taken.
    plain = found.uniform(target).widths
    assert (plan.widths == plain) == (found._real(limit, plain) <= limit.absolute(found._whole("latency")))
    assert len(runs) <= 3 * (5 + 2)


@pytest.mark.parametrize("widths", ["program", "uniform"])
def test_a_latency_that_no_correction_reaches_is_said(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, widths: str
) -> None:
    _timed(monkeypatch, 50.0)
    with pytest.raises(TargetError, match=r"latency=0\.6"):
        planner(prepared, make_config(FAST, PLAIN, {"widths": widths})).plans(parse_target("latency=0.6"))


def test_the_multiple_that_pays_is_measured(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Found:
        multiple: int

    planning._measured_alignment.cache_clear()
    monkeypatch.setattr(planning, "measure_alignment", lambda **_: (Found(4), Found(8)))
    config = make_config(FAST, {"round_to": "auto", "target": "macs=0.5"})
    assert planning.alignment_of(config) == 8
    widths = planner(prepared, config).uniform(parse_target("macs=0.5")).widths
    planning._measured_alignment.cache_clear()
    assert all(width % 8 == 0 for width in widths)


@pytest.mark.parametrize(
    ("settings", "multiple"),
    [
        ({"deployment": "cpu-avx2"}, 8),
        ({"deployment": "cpu-avx512"}, 16),
        ({"deployment": "arm"}, 8),
        ({"deployment": "openvino"}, 16),
        ({"deployment": "cuda"}, 8),
        ({"deployment": "tensorrt"}, 16),
        # Where the model runs is known by the provider, too; what the user says ranks above both.
        ({"round_to": "auto", "provider": "tensorrt"}, 16),
        ({"deployment": "arm", "provider": "tensorrt"}, 8),
        ({"deployment": "openvino", "round_to": 4}, 4),
    ],
)
def test_the_multiple_that_pays_elsewhere_is_known(
    settings: dict[str, object], multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "measure_alignment", lambda **_: pytest.fail("This CPU says nothing of others."))
    assert planning.alignment_of(make_config(settings)) == multiple


def test_widths_fit_the_place_of_deployment(tmp_path: Path) -> None:
    data = FASHION / "calibration.npz"
    ran = oamip(
        "prune", NETWORK, tmp_path / "out.onnx", "--data", data, "--for", "openvino", "--importance", "magnitude",
        "--no-bench", "--json", "-",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    groups = json.loads(ran.out)["groups"]
    assert all(group["after"] % 16 == 0 for group in groups if group["before"] >= 64)
    assert any("multiples of 16" in note for note in json.loads(ran.out)["notes"])
    failed(oamip("prune", NETWORK, tmp_path / "out.onnx", "--data", data, "--for", "abacus"), 2, "'deployment'")


def test_a_branch_vanishes_where_nothing_else_reaches_the_target(tmp_path: Path) -> None:
    name = next(n for n in sorted(GRAPHS) if any(g.minimum_width == 0 for g in analysed(GRAPHS[n]()).analysis.groups))
    onnx.save(GRAPHS[name](), tmp_path / "model.onnx")
    config = make_config(FAST, {"samples": 32, "widths": "program"})
    own = prepare(tmp_path / "model.onnx", None, config, random_data=True)
    # One operation less than the narrowest widths that leave every branch something.
    narrow = [max(group.minimum_width, group.block_count) for group in own.analysis.groups]
    macs = costs_of(own.model, own.analysis, first_units(own.analysis, narrow)).macs
    (plan,) = planner(own, config).plans(parse_target(f"macs={macs - 1}"))
    assert 0 in plan.widths
    result = oamip_onnx.prune(
        tmp_path / "model.onnx", random_data=True, config=config, target=f"macs={macs - 1}", importance="magnitude"
    )
    assert result.report.pruned.macs < macs
    assert result.report.verification.passed


# The drop of a metric.


def test_the_drop_of_the_agreement_keeps_its_limit(tmp_path: Path) -> None:
    arguments = [NETWORK, tmp_path / "out.onnx", "--data", FASHION / "calibration.npz", "--eval", FASHION / "test.npz"]
    settings = [
        "--set",
        "samples=200",
        "--set",
        "cache=false",
        "--no-bench",
        "--round-to",
        "4",
        "--json",
        "-",
        "--importance",
        "magnitude",
        "--repair",
        "bias",
    ]
    result = Result.model_validate_json(oamip("prune", *arguments, "--target", "max-drop=0.08", *settings).out)
    assert result.drift.top1_agreement is not None
    assert 1 - result.drift.top1_agreement <= 0.08
    assert result.pruned.macs < result.original.macs
    (reason,) = (note for note in result.notes if "shares of the MACs" in note)
    assert "the smallest that keeps max-drop=0.08: the top-1 agreement drops by" in reason


METRICS = """
import numpy as np

def accuracy(outputs, labels):
    return (outputs["y"].argmax(axis=1) == labels).mean()

def nonsense(outputs, labels):
    return float("nan")

def words(outputs, labels):
    return "good"

def failing(outputs, labels):
    raise KeyError("no such output")
"""


def test_a_users_metric_is_kept_and_reported(tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text(METRICS)
    result = oamip_onnx.prune(
        NETWORK,
        FASHION / "calibration.npz",
        evaluation=FASHION / "test.npz",
        config=make_config(FAST, PLAIN, {"round_to": 4}),
        target="max-drop=0.05",
        metric=f"{tmp_path / 'metrics.py'}:accuracy",
    ).report
    assert result.drift.metric is not None
    assert result.drift.metric.name == "accuracy"
    assert result.drift.metric.original - result.drift.metric.pruned <= 0.05


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "returned nan; it must return one finite number"),
        ("words", "returned 'good'; it must return one finite number"),
        ("failing", "raised KeyError: 'no such output'; correct the function"),
    ],
)
def test_metrics_that_fail_are_said(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "metrics.py").write_text(METRICS)
    metric = load_metric(f"{tmp_path / 'metrics.py'}:{name}")
    with pytest.raises(UsageError, match=message):
        metric({"y": np.zeros((2, 3), np.float32)}, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy", "names no function; write it as file.py:function"),
        ("metrics.txt:accuracy", "names no function"),
        ("missing.py:accuracy", "file 'missing.py' does not exist"),
        ("broken.py:accuracy", "does not run: ZeroDivisionError"),
        ("metrics.py:acuracy", "has no function 'acuracy'; did you mean 'accuracy'"),
    ],
)
def test_metrics_that_are_none_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.py").write_text(METRICS)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UsageError, match=message):
        load_metric(text)
    failed(oamip("prune", NETWORK, tmp_path / "out.onnx", "--random-data", "--metric", text), 2, message)


def test_the_agreement_is_no_function_of_one_model() -> None:
    with pytest.raises(ValueError, match="compares two models"):
        Metric()({}, None)


def test_a_drop_that_nothing_keeps_is_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text(
        "calls = []\ndef falling(outputs, labels):\n    calls.append(1)\n    return -len(calls)\n"
    )
    with pytest.raises(
        TargetError, match=r"max-drop=0 cannot be reached; the smallest drop of the falling.* is 1\.0000"
    ):
        oamip_onnx.prune(
            NETWORK,
            FASHION / "calibration.npz",
            config=make_config(FAST, {"round_to": 8, "importance": "magnitude", "repair": "none"}),
            target="max-drop=0",
            metric=f"{tmp_path / 'metrics.py'}:falling",
        )


def test_scores_alone_know_no_drop() -> None:
    arguments = [NETWORK, "--data", FASHION / "calibration.npz", "--target", "max-drop=0.01"]
    failed(oamip("score", *arguments), 2, "max-drop=0.01 is found by pruning; give oamip prune for it")


# Memory.


def test_memory_is_limited_in_the_users_unit() -> None:
    assert make_config({"memory_limit": "512MiB"}).memory_limit == 2**29
    assert make_config({"memory_limit": "1.5GB"}).memory_limit == 1_500_000_000
    assert make_config({"memory_limit": "4096"}).memory_limit == 4096


@pytest.mark.parametrize(
    ("text", "message"), [("512mib", "its unit must be one of B, KB"), ("much", "valid integer"), ("0", "greater than")]
)
def test_wrong_memory_limits_are_said(tmp_path: Path, text: str, message: str) -> None:
    arguments = ["prune", NETWORK, tmp_path / "out.onnx", "--random-data", "--memory-limit", text]
    failed(oamip(*arguments), 2, message)


# How narrow the user lets groups become.


def test_minimum_widths_and_ratios_hold(tmp_path: Path) -> None:
    groups = oamip_onnx.prune(
        NETWORK, random_data=True, config=make_config(FAST, {"importance": "random"})
    ).report.groups
    first, second = groups[0].name, groups[1].name
    (tmp_path / "config.toml").write_text(
        f'min_width = {{ "{first}" = {groups[0].before - 1} }}\nmax_ratio = {{ "{second}" = 0.1 }}\n'
    )
    arguments = ["prune", NETWORK, tmp_path / "out.onnx", "--random-data", "--config", tmp_path / "config.toml"]
    settings = ["--importance", "random", "--round-to", "1", "--no-bench", "--target", "ratio=0.5", "--json", "-"]
    result = json.loads(oamip(*arguments, *settings).out)
    assert result["groups"][0]["after"] == groups[0].before - 1
    assert result["groups"][1]["after"] >= 0.9 * groups[1].before
    assert result["groups"][2]["after"] <= -(-groups[2].before // 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('min_width={"nothing*"=3}', "matches no node and no tensor"),
        ('min_width={"x"=3}', "matches no channels that can go"),
        ('min_width={"x"=0}', "greater than or equal to 1"),
        ('max_ratio={"x"=1.5}', "less than or equal to 1"),
    ],
)
def test_wrong_minimums_are_said(tmp_path: Path, setting: str, message: str) -> None:
    arguments = ["prune", NETWORK, tmp_path / "out.onnx", "--random-data", "--set", setting]
    failed(oamip(*arguments), 2, message)


def test_the_sources_are_left_alone(prepared: Prepared) -> None:
    before = prepared.model.proto.SerializeToString()
    score(prepared, make_config(FAST, PLAIN, {"target": "macs=0.7"}))
    assert prepared.model.proto.SerializeToString() == before
    (values,) = ActivationStream(prepared.model.proto, [prepared.logits], prepared.options).batches(
        prepared.samples.take(slice(0, 4))
    )
    assert np.isfinite(values[prepared.logits]).all()
