"""Draws what the README shows of the demo, after `make demo`: its table, and its report in Chromium.

    python docs/picture.py

Writes docs/demo.svg and docs/report.png; Chromium is that of the tests.
"""

import io
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from oamip_onnx.report import before_after_table, read_result, summary_lines

HERE = Path(__file__).parent
DEMO = HERE.parent / "demo"

# The part of the page that a reader sees first, in CSS pixels.
WIDTH, HEIGHT = 1000, 1410


def main() -> None:
    """Draw both."""
    result = read_result(DEMO / "result.json")
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False)
    console.print(before_after_table(result))
    for line in summary_lines(result):
        console.print(line)
    (HERE / "demo.svg").write_text(console.export_svg(title="make demo"), encoding="utf-8")
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("docs/report.png needs Chromium: apt-get install chromium")
    page = (DEMO / "report" / "report.html").as_uri()
    look = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
    subprocess.run([chromium, *look, f"--screenshot={HERE / 'report.png'}", page], check=True, capture_output=True)  # noqa: S603 - the user's own browser on the user's own page


if __name__ == "__main__":
    main()
