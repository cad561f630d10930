"""The files for deployment do what they say: the image's install steps, the pipeline, the job of the example."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import oamip

from oamip_onnx.running.definition import read_definition

ROOT = Path(__file__).parent.parent
DEPLOYMENT, FASHION = ROOT / "examples" / "deployment", ROOT / "examples" / "fashion"

FRAMEWORKS = ("torch", "keras", "tensorflow", "jax", "flax", "paddle", "skl2onnx", "tf2onnx", "jax2onnx", "onnxscript")


def steps() -> list[list[str]]:
    """Return the instructions of the Dockerfile: the first word, and the others as a shell splits them."""
    lines = (DEPLOYMENT / "Dockerfile").read_text().splitlines()
    found = [line.partition(" ") for line in lines if line.strip() and not line.startswith("#")]
    return [[name, *([rest] if name == "RUN" else shlex.split(rest))] for name, _, rest in found]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of a clean environment, made by the install steps of the Dockerfile."""
    work = tmp_path_factory.mktemp("image")
    source, programs = work / "source", work / "venv" / "bin"
    source.mkdir()
    subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True, timeout=120)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    for name, *arguments in steps():
        if name == "COPY":
            *names, target = arguments
            for one in names:
                copy = shutil.copytree if (ROOT / one).is_dir() else shutil.copy
                copy(ROOT / one, source / target / one if target == "./" else source / target)
        elif name == "RUN":
            subprocess.run(["/bin/sh", "-c", arguments[0]], cwd=source, env=environment, check=True, timeout=540)
    # What was installed must not need the source.
    shutil.rmtree(source)
    return programs


def in_bare(bare: Path, work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(bare), "HOME": str(work), "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    return subprocess.run(
        [bare / arguments[0], *arguments[1:]],
        cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def test_the_image_starts_the_command() -> None:
    assert ["ENTRYPOINT", "[oamip]"] in steps()
    (start,) = [arguments for name, *arguments in steps() if name == "FROM"]
    # The oldest Python that the package takes, or a newer one.
    version = re.fullmatch(r"python:3\.(\d+)-slim", start[0])
    assert version is not None
    assert int(version[1]) >= 11


def test_every_core_command_works_with_no_framework(bare: Path, work: Path) -> None:
    look = f"import importlib.util; print([name for name in {FRAMEWORKS} if importlib.util.find_spec(name)])"
    found = in_bare(bare, work, "python", "-c", look)
    assert (found.stdout.strip(), found.stderr) == ("[]", "")
    data, fast = ["--data", "data.npz"], ["--importance", "magnitude", "--no-bench"]
    (work / "pipeline.toml").write_text(
        'model = "model.onnx"\ndata = "data.npz"\n[prune]\nimportance = "magnitude"\n[[export]]\nformat = "ort"\n'
    )
    for arguments in (
        ["--version"],
        ["import", "model.onnx", "imported.onnx"],
        ["prune", "imported.onnx", "small.onnx", *data, *fast, "--json", "result.json", "--report", "report"],
        ["score", "small.onnx", *data, "--importance", "magnitude"],
        ["inspect", "small.onnx"],
        ["explain", "model.onnx", "Conv_0[1]"],
        ["bench", "model.onnx", "small.onnx", "--seconds", "0.05", "--runs", "5", "--no-cold-start"],
        ["export", "small.onnx", "small-int8.onnx", "--format", "int8", *data, "--no-bench"],
        ["run", "pipeline.toml"],
        ["report", "result.json", "--output", "again.html"],
        ["doctor", "--no-measure"],
    ):
        ran = in_bare(bare, work, "oamip", *arguments)
        assert ran.returncode == 0, (arguments, ran.stderr)
        assert "Traceback" not in ran.stderr
    assert json.loads((work / "result.json").read_text())["verification"]["passed"]


def test_what_needs_a_framework_says_how_to_get_it(bare: Path, work: Path) -> None:
    (work / "net.keras").write_bytes(b"PK\x03\x04")
    for arguments, command in (
        (["finetune", "model.onnx", "out.onnx", "--data", "data.npz"], "pip install 'oamip-onnx[torch]'"),
        (["import", "net.keras", "out.onnx"], "pip install 'oamip-onnx[keras]'"),
    ):
        ran = in_bare(bare, work, "oamip", *arguments)
        assert ran.returncode == 3, ran.stderr
        assert command in ran.stderr
        assert "Traceback" not in ran.stderr


def test_the_shipped_pipeline_runs(tmp_path: Path) -> None:
    shutil.copytree(FASHION, tmp_path / "fashion")
    shutil.copytree(DEPLOYMENT, tmp_path / "deployment", ignore=shutil.ignore_patterns("build"))
    ran = oamip("run", "deployment/pipeline.toml", "--json", "-", cwd=tmp_path)
    report = json.loads(ran.out)
    # How much faster it is depends on the machine, and on what else it does.
    missed = [one["name"] for one in report["requirements"] if not one["passed"]]
    assert set(missed) <= {"min_speedup"}
    assert ran.code == (1 if missed else 0), ran.err
    assert {stage["name"] for stage in report["stages"]} == {"prune", "export int8", "bench"}
    assert (tmp_path / "deployment" / "build" / "exported-int8.onnx").exists()


def test_the_job_runs_the_pipeline_and_keeps_what_it_makes() -> None:
    job = (DEPLOYMENT / "github-actions.yml").read_text()
    commands = re.findall(r"- run: (.+)", job)
    (command,) = [one for one in commands if one.startswith("oamip ")]
    definition, _ = read_definition(DEPLOYMENT / "pipeline.toml")
    assert shlex.split(command)[:3] == ["oamip", "run", "pipeline.toml"]
    assert shlex.split(command)[4] in job.partition("upload-artifact")[2]
    # Its cache is the folder of the pipeline.
    assert f"path: {definition.folder}\n" in job
    assert definition.check.max_drop is not None
    assert definition.check.min_speedup is not None
