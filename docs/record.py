"""Runs the commands of the pages again and writes what they print: `python docs/record.py [PAGE…]`, all by default.

Every ``console`` block is run, page by page, in one temporary folder with the shipped sample. Blocks from which lines
were left out (``…``) stay as they are. It takes a few minutes; times are those of the machine.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent

# In the order in which pages use each other's files.
PAGES = (
    *("quickstart.md", "commands/prune.md", "commands/score.md", "commands/bench.md", "commands/report.md"),
    *("commands/inspect.md", "commands/explain.md", "results.md", "errors.md"),
)


def record(page: Path, work: Path) -> None:
    """Write a page with what its commands print in a folder."""

    def printed(block: re.Match[str]) -> str:
        lines = re.findall(r"^\$ (.*)$", block[1], flags=re.MULTILINE)
        if "…" in block[1]:
            return block[0]
        return "```console\n" + "".join(f"$ {line}\n{_run(line, work)}" for line in lines) + "```"

    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"^```console\n(.*?)^```", printed, text, flags=re.MULTILINE | re.DOTALL), encoding="utf-8")


def _run(line: str, work: Path) -> str:
    """Return what a command prints, standard error below standard output."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "FORCE_COLOR"}}
    environment = {**kept, "PATH": path, "OAMIP_CACHE_DIR": str(work / "cache")}
    ran = subprocess.run(  # noqa: S603 - what the pages show
        [shutil.which("bash") or "bash", "-c", line],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return "".join(f"{said.rstrip()}\n" for said in (ran.stdout + ran.stderr).splitlines())


def main() -> None:
    """Record the pages named on the command line."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for file in (FOLDER.parent / "examples" / "fashion").iterdir():
            if file.suffix in {".onnx", ".npz"}:
                shutil.copy(file, work)
        for name in sys.argv[1:] or PAGES:
            record(FOLDER / name, work)


if __name__ == "__main__":
    main()
