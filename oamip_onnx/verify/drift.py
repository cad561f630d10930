"""How far the pruned model's answers are from the original's."""

from dataclasses import dataclass

import numpy as np
import onnx

from oamip_onnx.calibration import BATCH_SIZE, Samples
from oamip_onnx.model import Array, with_outputs
from oamip_onnx.runtime import RuntimeOptions, Session


@dataclass(frozen=True)
class Drift:
    """Distance between the outputs of two models on the same samples.

    Attributes
    ----------
    cosine
        Mean cosine similarity of the outputs over samples.
    sqnr_db
        Signal to quantisation noise ratio, 10·log₁₀(Σ y² / Σ (y − y′)²), in decibel; infinite when equal.
    top1_agreement
        Share of samples with the same largest output; None where the output is no vector of classes.
    accuracy_original, accuracy_pruned
        Share of samples whose largest output is the label; None without labels.
    samples
        Number of samples compared.
    """

    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    accuracy_original: float | None
    accuracy_pruned: float | None
    samples: int


def run_output(model: onnx.ModelProto, output: str, samples: Samples, options: RuntimeOptions) -> Array:
    """Return one tensor over all samples, stacked along its first axis; it need not be an output."""
    session = Session(with_outputs(model, [output], keep=True), options)
    return np.concatenate([session.run(feeds, [output])[output] for feeds in samples.batches(BATCH_SIZE)])


def mean_cosine(before: Array, after: Array) -> float:
    """Return the mean cosine similarity of two arrays' samples; 1 for a sample that is zero in one of them."""
    old, new = (values.astype(np.float64).reshape(len(values), -1) for values in (before, after))
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    return float(np.divide((old * new).sum(axis=1), norms, out=np.ones_like(norms), where=norms > 0).mean())


def measure_drift(
    original: onnx.ModelProto, pruned: onnx.ModelProto, output: str, samples: Samples, options: RuntimeOptions
) -> Drift:
    """Return how far the named tensor has moved; both models have it, in the same shape.

    Raises
    ------
    ModelError
        If one of the models does not run.
    """
    before = run_output(original, output, samples, options)
    return drift_between(before, run_output(pruned, output, samples, options), samples)


def drift_between(before: Array, after: Array, samples: Samples) -> Drift:
    """Return how far an output has moved, from its values of both models in one row a sample.

    Parameters
    ----------
    before, after
        The values, of the same shape.
    samples
        The samples, with labels where there are any.
    """
    old, new = (values.reshape(len(values), -1) for values in (before, after))
    is_classes = before.ndim == 2 and before.shape[1] > 1
    labels = samples.labels if is_classes else None
    return Drift(
        cosine=mean_cosine(before, after),
        sqnr_db=signal_to_noise_db(before, after),
        top1_agreement=float((old.argmax(1) == new.argmax(1)).mean()) if is_classes else None,
        accuracy_original=None if labels is None else float((old.argmax(1) == labels).mean()),
        accuracy_pruned=None if labels is None else float((new.argmax(1) == labels).mean()),
        samples=len(old),
    )


def signal_to_noise_db(before: Array, after: Array) -> float:
    """Return 10·log₁₀(Σ y² / Σ (y − y′)²), in decibel; infinite for equal arrays."""
    old, new = before.astype(np.float64), after.astype(np.float64)
    noise = float(((old - new) ** 2).sum())
    signal = max(float((old**2).sum()), float(np.finfo(np.float64).tiny))
    return float("inf") if noise == 0 else float(10 * np.log10(signal / noise))
