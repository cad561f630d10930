"""What a terminal, a pipe and a log see: progress, notes and errors; colours only where they are wanted."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import FAST, failed, oamip
from scipy import sparse

from oamip_onnx.cli.display import describe, detail
from oamip_onnx.formulation.program import LinearRows, Program, VariableBlock
from oamip_onnx.progress import StageClock, Step

PROGRAM = [sys.executable, "-m", "oamip_onnx.cli.main"]
# Moves of the cursor, erased lines, hidden cursor; colours end in m.
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def on_terminal(arguments: list[str], cwd: Path, columns: int, **environment: str) -> tuple[int, str]:
    """Run the command line on a terminal of so many columns; return its exit code and all that it showed."""
    master, slave = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40", **environment}
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=variables, close_fds=True
    )
    os.close(slave)
    shown = bytearray()
    while True:
        ready, _, _ = select.select([master], [], [], 60)
        assert ready, "the command went silent"
        try:
            part = os.read(master, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    return process.wait(60), shown.decode()


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, cwd=cwd, check=False)


def lines_of(shown: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", COLOURS.sub("", MOVES.sub("", shown))) if line.strip()]


def test_a_terminal_sees_the_stages(work: Path) -> None:
    arguments = ["prune", "model.onnx", "out.onnx", "--data", "data.npz", "--importance", "removal", "--no-bench"]
    code, shown = on_terminal(arguments, work, 100)
    assert code == 0, shown
    assert re.search(r"\[\d/7\] (load|score|cut|verify|repair|drift)", shown), shown
    assert "Parameters" in shown
    assert "\x1b[?25h" in shown  # the cursor is back


@pytest.mark.parametrize("columns", [40, 80])
def test_nothing_is_wider_than_the_terminal(work: Path, columns: int) -> None:
    for arguments in (
        ["prune", "model.onnx", "out.onnx", "--data", "data.npz", *FAST],
        ["inspect", "model.onnx"],
        ["score", "model.onnx", "--random-data", "--importance", "magnitude"],
    ):
        code, shown = on_terminal(arguments, work, columns)
        assert code == 0, shown
        # Notes and sentences are left to the terminal to wrap; tables and the display are not.
        kept = [line for line in lines_of(shown) if line[0] in "┏┃┡│└" or arguments[0] == "inspect"]
        assert kept
        assert max(map(len, kept)) <= columns, kept


def test_no_colour_where_none_is_wanted(work: Path) -> None:
    code, shown = on_terminal(["inspect", "model.onnx"], work, 80, NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[3[0-9]", shown)
    code, shown = on_terminal(["prune", "model.onnx", "o.onnx", "--data", "data.npz", *FAST], work, 80, TERM="dumb")
    assert code == 0
    assert "\x1b" not in shown


def test_a_pipe_is_quiet(work: Path) -> None:
    # A refit would have a note for so few samples.
    command = [*PROGRAM, "prune", "model.onnx", "out.onnx", "--data", "data.npz", "--repair", "none", *FAST]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, check=True)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_json_lines(work: Path) -> None:
    arguments = ["prune", "model.onnx", "out.onnx", "--random-data", "--importance", "removal", "--no-bench"]
    ran = oamip("--log-format", "json", *arguments, cwd=work)
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in ran.err.splitlines()]
    assert {"time", "level", "event"} <= set.intersection(*(set(line) for line in lines))
    stages = [line["stage"] for line in lines if line["event"] == "progress"]
    assert list(dict.fromkeys(stages)) == ["load", "score", "cut", "verify", "repair", "verify repair", "drift"]
    removals = [line for line in lines if line.get("task") == "single removals"]
    assert removals[-1]["done"] == removals[-1]["total"] == 14
    assert any(line["event"] == "log" and "score took" in line["message"] for line in lines)
    assert any(line["event"] == "note" and "drawn at random" in line["message"] for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["prune", "none.onnx", "out.onnx", "--random-data"], "model", 3),
        (["shrink"], "usage", 2),
        (["prune", "model.onnx", "out.onnx", "--target", "ratio=2", "--random-data"], "usage", 2),
    ],
)
def test_errors_as_json(work: Path, arguments: list[str], code: str, exit_code: int) -> None:
    ran = oamip("--log-format", "json", *arguments, cwd=work)
    last = json.loads(ran.err.splitlines()[-1])
    assert (ran.code, last["event"], last["code"], last["exit_code"]) == (exit_code, "error", code, exit_code)
    assert last["message"].endswith((".", "?"))


def test_the_log_format_by_the_environment(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAMIP_LOG_FORMAT", "json")
    ran = oamip("inspect", "none.onnx", cwd=work)
    assert json.loads(ran.err)["code"] == "model"
    monkeypatch.setenv("OAMIP_LOG_FORMAT", "xml")
    ran = oamip("inspect", "none.onnx", cwd=work)
    assert (ran.code, "no log format 'xml'" in ran.err) == (2, True)


def test_a_closed_pipe_ends_quietly(work: Path) -> None:
    script = f"{' '.join(PROGRAM)} inspect model.onnx --json - | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = shell(script, work)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")
    # The reader is gone before anything is written.
    command = f"sleep 0.1; {' '.join(PROGRAM)} prune model.onnx out.onnx --data data.npz {' '.join(FAST)}"
    done = shell(f"({command}; echo $? > code) | true", work)
    assert ((work / "code").read_text(), done.stderr) == ("0\n", "")
    assert (work / "out.onnx").exists()


def test_a_reader_of_the_log_that_leaves_does_not_end_the_job(work: Path) -> None:
    arguments = f"prune model.onnx out.onnx --data data.npz {' '.join(FAST)}"
    script = f"({' '.join(PROGRAM)} --log-format json {arguments} 2>&1 >/dev/null; echo $? > code) | true"
    shell(script, work)
    assert (work / "code").read_text() == "0\n"
    assert (work / "out.onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "model.onnx", "model.onnx", "--data", "data.npz"],
        ["prune", "model.onnx", "out.onnx", "--data", "data.npz", "--json", "model.onnx"],
        ["prune", "model.onnx", "out.onnx", "--data", "data.npz", "--json", "./out.onnx"],
        ["score", "model.onnx", "--data", "data.npz", "--out", "model.onnx"],
        ["inspect", "model.onnx", "--json", "model.onnx"],
        ["explain", "model.onnx", "t0", "--json", "model.onnx"],
    ],
)
def test_nothing_takes_the_place_of_what_is_read(work: Path, arguments: list[str]) -> None:
    before = (work / "model.onnx").read_bytes()
    failed(oamip(*arguments, cwd=work), 3, "choose another name", work)
    assert (work / "model.onnx").read_bytes() == before


def test_names_that_the_terminal_cannot_show_are_no_error(work: Path) -> None:
    proto = onnx.load(work / "model.onnx")
    proto.graph.node[0].name = "层"
    onnx.save(proto, work / "model.onnx")
    variables = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [*PROGRAM, "explain", "model.onnx", "层"]
    done = subprocess.run(command, capture_output=True, cwd=work, env=variables, check=True)
    assert b"\\u5c42" in done.stdout
    done = subprocess.run([*command, "--json", "-"], capture_output=True, cwd=work, env=variables, check=True)
    assert json.loads(done.stdout.decode())["name"] == "层"


def test_json_on_standard_output_is_json_alone(work: Path) -> None:
    command = f"{' '.join(PROGRAM)} prune model.onnx out.onnx --data data.npz --json - {' '.join(FAST)}"
    reader = f"{sys.executable} -c 'import json, sys; print(json.load(sys.stdin)[\"schema_version\"])'"
    done = shell(f"{command} | {reader}", work)
    assert done.stdout == "1\n"


def test_names_with_spaces_and_signs(work: Path) -> None:
    folder = work / "мои модели & 'данные'"
    folder.mkdir()
    (work / "model.onnx").rename(folder / "mein Modell é.onnx")
    (work / "data.npz").rename(folder / "dà ta.npz")
    proto = onnx.load(folder / "mein Modell é.onnx")
    proto.graph.node[0].name = "层 [1] $x$ | <b>"
    onnx.save(proto, folder / "mein Modell é.onnx")
    arguments = ["prune", "mein Modell é.onnx", "out put.onnx", "--data", "dà ta.npz", "--report", "re port", *FAST]
    ran = oamip(*arguments, "--json", "-", cwd=folder)
    assert ran.code == 0, ran.err
    again = json.loads(ran.out)["command"]
    assert again.startswith("oamip prune 'mein Modell é.onnx' 'mein Modell é-pruned.onnx' --data 'dà ta.npz'")
    assert (folder / "out put.onnx").exists()
    assert "层 [1] $x$ | &lt;b&gt;" in (folder / "re port" / "report.html").read_text()


def test_the_command_in_the_result_makes_the_same_model_again(work: Path) -> None:
    arguments = ["prune", "model.onnx", "model-pruned.onnx", "--data", "data.npz", "--round-to", 1]
    more = ["--set", "seed=3", "--ignore", "re:t[89]", "--set", "input_shapes={x=[1,3,8,8]}", "--repair", "bias"]
    ran = oamip(*arguments, *more, *FAST, "--json", "-", cwd=work)
    assert ran.code == 0, ran.err
    first = (work / "model-pruned.onnx").read_bytes()
    (work / "model-pruned.onnx").unlink()
    command = json.loads(ran.out)["command"]
    program = f"{' '.join(PROGRAM)} {command.removeprefix('oamip ')}"
    assert shell(program, work).returncode == 0
    assert (work / "model-pruned.onnx").read_bytes() == first


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to see which libraries are loaded")
@pytest.mark.parametrize("library", ["numpy", "onnxruntime", "scipy"])
def test_interruptions_while_the_libraries_load(work: Path, library: str) -> None:
    process = subprocess.Popen([*PROGRAM, "inspect", "model.onnx"], stdout=-1, stderr=-1, text=True, cwd=work)
    maps = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 60
    while f"/{library}/" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "error[interrupted]: interrupted; nothing was written.\n")


def test_what_was_written_before_an_interruption_is_said(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("oamip_onnx.cli.prune._show", interrupt)
    ran = oamip("prune", "model.onnx", "out.onnx", "--data", "data.npz", *FAST, cwd=work)
    assert (ran.code, ran.err.strip()) == (
        130,
        "error[interrupted]: interrupted; 'out.onnx' was written before.",
    )


def test_an_interrupted_search_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyscipopt

    from oamip_onnx.solvers import integer

    class Interrupted(pyscipopt.Model):
        def getStatus(self) -> str:  # noqa: N802 - PySCIPOpt's name
            return "userinterrupt"

    monkeypatch.setattr(pyscipopt, "Model", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        integer.IntegerSolver().solve(_knapsack())


def _knapsack() -> Program:
    count = 4
    block = VariableBlock("take", 0, np.zeros(count), np.ones(count), np.ones(count, np.bool_))
    matrix = sparse.csr_array(np.array([[3.0, 4.0, 5.0, 6.0]]))
    rows = LinearRows("weight", matrix, np.array([-np.inf]), np.array([10.0]))
    return Program("knapsack", (block,), (rows,), -np.arange(1.0, count + 1), 0.0)


def test_a_search_leaves_its_trace() -> None:
    from oamip_onnx.solvers import integer

    result = integer.IntegerSolver().solve(_knapsack()).result
    assert result.trace
    last = result.trace[-1]
    assert last.incumbent == pytest.approx(result.objective)
    assert last.bound == pytest.approx(result.bound)
    seconds = [point.seconds for point in result.trace]
    assert seconds == sorted(seconds)


def test_steps_in_words() -> None:
    step = Step("response round 2", 300, 1200, stage="score", stage_number=2, stage_count=8)
    assert describe(step) == "[2/8] score: response round 2"
    assert describe(step, narrow=True) == "[2/8] score"
    assert detail(step) == "300 of 1,200"
    assert detail(Step("search", 0.5, incumbent=3.14159, gap=0.0421)) == "best 3.142, gap 4.2%"
    assert detail(Step("search", 0.5, incumbent=3.0, gap=1e20)) == "best 3, no bound yet"
    assert step.share == 0.25


def test_stages_report_their_number_and_their_seconds() -> None:
    steps: list[Step] = []
    clock = StageClock(steps.append, ["load", "score"])
    with clock.stage("load"):
        pass
    with clock.stage("score") as tell:
        tell(Step("programs", 1, 2))
    assert [(s.stage_number, s.stage_count, s.stage, s.task, s.share) for s in steps] == [
        (1, 2, "load", "load", 0.0),
        (1, 2, "load", "load", 1.0),
        (2, 2, "score", "score", 0.0),
        (2, 2, "score", "programs", 0.5),
        (2, 2, "score", "score", 1.0),
    ]
    assert list(clock.seconds) == ["load", "score"]
