"""Asks why a layer can be cut, or why it stays: `python examples/explain_a_layer.py`.

`oamip explain examples/fashion/resnet8.onnx y` says the same on the command line. Nothing is run or written: groups
follow from the graph alone.
"""

# %% The model, and the types of its tensors
from pathlib import Path

from oamip_onnx.config import PruneConfig
from oamip_onnx.model import bind_inputs, infer_shapes, load_model
from oamip_onnx.report import Explainer

SAMPLE = Path(__file__).parent / "fashion"

model = load_model(SAMPLE / "resnet8.onnx")
types = infer_shapes(model, bind_inputs(model, None, {}))
explainer = Explainer(model, types, PruneConfig())

# %% A layer that can be cut: which weights become shorter with it, and what a unit costs
found = explainer.explain("/blocks/blocks.1/first/first.0/Conv")
for group in found.groups:
    print(f"{group.name}: {group.width} units, at least {group.minimum_width} stay")
    for constraint in group.constraints:
        print(f"  bound by: {constraint.detail}")
    for cut in group.slices:
        print(f"  {cut.initializer} becomes shorter on axis {', '.join(map(str, cut.axes))}")
    print(f"  a unit holds {group.step_macs:,} MACs and {group.step_parameters:,} parameters")

# %% A tensor whose channels stay: the reason, and what would change it
(output,) = explainer.explain("y").tensors
for axes in output.channels:
    for held in axes.held:
        print(f"y: {held.cells} channels stay ({held.code}): {held.reason}")
        print(f"  what would help: {held.remedy}")
