"""The examples run as they are, in a folder of their own, and do what they say."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from oamip_onnx.report import Result, ScoreReport

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path) -> str:
    """Run an example with warnings as errors, and return what it prints."""
    # One thread of linear algebra: two workers of the tests would fight for the cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OAMIP_CACHE_DIR": str(folder / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-W", "error", EXAMPLES / name]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_prune_a_model(tmp_path: Path) -> None:
    printed = run("prune_a_model.py", tmp_path)
    assert "equal to the masked model: True" in printed
    result = Result.model_validate_json((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result.pruned.macs <= 0.5 * result.original.macs
    assert result.drift.metric is not None
    assert result.drift.metric.pruned > 0.8
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"), full_check=True)
    assert (tmp_path / "small.onnx").stat().st_size < 0.6 * (EXAMPLES / "fashion" / "lenet5.onnx").stat().st_size


def test_score_once_prune_often(tmp_path: Path) -> None:
    printed = run("score_once_prune_often.py", tmp_path)
    scores = ScoreReport.model_validate_json((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores.importance == "oamip (layerwise)"
    assert f"{sum(group.before for group in scores.groups)} units scored" in printed
    sizes = [(tmp_path / f"small-{percent}.onnx").stat().st_size for percent in (70, 40)]
    assert sizes == sorted(sizes, reverse=True)
    agreements = [float(value) for value in re.findall(r"agreement ([\d.]+)", printed)]
    assert agreements == sorted(agreements, reverse=True)
    assert agreements[0] > 0.9


def test_compare_budgets(tmp_path: Path) -> None:
    printed = run("compare_budgets.py", tmp_path)
    assert (
        len(re.findall(r"^result-\d+\.json: \d+% of the MACs, accuracy 0\.\d+ of 0\.\d+$", printed, re.MULTILINE)) == 3
    )
    page = (tmp_path / "trade-off.html").read_text(encoding="utf-8")
    assert "LeNet-5 at three budgets" in page
    assert "<script" not in page


def test_benchmark_models(tmp_path: Path) -> None:
    printed = run("benchmark_models.py", tmp_path)
    assert "resnet8.onnx" in printed
    found = re.findall(r"^batch (\d): (?:surely|perhaps) [\d.]+ times as fast as the first$", printed, re.MULTILINE)
    assert found == ["1", "8"]


def test_explain_a_layer(tmp_path: Path) -> None:
    printed = run("explain_a_layer.py", tmp_path)
    assert "/blocks/blocks.1/first/first.0/Conv_output_0: 32 units, at least 0 stay" in printed
    assert "becomes shorter on axis 0" in printed
    assert "y: 10 channels stay (graph-output)" in printed
    assert "what would help: " in printed
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_write_a_report(tmp_path: Path) -> None:
    printed = run("write_a_report.py", tmp_path)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.html", "report.md", "result.json"}
    assert (tmp_path / "report" / "report.md").read_text(encoding="utf-8").strip() in printed


def test_every_example_is_listed_and_tested() -> None:
    listed = set(re.findall(r"\[(\w+\.py)\]", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}
    assert {f"test_{Path(name).stem}" for name in listed} <= set(globals())


def test_examples_import_what_the_reference_lists() -> None:
    reference = (EXAMPLES.parent / "docs" / "reference.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oamip_onnx"):
                for alias in node.names:
                    name = alias.name if node.module == "oamip_onnx.config" else f"{node.module}.{alias.name}"
                    assert re.search(rf"^::: .*\b{re.escape(name)}$", reference, re.MULTILINE), (path.name, name)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"`python examples/{path.name}`" in text.split('"""')[1]
    assert text.count("# %% ") >= 3
