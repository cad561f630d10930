"""The masked oracle: the cut model must compute what the masked original computes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from oamip_onnx.calibration import BATCH_SIZE, Samples
from oamip_onnx.channels import BoolArray, ChannelAnalysis, scatter_array
from oamip_onnx.errors import VerificationError
from oamip_onnx.masking import MaskedSession
from oamip_onnx.model import Array, Model, with_initializers
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.verify.difference import difference
from oamip_onnx.verify.segments import segment_errors

BASE_TOLERANCE = 1e-4
FLOAT16_TOLERANCE = 5e-3
LARGEST_TOLERANCE = 1e-2

# Comparing segments records the output of every contraction; a few samples do.
_SEGMENT_SAMPLES = 8

# ONNX Runtime's own rounding moves the masked model by its difference between optimisation levels; the cut model's
# kernels see other shapes and may round ten times as differently.
_ROUNDING_FACTOR = 10


@dataclass(frozen=True)
class Verification:
    """Outcome of a comparison with the masked model.

    Attributes
    ----------
    passed
        Whether the relative error is within the tolerance.
    max_abs_error
        Largest absolute difference over all outputs and samples, in the outputs' unit.
    max_rel_error
        Largest difference relative to the output's largest absolute value.
    tolerance
        Bound on the relative error.
    samples
        Number of samples compared.
    """

    passed: bool
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    samples: int


def compare_with_masked(
    model: Model,
    analysis: ChannelAnalysis,
    kept: BoolArray,
    cut: onnx.ModelProto,
    samples: Samples,
    options: RuntimeOptions,
) -> Verification:
    """Return how far the cut model is from the masked one on real samples.

    Where the outputs differ, or the masked model's own rounding is too large for them to decide, the models are
    compared from each contraction to the next, from equal inputs (`segment_errors`).

    Raises
    ------
    VerificationError
        If the outputs differ in name, shape or dtype, or are not finite in one model only.
    """
    base = BASE_TOLERANCE
    try:
        direct, base = _compare_outputs(model, analysis, kept, cut, samples, options)
        if direct.passed:
            return direct
    except VerificationError:
        pass  # a selection of boxes, say, that rounding decides
    # The model magnifies rounding so much that its outputs decide nothing, or they differ: its segments decide.
    few = samples.take(slice(0, max(_SEGMENT_SAMPLES, samples.run_size or 0)))
    absolute, relative = segment_errors(model, analysis, kept, cut, few, options)
    return Verification(relative <= base, absolute, relative, base, few.count)


def compare_with_original(
    model: Model, analysis: ChannelAnalysis, changed: onnx.ModelProto, samples: Samples, options: RuntimeOptions
) -> Verification:
    """Return how far a model that is to compute the same is from the original on real samples.

    Raises
    ------
    VerificationError
        If the outputs differ in name, shape or dtype, or are not finite in one model only.
    """
    every = np.ones(analysis.unit_count, dtype=np.bool_)
    return _compare_outputs(model, analysis, every, changed, samples, options)[0]


def _compare_outputs(
    model: Model,
    analysis: ChannelAnalysis,
    kept: BoolArray,
    cut: onnx.ModelProto,
    samples: Samples,
    options: RuntimeOptions,
) -> tuple[Verification, float]:
    """Return the comparison of the outputs, passed only where rounding lets them decide, and the base tolerance."""
    masked = MaskedSession(model, analysis, options)
    plain = MaskedSession(model, analysis, replace(options, optimise=False))
    narrow = Session(cut, options)
    absolute = relative = rounding = 0.0
    half = False
    for feeds in samples.batches(BATCH_SIZE):
        expected = masked.run(feeds, kept)
        unoptimised = plain.run(feeds, kept)
        got = narrow.run(feeds)
        for name, values in expected.items():
            half |= values.dtype == np.float16
            errors = difference(name, values, got[name])
            absolute, relative = max(absolute, errors[0]), max(relative, errors[1])
            rounding = max(rounding, difference(name, values, unoptimised[name])[1])
    base = FLOAT16_TOLERANCE if half else BASE_TOLERANCE
    tolerance = max(base, _ROUNDING_FACTOR * rounding)
    passed = relative <= tolerance <= LARGEST_TOLERANCE
    return Verification(passed, absolute, relative, tolerance, samples.count), base


def with_scattered(model: Model, analysis: ChannelAnalysis, kept: BoolArray, updates: Mapping[str, Array]) -> Model:
    """Return the original model with repaired tensors put back at the kept indices."""
    wide = {
        name: scatter_array(values, model.array(name), analysis.labels[name], kept)
        if name in analysis.labels
        else values
        for name, values in updates.items()
    }
    return replace(model, proto=with_initializers(model.proto, wide))


def require_passed(verification: Verification, when: str) -> None:
    """Raise unless the comparison passed.

    Raises
    ------
    VerificationError
        With the error and the tolerance.
    """
    if not verification.passed:
        raise VerificationError(
            f"The cut model differs from the masked one {when}: relative error {verification.max_rel_error:.2e}, "
            f"tolerance {verification.tolerance:.2e}. Nothing was written; please report this with the model."
        )
