"""The examples in docstrings run, and are typed."""

import doctest
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import GRAPHS

ROOT = Path(__file__).parent.parent

MODULES = (
    "oamip_onnx",
    "oamip_onnx.benching",
    "oamip_onnx.calibration.datasets",
    "oamip_onnx.config",
    "oamip_onnx.converters.base",
    "oamip_onnx.errors",
    "oamip_onnx.exporting.run",
    "oamip_onnx.importing.run",
    "oamip_onnx.model.provenance",
    "oamip_onnx.pipeline",
    "oamip_onnx.report.folder",
    "oamip_onnx.report.inspection",
    "oamip_onnx.report.markdown",
    "oamip_onnx.report.read",
    "oamip_onnx.running.run",
    "oamip_onnx.runtime.providers",
)


def examples(module: str) -> list[doctest.DocTest]:
    """Return the examples of a module; nothing is imported for them, as in a reader's own script."""
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(module), globs={}) if test.examples]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a current folder with the files that examples name."""
    onnx.save(GRAPHS["residual"](), tmp_path / "model.onnx")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=x, labels=generator.integers(0, 5, 40))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.usefixtures("folder")
def test_examples_do_what_they_say(module: str) -> None:
    found = examples(module)
    assert found, f"{module} has no examples"
    runner = doctest.DocTestRunner(verbose=False)
    said: list[str] = []
    for test in found:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_every_module_with_examples_is_tested() -> None:
    for part in ("oamip_onnx", "converters"):
        for path in sorted((ROOT / part).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                own = name if part == "oamip_onnx" else f"oamip_onnx.{name}"
                assert own in MODULES, f"{own} has examples that no test runs"


@pytest.mark.slow
def test_examples_are_typed(tmp_path: Path) -> None:
    tests = [test for module in MODULES for test in examples(module)]
    sources = ["".join(example.source for example in test.examples) for test in tests]
    # What installs inside the package stands beside it here.
    text = "".join(
        f"def example_{number}() -> None:\n{textwrap.indent(source, '    ')}\n" for number, source in enumerate(sources)
    ).replace("oamip_onnx.converters", "converters")
    script = tmp_path / "examples.py"
    script.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", script]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout
