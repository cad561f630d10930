"""Scores a model once and prunes it to several targets: `python examples/score_once_prune_often.py`.

Scoring is the long part of a run. Kept in a file, the scores serve any target, as `oamip score --out scores.json` and
`oamip prune --scores scores.json` do on the command line. The example writes `scores.json` and two models into the
current folder.
"""

# %% The model, samples, and settings that keep the example short
from pathlib import Path

import oamip_onnx
from oamip_onnx.config import make_config
from oamip_onnx.preparation import prepare
from oamip_onnx.report import score_report
from oamip_onnx.scoring import score

SAMPLE = Path(__file__).parent / "fashion"
MODEL, DATA = SAMPLE / "lenet5.onnx", SAMPLE / "calibration.npz"

config = make_config(
    {"importance": "oamip", "form": "layerwise", "images": 50, "samples": 200, "round_to": 2, "workers": 1}
)

# %% Score every unit by OAMIP in its layer-wise form
prepared = prepare(MODEL, DATA, config)
scores, plan = score(prepared, config)
text = score_report(prepared.analysis, scores, plan.widths, config).model_dump_json(indent=2)
Path("scores.json").write_text(text, encoding="utf-8")
print(f"{len(scores.values)} units scored")

# %% Prune with these scores, as often as you like
for percent in (70, 40):
    result = oamip_onnx.prune(
        MODEL,
        DATA,
        scores="scores.json",
        target=f"macs={percent / 100}",
        samples=200,
        round_to=2,
        bench=False,
    )
    result.save(f"small-{percent}.onnx")
    left = result.report.pruned.macs / result.report.original.macs
    print(f"small-{percent}.onnx: {left:.0%} of the MACs, top-1 agreement {result.report.drift.top1_agreement:.3f}")
