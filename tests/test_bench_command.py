"""`oamip bench` and `oamip_onnx.benchmark`: sweeps, variants, comparisons, and a sentence for what is impossible."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import failed, oamip
from graphs import GRAPHS, Builder
from onnx import TensorProto, helper
from rich.console import Console

import oamip_onnx
from oamip_onnx.bench import BenchSettings, latency
from oamip_onnx.benching import _batches
from oamip_onnx.cli.bench import _settings
from oamip_onnx.errors import DataError, ModelError, UsageError
from oamip_onnx.model import load_model
from oamip_onnx.progress import Step
from oamip_onnx.report import BenchReport, read_bench_report, regression_sentence

# A few runs on one thread: these tests are about what is measured and said, not about how long it takes.
QUICK = ["--seconds", "0", "--runs", "6"]
QUICKER = [*QUICK, "--no-cold-start"]
SETTINGS = BenchSettings(6, 0.0, 1, 0.0, cold_processes=0)


@pytest.fixture(autouse=True)
def short_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the unmeasured runs out, which the command line has no option for."""
    monkeypatch.setattr(latency, "_WARMUP_SHARE", 1e-9)


@pytest.fixture
def models(work: Path) -> Path:
    """Return a folder with models that take the same image: two of free batch, one of batch 4."""
    onnx.save(GRAPHS["residual"](), work / "small.onnx")
    fixed = GRAPHS["residual"]()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(fixed, work / "fixed.onnx")
    tokens = Builder(["N", "length", 10])
    onnx.save(tokens.finish(tokens.add("MatMul", "x", tokens.weight(10, 16))), work / "tokens.onnx")
    return work


def product(inputs: dict[str, list[int | str]]) -> onnx.ModelProto:
    """Return the elementwise product of inputs."""
    x = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, next(iter(inputs.values())))
    nodes = [helper.make_node("Identity" if len(inputs) == 1 else "Mul", list(inputs), ["y"])]
    graph = helper.make_graph(nodes, "product", x, [y])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def report_of(ran: Any) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def rendered(report: BenchReport, width: int) -> str:
    text = io.StringIO()
    Console(width=width, file=text, highlight=False).print(report)
    return text.getvalue()


# --- sweeps


def test_a_row_for_each_model_and_configuration(models: Path) -> None:
    arguments = ["bench", "model.onnx", "small.onnx", "--threads", "1,2", "--batch", "1", "--batch", "3", *QUICKER]
    report = report_of(oamip(*arguments, "--json", "-", cwd=models))
    rows = [
        (m["path"], m["configuration"]["threads"], m["configuration"]["batch"], m["speedup"] is None)
        for m in report["models"]
    ]
    configurations = [(threads, batch) for threads in (1, 2) for batch in (1, 3)]
    assert rows == [(n, t, b, n == "model.onnx") for t, b in configurations for n in ("model.onnx", "small.onnx")]
    assert report["models"][2]["configuration"]["input_shapes"] == {"x": [3, 3, 8, 8]}
    for entry in report["models"]:
        low, high = entry["median_interval_ms"]
        assert low <= entry["latency_ms"]["p50"] <= high
        assert len(entry["latency_ms"]["percentiles"]) == 101
        batch = entry["configuration"]["batch"]
        assert entry["samples_per_second"] == pytest.approx(batch * 1e3 / entry["latency_ms"]["p50"])
        assert (entry["cold_start"], entry["profile"], entry["variant"]) == (None, None, None)
        assert entry["size_bytes"] == (models / entry["path"]).stat().st_size
    assert (report["environment"]["provider"], report["environment"]["threads"]) == ("cpu", "1, 2")
    assert report["settings"]["minimum_runs"] == 6


