"""Draws the before/after table of a result as docs/demo.svg: `make demo`, then `python docs/picture.py`."""

import io
import sys
from pathlib import Path

from rich.console import Console

from oamip_onnx.report import Result, before_after_table, summary_lines

HERE = Path(__file__).parent


def main() -> None:
    """Read the result JSON named on the command line, demo/result.json by default, and draw it."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "demo" / "result.json"
    result = Result.model_validate_json(source.read_text(encoding="utf-8"))
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False)
    console.print(before_after_table(result))
    for line in summary_lines(result):
        console.print(line)
    (HERE / "demo.svg").write_text(console.export_svg(title="make demo"), encoding="utf-8")


if __name__ == "__main__":
    main()
