"""Writes the report of a run as a page, as Markdown and as JSON: `python examples/write_a_report.py`.

The folder `report` appears in the current folder, as with `oamip prune --report report`. The page opens without a
network; `report.md` is for the description of a pull request. The page needs the extra `report`.
"""

# %% A run
from pathlib import Path

import oamip_onnx
from oamip_onnx.report import read_result, report_markdown, write_report_folder

SAMPLE = Path(__file__).parent / "fashion"

result = oamip_onnx.prune(
    SAMPLE / "lenet5.onnx",
    SAMPLE / "calibration.npz",
    target="ratio=0.5",
    importance="magnitude",
    samples=200,
    round_to=2,
    bench=False,
)

# %% The folder, all of it or nothing
TITLE = "LeNet-5 at half of its widths"
write_report_folder(result.report, Path("report"), title=TITLE)
for path in sorted(Path("report").iterdir()):
    print(f"{path.name}: {path.stat().st_size:,} bytes")

# %% Later, from the file
print(report_markdown(read_result(Path("report/result.json")), title=TITLE))
