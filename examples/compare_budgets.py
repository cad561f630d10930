"""Compares budgets on one page: `python examples/compare_budgets.py`.

Three targets give three results. The page shows the first in full, and all of them as what is kept against what it
costs, as `oamip report result-70.json result-50.json result-30.json` does on the command line. The results and
`trade-off.html` go into the current folder. The page needs the extra `report`.
"""

# %% One run a budget
from pathlib import Path

import oamip_onnx
from oamip_onnx.report import read_result, report_page

SAMPLE = Path(__file__).parent / "fashion"

paths = []
for percent in (70, 50, 30):
    result = oamip_onnx.prune(
        SAMPLE / "lenet5.onnx",
        SAMPLE / "calibration.npz",
        evaluation=SAMPLE / "test.npz",
        target=f"macs={percent / 100}",
        importance="activation",
        samples=200,
        round_to=2,
        bench=False,
    )
    path = Path(f"result-{percent}.json")
    path.write_text(result.report.model_dump_json(indent=2), encoding="utf-8")
    paths.append(path)

# %% What each budget costs
results = [read_result(path) for path in paths]
for path, found in zip(paths, results, strict=True):
    metric = found.drift.metric
    accuracy = "" if metric is None else f", accuracy {metric.pruned:.3f} of {metric.original:.3f}"
    print(f"{path}: {found.pruned.macs / found.original.macs:.0%} of the MACs{accuracy}")

# %% The page, the first result in front
first, *others = results
Path("trade-off.html").write_text(report_page(first, others, title="LeNet-5 at three budgets"), encoding="utf-8")
print("The page is in trade-off.html.")
