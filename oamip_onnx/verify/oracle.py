"""The masked oracle: the cut model must compute what the masked original computes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from oamip_onnx.calibration import BATCH_SIZE, Samples
from oamip_onnx.channels import BoolArray, ChannelAnalysis, scatter_array
from oamip_onnx.errors import VerificationError
from oamip_onnx.masking import MaskedSession
from oamip_onnx.model import Array, Model
from oamip_onnx.repair import with_initializers
from oamip_onnx.runtime import RuntimeOptions, Session

BASE_TOLERANCE = 1e-4
FLOAT16_TOLERANCE = 5e-3
LARGEST_TOLERANCE = 1e-2

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

    Raises
    ------
    VerificationError
        If the outputs differ in name, shape or dtype, or are not finite in one model only.
    """
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
            errors = _errors(name, values, got[name])
            absolute, relative = max(absolute, errors[0]), max(relative, errors[1])
            rounding = max(rounding, _errors(name, values, unoptimised[name])[1])
    base = FLOAT16_TOLERANCE if half else BASE_TOLERANCE
    tolerance = min(max(base, _ROUNDING_FACTOR * rounding), LARGEST_TOLERANCE)
    return Verification(relative <= tolerance, absolute, relative, tolerance, samples.count)


def _errors(name: str, expected: Array, got: Array) -> tuple[float, float]:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise VerificationError(
            f"The output {name!r} of the cut model has shape {got.shape} and dtype {got.dtype}; "
            f"the masked model has {expected.shape} and {expected.dtype}. Nothing was written; please report this."
        )
    if expected.size == 0:
        return 0.0, 0.0
    if expected.dtype.kind not in "fcV":
        differ = float((expected != got).mean())
        return differ, differ
    wanted, found = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(found)):
        raise VerificationError(f"The output {name!r} is finite in one of the models only; nothing was written.")
    if not bool(finite.any()):
        return 0.0, 0.0
    absolute = float(np.abs(wanted - found)[finite].max())
    scale = float(np.abs(wanted[finite]).max())
    return absolute, absolute / scale if scale > 0 else absolute


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
