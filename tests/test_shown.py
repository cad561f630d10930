"""What commands print and notebooks show: names as they are, at any width."""

import io
from pathlib import Path
from typing import Any

import onnx
import pytest
from command import FAST, oamip
from graphs import GRAPHS
from rich.console import Console

import oamip_onnx
from oamip_onnx.bench import BenchSettings
from oamip_onnx.config import make_config
from oamip_onnx.doctor import examine
from oamip_onnx.model import infer_shapes, load_model
from oamip_onnx.report import DoctorReport, Explainer, inspect_channels
from oamip_onnx.report.grid import Grid, Labelled, Section
from oamip_onnx.report.shown import Shown, byte_size, change, milliseconds, table_html

# Markup of rich that would colour, vanish, or be an error.
NAME = "[red]x[/red] [/]"


def renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose first node, and what it makes, are called so."""
    first = proto.graph.node[0]
    before, first.name, first.output[0] = first.output[0], NAME, NAME
    for node in proto.graph.node:
        node.input[:] = [NAME if name == before else name for name in node.input]
    del proto.graph.value_info[:]
    return proto


@pytest.fixture
def marked(work: Path) -> Path:
    """Return a folder with such a model, and a copy whose file is called so."""
    onnx.save(renamed(GRAPHS["residual"]()), work / "model.onnx")
    onnx.save(renamed(GRAPHS["residual"]()), work / "[red]x[bold].onnx")
    return work


def printed(shown: object, width: int = 120) -> str:
    text = io.StringIO()
    Console(width=width, file=text, highlight=False).print(shown)
    return text.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "model.onnx"],
        ["inspect", "model.onnx", "--ignore", NAME.replace("[", "[[]")],
        ["explain", "model.onnx", NAME],
        ["explain", "model.onnx", f"tensor:{NAME}"],
        ["explain", "model.onnx", f"group:{NAME}[1]"],
        ["score", "model.onnx", "--data", "data.npz", "--importance", "magnitude"],
    ],
)
def test_names_are_shown_as_they_are(marked: Path, arguments: list[str]) -> None:
    ran = oamip(*arguments, cwd=marked)
    assert ran.code == 0, ran.err
    assert NAME in ran.out


def test_names_do_not_end_a_run(marked: Path) -> None:
    ran = oamip("prune", "model.onnx", "out.onnx", "--data", "data.npz", *FAST, cwd=marked)
    assert ran.code == 0, ran.err
    quick = ["--seconds", "0", "--runs", "5", "--no-cold-start", "--profile"]
    ran = oamip("bench", "model.onnx", "[red]x[bold].onnx", *quick, cwd=marked)
    assert ran.code == 0, ran.err
    # A row of the latencies, and the title of a column of operators.
    assert ran.out.count("[red]x[bold].onnx") == 2


def reports() -> dict[str, Shown]:
    """Return a report of each command that shows one, made without a measurement where that takes long."""
    proto = renamed(GRAPHS["attention_heads"]())
    model = load_model(proto)
    shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    explainer = Explainer(model, infer_shapes(model, shapes), make_config())
    return {
        "inspect": inspect_channels(model, explainer.analysis),
        "explain": explainer.explain(f"tensor:{NAME}"),
        "doctor": examine(measure=False),
        "bench": oamip_onnx.benchmark(
            proto, settings=BenchSettings(2, 0.0, 1, 0.0, cold_processes=0), input_shapes=shapes
        ),
    }


def test_a_notebook_shows_what_a_terminal_shows() -> None:
    for name, report in reports().items():
        html: str = report._repr_html_()
        assert html.startswith(("<table>", "<p>")), name
        assert html.count("<table>") == len(report.tables()) >= 1, name
        words = {word for word in printed(report, 2000).split() if word.isalnum()}
        assert {word for word in words if word not in html} == set(), name


def test_a_notebook_shows_names_as_they_are() -> None:
    html: str = reports()["explain"]._repr_html_()
    assert f"<p>Tensor {NAME}</p>" in html


def test_a_doctor_without_a_cache_folder_says_so() -> None:
    report = reports()["doctor"]
    assert isinstance(report, DoctorReport)
    without = report.cache.model_copy(update={"path": None})
    assert "set OAMIP_CACHE_DIR" in printed(report.model_copy(update={"cache": without}))


@pytest.mark.parametrize("width", [30, 60, 200])
def test_grids_lose_nothing_at_any_width(width: int) -> None:
    rows = (("a name that is long", "12.5", "", "w" * 40), (NAME, "3", "some text", "[/]"))
    grid = Grid(("Name", "Size", "Notes", "Words"), (Section("part", rows),), frozenset({"Notes", "Words"}))
    text = printed(grid, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for cell in ("part", "12.5", "a name that is long", NAME, "some text", "[/]"):
        assert cell in text
    assert text.lower().count("w") >= 40


def test_labels_and_texts_are_shown_as_they_are() -> None:
    labelled = Labelled("Title [/]", (("[b]label", ":warning: [red]text[/red]"), ("empty", "")))
    text = printed(labelled, 60)
    for words in ("Title [/]", "[b]label", ":warning: [red]text[/red]"):
        assert words in text
    assert "empty" not in text
    html = table_html(labelled.table())
    assert "<caption>Title [/]</caption>" in html
    assert "<thead>" not in html


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (milliseconds(0.1234), "0.123"),
        (milliseconds(12.3456), "12.35"),
        (milliseconds(123.456), "123.5"),
        (change(1.25), "+25.0 %"),
        (change(0.5), "-50.0 %"),
        (byte_size(17), "17 B"),
        (byte_size(1536), "1.5 KiB"),
        (byte_size(3 * 2**20), "3.0 MiB"),
        (byte_size(5 * 2**29), "2.50 GiB"),
    ],
)
def test_numbers_have_one_form(found: Any, expected: str) -> None:
    assert found == expected
