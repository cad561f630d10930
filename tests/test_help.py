"""The help of every command, as users have it before them; `OAMIP_UPDATE_SNAPSHOTS=1` writes it anew."""

import os
from pathlib import Path

import pytest
from command import oamip

from oamip_onnx.cli import COMMANDS

SNAPSHOTS = Path(__file__).parent / "help"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_what_was_agreed(command: str) -> None:
    ran = oamip(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    lines = [line.rstrip() for line in ran.out.splitlines()]
    text = "\n".join(lines).rstrip() + "\n"
    file = SNAPSHOTS / f"{command or 'oamip'}.txt"
    if os.environ.get("OAMIP_UPDATE_SNAPSHOTS"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"if this is meant, run OAMIP_UPDATE_SNAPSHOTS=1 pytest {__file__}"
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    options = [line.split()[0] for line in lines if line.startswith("  -")]
    assert len(set(options) - {"--help"}) <= 20
    if command:
        assert "Example: oamip" in text
    else:
        # Each command in one line, to its end.
        assert not any(line.endswith("...") for line in lines[1:])


def test_every_command_has_a_snapshot_and_every_snapshot_a_command() -> None:
    assert {file.stem for file in SNAPSHOTS.glob("*.txt")} == {"oamip", *COMMANDS}
