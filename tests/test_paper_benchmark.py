"""The benchmark of the paper's experiments: its smoke test measures every row, and a second run measures none."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "paper.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install 'oamip-onnx[torch]'"
    ),
]


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), *words], check=True, capture_output=True, text=True)
    return done.stdout


def test_every_experiment_gives_its_rows_and_they_are_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "paper.json"
    first = run("--quick", "--json", str(file), "--plot", str(tmp_path / "paper.svg"))
    rows = json.loads(file.read_text())
    assert {row["experiment"] for row in rows} == {"main", "decoupling", "sensitivity", "times", "snip", "transfer"}
    assert not [row["error"] for row in rows if "error" in row]
    main = [row for row in rows if row["experiment"] == "main"]
    chosen = ["random", "critical", "magnitude", "oamip-paper"]
    ours = ["oamip-rounds", "prune"]
    assert [row["method"] for row in main if row["run"] == 0] == ["reference", *chosen, *chosen, *ours]
    for row in main:
        assert 0 <= row["masked"] <= 1
        assert 0 <= row["tuned"] <= 1
    # Controls have as many units in every layer as the subnetwork of the program.
    widths = {(row["run"], row["selection"]): set() for row in main if "widths" in row}
    for row in main:
        if "widths" in row:
            widths[row["run"], row["selection"]].add(tuple(row["widths"]))
    assert all(len(found) == 1 for found in widths.values())
    assert all(row["solver"]["statuses"] for row in rows if row["experiment"] == "times")
    again = {(row["run"], row["method"]): row for row in rows if row["experiment"] == "snip"}
    assert {method for _, method in again} == {
        "reference",
        "random",
        "snip",
        "magnitude",
        "oamip-paper",
        "oamip-rounds",
    }
    equal = {row["run"]: row["widths"] for row in main if row["selection"] == "equal"}
    assert all(row.get("widths") in (None, equal[run]) for (run, _), row in again.items())
    assert all(0 <= row["trained"] <= 1 for row in again.values())
    moved = [row for row in rows if row["experiment"] == "transfer"]
    assert {row["target"] for row in moved} == {"digits, mirrored"}
    for row in moved:
        # The tiny network has 784 · 16 weights in its first layer: its budget is met to within a unit of that.
        assert row["removed"] == 0.0 if row["method"] == "reference" else 0.5 <= row["removed"] < 0.5 + 1 / 16
        assert 0 <= row["trained"] <= 1
    assert [len({row["method"] for row in moved if row["run"] == run}) for run in (0, 1)] == [4, 4]
    assert (tmp_path / "paper.svg").read_text().startswith("<?xml")

    for experiment in ("main", "sensitivity", "snip", "transfer"):
        again = run(experiment, "--quick", "--json", str(file))
        assert "trained in" not in again  # no row asked for a network
        assert again.strip() in first
    assert json.loads(file.read_text()) == rows