def test_shapes_of_one_input_make_a_sweep(models: Path) -> None:
    shapes = ["--input-shape", "x=1,7,10", "--input-shape", "x=2,5,10"]
    report = report_of(oamip("bench", "tokens.onnx", *shapes, *QUICKER, "--json", "-", cwd=models))
    assert [m["configuration"]["input_shapes"]["x"] for m in report["models"]] == [[1, 7, 10], [2, 5, 10]]
    # With --batch, the shapes say the rest.
    ran = oamip("bench", "tokens.onnx", *shapes[:2], "--batch", "1,4", *QUICKER, "--json", "-", cwd=models)
    assert [m["configuration"]["input_shapes"]["x"] for m in report_of(ran)["models"]] == [[1, 7, 10], [4, 7, 10]]


def test_table_has_a_section_for_each_configuration(models: Path) -> None:
    ran = oamip("bench", "model.onnx", "small.onnx", "--batch", "1,3", "--threads", "1", *QUICKER, cwd=models)
    assert ran.code == 0, ran.err
    for words in ("batch 1", "batch 3", "reference", "95 %", "2 configurations; 6 runs of each model"):
        assert words in ran.out
    assert "threads 1" not in ran.out


def test_data_are_measured_as_they_are(models: Path) -> None:
    arguments = ["bench", "model.onnx", "--data", "data.npz", "--batch", "5", *QUICKER, "--json", "-"]
    report = report_of(oamip(*arguments, cwd=models))
    assert report["models"][0]["configuration"]["input_shapes"] == {"x": [5, 3, 8, 8]}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["model.onnx", "fixed.onnx", "--batch", "1,4"], 2, "--batch 1 is impossible: fixed.onnx fixes its batch at 4"),
        (["model.onnx", "--batch", "0"], 2, "cannot hold 0 samples"),
        (["model.onnx", "--batch", "two"], 2, "--batch takes whole numbers such as 1,8; 'two' is none"),
        (["model.onnx", "--threads", "-1"], 2, "--threads takes whole numbers"),
        (["model.onnx", "--threads", "99999"], 2, "99999 threads are more than this machine can use; give at most"),
        (["model.onnx", "--seed", "-1"], 2, "'--seed': Input should be greater than or equal to 0"),
        (["model.onnx", "--provider", "cpu,warp"], 2, "no provider 'warp'"),
        (["model.onnx", "--variant", "int4"], 2, "no variant 'int4'; choose from int8, float16"),
        (["model.onnx", "--batch", ",".join(map(str, range(1, 34)))], 2, "make 33 configurations"),
        (["model.onnx", "--data", "data.npz", "--batch", "41"], 3, "hold 40 samples, but a batch of 41"),
        (["model.onnx", "--data", "data.npz", "--input-shape", "x=1,3,8,8"], 2, "shapes of their own"),
        (["model.onnx", "--input-shape", "x=1,3,9,8"], 3, "Input 'x' of model.onnx takes float32"),
        (["model.onnx", "--input-shape", "x=1,3"], 3, "of shape (1, 3)"),
        (["model.onnx", "tokens.onnx", "--input-shape", "x=1,3,8,8"], 3, "Input 'x' of tokens.onnx"),
        (["tokens.onnx"], 3, "--input-shape x=1,"),
        (["model.onnx", "none.onnx"], 3, "'none.onnx' does not exist"),
        (["model.onnx", "--max-slowdown", "5%"], 2, "give it with --compare"),
        (["model.onnx", "--compare", "none.json"], 3, "'none.json' cannot be read"),
        (["model.onnx", "--compare", "model.onnx"], 3, "is no report of oamip bench --json: it is no JSON"),
    ],
)
def test_what_is_impossible_is_said_before_anything_is_measured(
    models: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.setattr("oamip_onnx.benching.measure", lambda *_, **__: pytest.fail("measured"))
    failed(oamip("bench", *arguments, "--json", "report.json", cwd=models), code, message)
    assert not (models / "report.json").exists()


def test_shapes_of_several_inputs_belong_together(models: Path) -> None:
    onnx.save(product({"x": ["N", "length", 4], "z": ["N", "length", 4]}), models / "two.onnx")
    short, long = ([f"--input-shape={name}=1,{length},4" for name in "xz"] for length in (3, 5))
    report = report_of(oamip("bench", "two.onnx", *short, *long, *QUICKER, "--json", "-", cwd=models))
    assert [m["configuration"]["input_shapes"]["z"] for m in report["models"]] == [[1, 3, 4], [1, 5, 4]]
    ran = oamip("bench", "two.onnx", *short, *long, "--input-shape=x=1,6,4", *QUICKER, cwd=models)
    failed(ran, 2, "gives 'z' 2 shapes and another input 3")


def test_a_fixed_batch_is_taken_where_none_is_asked_for(models: Path) -> None:
    report = report_of(oamip("bench", "model.onnx", "fixed.onnx", *QUICKER, "--json", "-", cwd=models))
    assert {m["configuration"]["batch"] for m in report["models"]} == {4}


def test_inputs_without_an_axis_of_samples_have_no_batch() -> None:
    model = load_model(product({"x": ["N", 4], "factor": []}))
    assert _batches([model], [], {}) == [1]
    with pytest.raises(UsageError, match="share no axis of samples, so --batch 8 is impossible"):
        _batches([model], [8], {})
    # One such model among others decides for all.
    other = load_model(product({"x": ["N", 4], "factor": ["N", 4]}))
    assert _batches([other, model], [], {}) == [1]
    with pytest.raises(UsageError, match="The inputs of model 2 share no axis of samples"):
        _batches([other, model], [8], {})


def test_a_second_model_of_scalars_is_one_sentence(models: Path) -> None:
    onnx.save(product({"x": []}), models / "scalar.onnx")
    failed(
        oamip("bench", "model.onnx", "scalar.onnx", *QUICKER, cwd=models), 3, "Input 'x' of scalar.onnx takes float32"
    )
    ran = oamip("bench", "scalar.onnx", "scalar.onnx", *QUICKER, "--json", "-", cwd=models)
    assert [m["configuration"]["batch"] for m in report_of(ran)["models"]] == [1, 1]


def test_a_model_without_inputs_is_one_sentence(models: Path) -> None:
    value = helper.make_tensor("value", TensorProto.FLOAT, [2], [1.0, 2.0])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Constant", [], ["y"], value=value)], "constant", [], [y])
    constant = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(constant, models / "constant.onnx")
    failed(oamip("bench", "constant.onnx", *QUICKER, cwd=models), 3, "constant.onnx has no inputs")


def test_the_same_shapes_are_measured_once(models: Path) -> None:
    shapes = [f"--input-shape=x={batch},7,10" for batch in (1, 1, 2)]
    report = report_of(oamip("bench", "tokens.onnx", *shapes, *QUICKER, "--json", "-", cwd=models))
    assert [m["configuration"]["input_shapes"]["x"] for m in report["models"]] == [[1, 7, 10], [2, 7, 10]]
    ran = oamip("bench", "tokens.onnx", *shapes, "--batch", "3", *QUICKER, "--json", "-", cwd=models)
    assert [m["configuration"]["input_shapes"]["x"] for m in report_of(ran)["models"]] == [[3, 7, 10]]


def test_the_time_limit_leaves_every_model_its_seconds() -> None:
    assert _settings(3.0, 50, 2, cold_start=True).maximum_seconds == 120
    settings = _settings(100.0, 50, 3, cold_start=True)
    now = 0.0

    def run() -> None:
        nonlocal now
        now += 1.0

    samples_ms = latency.interleave([run] * 3, settings, np.random.default_rng(0), lambda: now)
    assert samples_ms.shape == (3, 100)


# --- cold start, profile, variants


def test_cold_start_and_profile_are_in_the_report(models: Path) -> None:
    arguments = ["bench", "model.onnx", "small.onnx", *QUICK, "--profile", "--threads", "1"]
    ran = oamip(*arguments, "--json", "report.json", cwd=models)
    assert ran.code == 0, ran.err
    for words in ("First output", "Memory", "Operator", "Conv", "median of 3 fresh processes"):
        assert words in " ".join(ran.out.split())
    for entry in json.loads((models / "report.json").read_text())["models"]:
        assert 0 < entry["cold_start"]["load_ms"] < entry["cold_start"]["first_output_ms"]
        assert entry["cold_start"]["processes"] == 3
        operators = [one["milliseconds"] for one in entry["profile"]["operators"]]
        assert operators == sorted(operators, reverse=True)
        assert 0 < len(entry["profile"]["slowest_nodes"]) <= 10
        assert set(entry["profile"]["slowest_nodes"][0]) == {"node", "operator", "milliseconds", "calls"}


def test_texts_have_no_cold_start(models: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.STRING, ["N", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "texts", [x], [y])
    texts = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(texts, models / "texts.onnx")
    feeds = {"x": np.array([["a", "b"]], object)}
    settings = BenchSettings(6, 0.0, 1, 0.0, cold_processes=1)
    report = oamip_onnx.benchmark(models / "texts.onnx", feeds, settings=settings, threads=[1])
    assert report.models[0].cold_start is None
    assert any(
        note.startswith("The cold start was left out: inputs that are no plain numbers") for note in report.notes
    )


@pytest.mark.parametrize(("load", "threads", "said"), [(1e3, 2, True), (1e3, 1, False), (0.0, 2, False)])
def test_several_threads_on_a_busy_machine_are_warned_of(
    models: Path, monkeypatch: pytest.MonkeyPatch, load: float, threads: int, *, said: bool
) -> None:
    monkeypatch.setattr("oamip_onnx.bench.environment._load", lambda: load)
    report = oamip_onnx.benchmark([models / "model.onnx"] * 2, settings=SETTINGS, threads=[threads])
    assert any("sessions of several threads can differ lastingly" in note for note in report.notes) == said


def test_slowest_nodes_are_logged(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="oamip_onnx.benching"):
        oamip_onnx.benchmark(models / "model.onnx", settings=SETTINGS, threads=[1], profile=True)
    assert "slowest nodes of" in caplog.text
    assert "(Conv)" in caplog.text


def test_variants_run_beside_their_models(models: Path) -> None:
    before = sorted(path.name for path in models.iterdir())
    arguments = ["bench", "model.onnx", "small.onnx", "--variant", "int8,float16", *QUICKER, "--json", "-"]
    ran = oamip(*arguments, cwd=models)
    report = report_of(ran)
    assert [m["name"] for m in report["models"]] == [
        *("model.onnx", "model.onnx (int8)", "model.onnx (float16)"),
        *("small.onnx", "small.onnx (int8)", "small.onnx (float16)"),
    ]
    assert [m["variant"] for m in report["models"][:3]] == [None, "int8", "float16"]
    assert {m["path"] for m in report["models"][:3]} == {"model.onnx"}
    assert "calibrated on random samples" in ran.err
    assert sorted(path.name for path in models.iterdir()) == before
    assert "random" not in oamip(*arguments, "--data", "data.npz", cwd=models).err


def test_a_slower_float16_says_why(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take_turns(runners: list[Callable[[], None]], *_: object, **__: object) -> tuple[np.ndarray, np.ndarray]:
        return np.outer(np.arange(1, len(runners) + 1), np.ones(20)), np.ones(20)

    monkeypatch.setattr(latency, "take_turns", take_turns)
    report = oamip_onnx.benchmark(models / "model.onnx", variants=["float16"], settings=SETTINGS)
    assert any("(float16) is slower than in float32: the CPU has no float16 kernels" in n for n in report.notes)


def test_a_model_without_a_variant_is_named(models: Path) -> None:
    onnx.save(product({"x": ["N", 4]}), models / "plain.onnx")
    ran = oamip("bench", "plain.onnx", "--variant", "float16", *QUICKER, cwd=models)
    failed(ran, 3, "plain.onnx has no float16 variant. The model has no float32 weights")


def test_misaligned_widths_are_noted(models: Path) -> None:
    wide = Builder(["N", 16])
    hidden = wide.add("Relu", wide.add("MatMul", "x", wide.weight(16, 13)))
    onnx.save(wide.finish(wide.add("MatMul", hidden, wide.weight(13, 10))), models / "odd.onnx")
    ran = oamip("bench", "odd.onnx", *QUICKER, cwd=models)
    assert "1 of 1 convolutions and matrix products of odd.onnx have a width that is no multiple of" in ran.err


# --- comparison


def earlier(models: Path, factor: float, **changes: object) -> Path:
    """Measure the model, and return a report in which it took `factor` times as long, all else as it was."""
    path = models / "old.json"
    assert oamip("bench", "model.onnx", *QUICKER, "--json", path, cwd=models).code == 0
    report = json.loads(path.read_text())
    for entry in report["models"]:
        # An interval without width: what is tested is the comparison, not the machine.
        entry["latency_ms"]["p50"] *= factor
        entry["median_interval_ms"] = [entry["latency_ms"]["p50"]] * 2
        for key in ("ratio", "low", "high"):
            entry["yardstick"][key] *= factor
    report["environment"].update(changes)
    path.write_text(json.dumps(report))
    return path


def test_a_regression_is_written_and_exits_with_1(models: Path) -> None:
    earlier(models, 1e-3)
    ran = oamip("bench", "model.onnx", *QUICKER, "--compare", "old.json", "--json", "new.json", cwd=models)
    assert ran.code == 1
    assert "too slow" in ran.out
    assert "Slower than in 'old.json' by more than the 5 % allowed: model.onnx by +" in ran.err
    report = read_bench_report(models / "new.json")
    (entry,) = report.regressions()
    assert entry.low > 1.05
    assert regression_sentence(report) in " ".join(ran.err.split("error[regression]: ")[1].split("\n"))


def test_no_regression_exits_with_0(models: Path) -> None:
    earlier(models, 1e3)
    ran = oamip("bench", "model.onnx", "small.onnx", *QUICKER, "--compare", "old.json", cwd=models)
    assert ran.code == 0, ran.err
    assert "too slow" not in ran.out
    assert "1 of 2 rows have no counterpart in 'old.json'" in ran.err
    assert "cpu was" not in ran.err


@pytest.mark.parametrize(("text", "code"), [("0.05", 1), ("5%", 1), ("9900 %", 1), ("1e9", 0), ("fast", 2), ("-1", 2)])
def test_the_limit_is_a_share(models: Path, text: str, code: int) -> None:
    earlier(models, 1e-3)
    ran = oamip("bench", "model.onnx", *QUICKER, "--compare", "old.json", f"--max-slowdown={text}", cwd=models)
    assert ran.code == code, ran.err


def test_other_environments_are_warned_of(models: Path) -> None:
    earlier(models, 1.0, cpu="Other CPU", onnxruntime="1.0.0")
    ran = oamip("bench", "model.onnx", *QUICKER, "--compare", "old.json", "--max-slowdown", "1e9", cwd=models)
    assert ran.code == 0
    assert "environments of this benchmark and of 'old.json' differ" in ran.err
    assert "cpu was 'Other CPU' and is" in ran.err
    assert "onnxruntime was '1.0.0' and is" in ran.err
    cores = json.loads(earlier(models, 1.0, load_before=1e3).read_text())["environment"]["logical_cores"]
    ran = oamip("bench", "model.onnx", *QUICKER, "--compare", "old.json", "--max-slowdown", "1e9", cwd=models)
    assert f"the load per core was {1e3 / cores:.2f} and is" in ran.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no report of oamip bench --json: it has no schema version"),
        ('{"schema_version": 99}', "has the schema version 99; this version reads 1"),
        ('{"schema_version": 1, "original": {}}', "is no report of oamip bench --json: models: Field required"),
        (
            '{"schema_version": 1, "models": [], "environment": {}, "settings": {}, "notes": []}',
            "holds none of the models",
        ),
    ],
)
def test_what_is_no_earlier_report_is_refused(models: Path, content: str, message: str) -> None:
    (models / "old.json").write_text(content)
    failed(oamip("bench", "model.onnx", *QUICKER, "--compare", "old.json", cwd=models), 3, message)


@pytest.mark.parametrize(
    ("changes", "interval", "message"),
    [
        ({"load_before": "busy"}, None, "environment.load_before is 'busy', which is no load"),
        ({"logical_cores": 0}, None, "environment.logical_cores is 0, which is no number of cores"),
        ({}, [1e6, 1e7], "models.0: the median of"),
    ],
)
def test_an_earlier_report_with_impossible_values_is_refused_before_measuring(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    interval: list[float] | None,
    message: str,
) -> None:
    path = earlier(models, 1.0, **changes)
    report = json.loads(path.read_text())
    report["models"][0]["median_interval_ms"] = interval or report["models"][0]["median_interval_ms"]
    path.write_text(json.dumps(report))
    monkeypatch.setattr("oamip_onnx.benching.measure", lambda *_, **__: pytest.fail("measured"))
    failed(oamip("bench", "model.onnx", *QUICKER, "--compare", "old.json", cwd=models), 3, message)


def test_another_configuration_is_not_compared(models: Path) -> None:
    earlier(models, 1.0)
    ran = oamip("bench", "model.onnx", "--batch", "2", *QUICKER, "--compare", "old.json", cwd=models)
    failed(ran, 3, "it holds model.onnx on cpu, threads auto, batch 1, x=1,3,8,8")


# --- the function, and what is shown


def test_models_from_memory(models: Path) -> None:
    proto = GRAPHS["residual"]()
    steps: list[Step] = []
    report = oamip_onnx.benchmark(
        [proto, proto.SerializeToString(), models / "model.onnx", models / "model.onnx"],
        {"x": np.ones((2, 3, 8, 8), np.float32)},
        settings=SETTINGS,
        threads=[1],
        progress=steps.append,
    )
    assert [m.name for m in report.models][:2] == ["model 1", "model 2"]
    assert report.models[3].name == f"{models / 'model.onnx'} #2"
    assert report.regressions() == []
    assert [step.done for step in steps] == [0, 1]
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_library_errors(models: Path) -> None:
    with pytest.raises(UsageError, match="at least one model"):
        oamip_onnx.benchmark([])
    with pytest.raises(UsageError, match="The shape of input 'x' holds 0 samples"):
        oamip_onnx.benchmark(models / "model.onnx", input_shapes={"x": (0, 3, 8, 8)})
    with pytest.raises(UsageError, match="The seed cannot be -1"):
        oamip_onnx.benchmark(models / "model.onnx", seed=-1)
    onnx.save(product({"z": ["N", 4]}), models / "other.onnx")
    with pytest.raises(ModelError, match=r"has the inputs \['x'\].*has \['z'\]"):
        oamip_onnx.benchmark([models / "model.onnx", models / "other.onnx"])
    with pytest.raises(DataError):
        oamip_onnx.benchmark(models / "model.onnx", {"z": np.ones((1, 3, 8, 8), np.float32)})


@pytest.mark.parametrize("width", [40, 80, 160])
def test_tables_fit_any_terminal(models: Path, width: int) -> None:
    report = oamip_onnx.benchmark(
        [models / "model.onnx", models / "small.onnx"],
        settings=BenchSettings(6, 0.0, 1, 0.0, cold_processes=1),
        batches=[1, 2],
        profile=True,
    )
    short = {str(models / name): name for name in ("model.onnx", "small.onnx")}
    entries = [entry.model_copy(update={"name": short[entry.path]}) for entry in report.models]
    text = rendered(report.model_copy(update={"models": entries}), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "\x1b" not in text
    for entry in entries:
        assert f"{entry.latency_ms.p50:.3f}" in text
    for words in ("model.onnx", "small.onnx", "reference", "batch 2", "Conv"):
        assert words in text


def test_help_is_short() -> None:
    lines = oamip("bench", "--help").out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert "Example: oamip bench" in lines[-1]
