"""Prunes a model and writes the narrower one: `python examples/prune_a_model.py`.

The files go into the current folder: `small.onnx` and `result.json`. The settings keep the example short: a fast
criterion and 200 of the samples. Without `importance` and `samples` the program chooses the criterion, on all samples,
which takes a minute or two.
"""

# %% The model, and samples like those that it will see
from pathlib import Path

import oamip_onnx

SAMPLE = Path(__file__).parent / "fashion"

# %% Remove units until at most half of the multiply-accumulate operations are left
result = oamip_onnx.prune(
    SAMPLE / "lenet5.onnx",
    SAMPLE / "calibration.npz",
    evaluation=SAMPLE / "test.npz",
    target="macs=0.5",
    importance="activation",
    samples=200,
    round_to=2,
    bench=False,
)

# %% What was found, as data; in a notebook, the name of a result alone shows it as a table
report = result.report
print(f"MACs: {report.original.macs:,} before, {report.pruned.macs:,} after")
print(f"equal to the masked model: {report.verification.passed}")
if report.drift.metric is not None:
    print(f"accuracy: {report.drift.metric.original:.3f} before, {report.drift.metric.pruned:.3f} after")
for group in report.groups:
    print(f"{group.name}: {group.before} units before, {group.after} after")

# %% Write the model, and the result for other programs
print(f"small.onnx has {result.save('small.onnx'):,} bytes")
Path("result.json").write_text(report.model_dump_json(indent=2), encoding="utf-8")
