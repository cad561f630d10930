"""A converted model beside the original: whether it loads, has the same inputs and outputs, and answers alike."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from oamip_onnx.calibration import BATCH_SIZE, Samples, check_label_range
from oamip_onnx.converters.formats import Format, Runnable  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import ModelError, VerificationError
from oamip_onnx.model import Array
from oamip_onnx.runtime import RuntimeOptions, Session, TensorInfo
from oamip_onnx.verify import Drift
from oamip_onnx.verify.drift import drift_between, signal_to_noise_db

# Samples that decide which layers stay in float32.
_JUDGED_SAMPLES = 256


def judge(
    original: onnx.ModelProto, name: str, samples: Samples, options: RuntimeOptions
) -> Callable[[onnx.ModelProto], float] | None:
    """Return what says how close a converted model comes on the samples; None where nothing can be compared."""
    few = first(samples, _JUDGED_SAMPLES)
    session = Session(original, options)
    output = _float_output(session)
    expected = None if output is None else _values(session, output, few)
    if output is None or expected is None or not np.isfinite(expected).all():
        return None

    def sqnr_db(candidate: onnx.ModelProto) -> float:
        got = _values(loaded(candidate, options, name), output, few)
        return -math.inf if got is None or not np.isfinite(got).all() else signal_to_noise_db(expected, got)

    return sqnr_db


def runnable(chosen: Format, path: Path, options: RuntimeOptions) -> Runnable:
    """Return a written file in the runtime that it is for.

    Raises
    ------
    ModelError
        If the runtime rejects it.
    """
    return loaded(path, options, chosen.name) if chosen.in_onnxruntime else chosen.load(path, options.threads)


def verified(original: Session, after: Runnable, samples: Samples, name: str) -> Drift | None:
    """Return the drift of a written file that is loaded back, called `name`; None where nothing can be compared.

    Raises
    ------
    VerificationError
        If inputs or outputs differ in name, type or shape, or the output is not finite where the original's is.
    DataError
        If labels name classes that the output does not have.
    """
    before = original
    for kind, wanted, found in (("inputs", before.inputs, after.inputs), ("outputs", before.outputs, after.outputs)):
        if list(map(_without_names, wanted)) != list(map(_without_names, found)):
            raise VerificationError(
                f"As {name} the model has other {kind}: {found}, not {wanted}; nothing was written."
            )
    output = _float_output(before)
    expected = None if output is None else _values(before, output, samples)
    if output is None or expected is None or not np.isfinite(expected).all():
        return None
    got = _values(after, output, samples)
    if got is None or got.shape != expected.shape or not np.isfinite(got).all():
        raise VerificationError(
            f"As {name} the output {output!r} is not finite, or has another shape; nothing was written."
        )
    if samples.labels is not None and expected.ndim == 2:
        check_label_range(samples.labels, expected.shape[1])
    return drift_between(expected, got, samples)


def _without_names(info: TensorInfo) -> TensorInfo:
    """Return what a tensor is, but for the names of open dimensions, which other runtimes do not keep."""
    return TensorInfo(info.name, info.dtype, tuple(size if isinstance(size, int) else None for size in info.shape))


def loaded(model: onnx.ModelProto | Path, options: RuntimeOptions, name: str) -> Session:
    """Return the session of a converted model.

    Raises
    ------
    ModelError
        If ONNX Runtime rejects it.
    """
    try:
        return Session(model, options)
    except ModelError as error:
        raise ModelError(
            f"The model as {name} does not load on {options.provider}, and nothing was written. {error}"
        ) from error


def first(samples: Samples, count: int) -> Samples:
    """Return the first samples: at least one run."""
    return samples.take(slice(0, max(count, samples.run_size or 0)))


def _float_output(session: Runnable) -> str | None:
    return next((info.name for info in session.outputs if np.issubdtype(info.dtype, np.floating)), None)


def _values(session: Runnable, output: str, samples: Samples) -> Array | None:
    """Return an output over all samples; None where its shape depends on the data."""
    parts = [session.run(feeds, [output])[output] for feeds in samples.batches(BATCH_SIZE)]
    parts = [part[None] if part.ndim == 0 else part for part in parts]
    return np.concatenate(parts) if len({part.shape[1:] for part in parts}) == 1 else None
