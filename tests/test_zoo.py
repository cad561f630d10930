"""Half of every channel group goes from whole architectures, and the result equals the masked model."""

import numpy as np
import onnx
import pytest
from oracle import VISIBLE, relative
from zoo_models import ZOO, name_of, refill, skeletons

from oamip_onnx.budget import uniform_widths
from oamip_onnx.calibration import random_samples
from oamip_onnx.channels import analyse, select_units
from oamip_onnx.importance import ImportanceContext, find_logits, score
from oamip_onnx.model import bind_inputs, count_costs, infer_shapes, load_model
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.surgery import cut
from oamip_onnx.verify import check_result, compare_with_masked

OPTIONS = RuntimeOptions(threads=1)

# One of each kind of network, of those that take a few seconds.
SMALL = frozenset(
    "densenet121 googlenet mnasnet0_5 mobilenet_v3_small regnet_y_400mf shufflenet_v2_x0_5 squeezenet1_1 swin_t".split()
)

NAMES = [
    pytest.param(name, marks=[] if name in SMALL else [pytest.mark.slow])
    for name in (name_of(path) for path in skeletons())
]


@pytest.mark.parametrize("name", NAMES)
def test_half_of_every_group_goes(name: str) -> None:
    model = load_model(refill(name))
    types = infer_shapes(model, bind_inputs(model))
    analysis = analyse(model, types)
    samples, widths = random_samples(model, types, 2, 0), uniform_widths(analysis.groups, 0.5)
    context = ImportanceContext(model, analysis, samples, OPTIONS, widths, 0, find_logits(model, types))
    kept = select_units(analysis, widths, score("magnitude", context).values)
    narrow = cut(model, analysis, kept)

    check_result(narrow, model.proto, OPTIONS)
    verification = compare_with_masked(model, analysis, kept, narrow, samples, OPTIONS)
    assert verification.passed, verification

    small = load_model(narrow)
    after, before = count_costs(small, infer_shapes(small, bind_inputs(small))), count_costs(model, types)
    assert after.macs < before.macs
    assert after.parameters < before.parameters

    # An equality that neither the input nor the mask could break would prove nothing.
    first, second = (random_samples(model, types, 1, seed).feeds for seed in (1, 2))
    (output,) = model.output_names
    wide, thin = Session(model.proto, OPTIONS), Session(narrow, OPTIONS)
    original, pruned = wide.run(first)[output], thin.run(first)[output]
    assert np.isfinite(original).all()
    assert relative(wide.run(second)[output], original) > VISIBLE
    assert relative(thin.run(second)[output], pruned) > VISIBLE
    assert relative(pruned, original) > VISIBLE


def test_the_zoo_is_complete_and_the_default_run_finds_its_models() -> None:
    names = {name_of(path) for path in skeletons()}
    assert len(names) == 75
    assert names >= SMALL
    assert {name_of(path) for path in skeletons("resnet*")} == {f"resnet{n}" for n in (18, 34, 50, 101, 152)}


def test_filling_is_repeatable_and_leaves_nothing_open() -> None:
    first, again, other = refill("mnasnet0_5"), refill(ZOO / "mnasnet0_5.onnx.xz"), refill("mnasnet0_5", seed=1)
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert first.SerializeToString(deterministic=True) != other.SerializeToString(deterministic=True)
    assert not any(tensor.doc_string for tensor in first.graph.initializer)
    onnx.checker.check_model(first, full_check=True)
