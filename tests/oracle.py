"""Checks shared by tests: the masked oracle, and that a test does not pass emptily."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from oamip_onnx.channels import BoolArray, ChannelAnalysis, analyse
from oamip_onnx.masking import MaskedSession
from oamip_onnx.model import Model, bind_inputs, infer_shapes, load_model
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.surgery import cut

# Both models run unoptimised in float32 with sums of at most a few hundred terms: 1e-5 is a hundred roundings.
TOLERANCE = 1e-5

# The smallest relative change that shows that an output depends on its input, or on the mask.
VISIBLE = 1e-3

PLAIN = RuntimeOptions(threads=1, optimise=False)


def initializers(proto: onnx.ModelProto) -> dict[str, Any]:
    """Return the values of a graph's initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


@dataclass(frozen=True)
class Analysed:
    """A model with its channels."""

    model: Model
    analysis: ChannelAnalysis


def analysed(proto: onnx.ModelProto, *, shapes: dict[str, list[int]] | None = None, **settings: Any) -> Analysed:
    """Return a model with its channels; dynamic dimensions are bound to 1 unless shapes are given."""
    model = load_model(proto)
    if shapes is None:
        shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return Analysed(model, analyse(model, infer_shapes(model, bind_inputs(model, None, shapes)), **settings))


def random_kept(analysis: ChannelAnalysis, seed: int, share: float = 0.5) -> BoolArray:
    """Return random units that stay, equally many a block, at least one of each group gone."""
    generator = np.random.default_rng(seed)
    kept = np.zeros(analysis.unit_count, dtype=np.bool_)
    for group in analysis.groups:
        blocks = np.zeros(group.width, dtype=np.int64) if group.blocks is None else group.blocks
        own = np.zeros(group.width, dtype=np.bool_)
        for block in np.unique(blocks):
            members = np.flatnonzero(blocks == block)
            own[generator.permutation(members)[: max(1, round(len(members) * share))]] = True
        kept[group.units] = own
    return kept


def feeds_for(model: Model, seed: int, batch: int = 2) -> dict[str, npt.NDArray[np.float32]]:
    """Return one random batch."""
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        dims = [d.dim_value or batch for d in value.type.tensor_type.shape.dim]
        feeds[value.name] = generator.normal(size=dims).astype(np.float32)
    return feeds


def relative(got: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> float:
    """Return the largest difference relative to the largest expected value."""
    wanted = expected.astype(np.float64)
    return float(np.abs(got.astype(np.float64) - wanted).max() / np.abs(wanted).max())


def check_removal_equals_masking(found: Analysed, kept: BoolArray, seed: int = 0) -> onnx.ModelProto:
    """Assert that cutting equals masking, on an output that depends on input and mask; return the cut model."""
    model, analysis = found.model, found.analysis
    narrow = cut(model, analysis, kept)
    onnx.checker.check_model(narrow, full_check=True)
    first, second = feeds_for(model, seed), feeds_for(model, seed + 1)
    masked = MaskedSession(model, analysis, PLAIN)
    everything = np.ones(analysis.unit_count, dtype=np.bool_)
    session = Session(narrow, PLAIN)
    for feeds in (first, second):
        expected, got = masked.run(feeds, kept), session.run(feeds)
        for name in model.output_names:
            assert got[name].shape == expected[name].shape
            assert relative(got[name], expected[name]) <= TOLERANCE
    original = Session(model.proto, PLAIN).run(first)
    full, full_second = masked.run(first, everything), masked.run(second, everything)
    name = model.output_names[0]
    assert relative(full[name], original[name]) <= TOLERANCE
    assert relative(full_second[name], full[name]) > VISIBLE
    assert relative(masked.run(first, kept)[name], full[name]) > VISIBLE
    return narrow
