"""PyTorch beside ONNX Runtime, and the models beside each other."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx

from oamip_onnx.calibration import Samples
from oamip_onnx.errors import VerificationError
from oamip_onnx.finetuning.job import Job, described
from oamip_onnx.model import Array, as_float32, has_rare_types, history_entry
from oamip_onnx.report import EvaluationRecord
from oamip_onnx.runtime import RuntimeOptions, Session, runs
from oamip_onnx.training import FinetuneSettings, shaping_options
from oamip_onnx.verify import run_output
from oamip_onnx.verify.metric import agreement

if TYPE_CHECKING:
    from oamip_onnx.training.interpreter import Network

# Samples that PyTorch and ONNX Runtime are compared on.
_COMPARED_SAMPLES = 64

# Both compute in float32, in other orders: sums of thousands of terms differ by 1e-5 of the largest output. A deep
# network may amplify that; what ONNX Runtime's own optimisations change shows by how much.
_TOLERANCE, _OWN_DIFFERENCES = 1e-4, 10.0

# In half precision ONNX Runtime rounds every intermediate value to 11 bits or fewer.
_HALF_TOLERANCE = 5e-3


def written(
    job: Job, network: "Network", settings: FinetuneSettings, options: RuntimeOptions
) -> tuple[onnx.ModelProto, float, float]:
    """Return the model with the network's weights, and by how much ONNX Runtime's outputs differ from PyTorch's."""
    from oamip_onnx.training.write_back import write_back  # noqa: PLC0415 - PyTorch is optional, and slow to import

    values = network.changed()
    load_rounded(network, values)
    step = history_entry(job.raw, "finetune", shaping_options(settings), job.model.sha256)
    proto = write_back(job.raw, values, {"oamip.finetune": described(job, settings), **step})
    error, tolerance = compare(network, proto, job.samples, options, "after the training")
    return proto, error, tolerance


def load_rounded(network: "Network", values: Mapping[str, Array]) -> None:
    """Let the network compute with weights as the file has them: rounded, where their type is narrower."""
    import torch  # noqa: PLC0415 - PyTorch is optional, and slow to import

    with torch.no_grad():
        for name, array in values.items():
            tensor = network.weights[name] if name in network.weights else network.statistics[name]
            tensor.copy_(torch.from_numpy(np.asarray(array, np.float32)))


def compare(
    network: "Network", proto: onnx.ModelProto, samples: Samples, options: RuntimeOptions, when: str
) -> tuple[float, float]:
    """Return the largest relative difference between PyTorch and ONNX Runtime, and what is allowed.

    Raises
    ------
    VerificationError
        If they differ by more.
    """
    import torch  # noqa: PLC0415 - PyTorch is optional, and slow to import

    computed = as_float32(proto) if has_rare_types(proto) and not runs(proto, options) else proto
    sessions = [Session(computed, options), Session(computed, RuntimeOptions(threads=options.threads, optimise=False))]
    names = [name for name in network.outputs if name in {o.name for o in proto.graph.output}]
    worst, tolerance = 0.0, _HALF_TOLERANCE if _in_half(proto) else _TOLERANCE
    few = samples.take(slice(0, max(_COMPARED_SAMPLES, samples.run_size or 0)))
    for feeds in few.batches(_COMPARED_SAMPLES):
        taken = feeds if computed is proto else {name: _single(values) for name, values in feeds.items()}
        wanted, other = (session.run(taken, names) for session in sessions)
        with torch.no_grad():
            found = network(network.tensors(feeds))
        for name in names:
            values = found[name].cpu().numpy()
            if values.shape != wanted[name].shape:
                raise VerificationError(
                    f"The model {when} has the output {name!r} of shape {values.shape} in PyTorch and "
                    f"{wanted[name].shape} in ONNX Runtime; nothing was written."
                )
            tolerance = max(tolerance, _OWN_DIFFERENCES * _difference(other[name], wanted[name]))
            worst = max(worst, _difference(values, wanted[name]))
    if worst > tolerance:
        raise VerificationError(
            f"The model {when} computes other outputs in PyTorch than in ONNX Runtime: they differ by {worst:.1e} of "
            f"the largest, and {tolerance:.1e} is allowed; nothing was written."
        )
    return worst, tolerance


def _single(values: Array) -> Array:
    return values.astype(np.float32) if values.dtype.kind in "fV" else values


def _in_half(proto: onnx.ModelProto) -> bool:
    halves = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return any(tensor.data_type in halves for tensor in proto.graph.initializer)


def _difference(found: Array, wanted: Array) -> float:
    """Return the largest difference relative to the largest finite value that is wanted; infinite, or NaN, is unequal.

    Equal values differ by nothing, infinities and NaN included.
    """
    left, right = (np.asarray(values, np.float64) for values in (found, wanted))
    unequal = (left != right) & ~(np.isnan(left) & np.isnan(right))
    if not unequal.any():
        return 0.0
    gap = np.abs(left[unequal] - right[unequal])
    finite = np.abs(right[np.isfinite(right)])
    largest = max(float(finite.max(initial=0.0)), float(np.finfo(np.float32).tiny))
    return float(gap.max()) / largest if bool(np.isfinite(gap).all()) else math.inf


def evaluate(job: Job, proto: onnx.ModelProto, options: RuntimeOptions) -> EvaluationRecord | None:
    """Return how the models compare on samples of their own."""
    samples, output = job.evaluation, job.objective.main
    if samples is None:
        return None
    original = None if job.original is None else run_output(job.original.proto, output, samples, options)
    before, after = (run_output(model, output, samples, options) for model in (job.raw, proto))
    labels = samples.labels
    if labels is not None and job.objective.logits is not None:

        def accuracy(values: Array) -> float:
            return float((values.argmax(axis=1) == labels).mean())

        return EvaluationRecord(
            metric="accuracy",
            original=None if original is None else accuracy(original),
            before=accuracy(before),
            after=accuracy(after),
            samples=samples.count,
        )
    if original is None:
        return None
    return EvaluationRecord(
        metric="agreement",
        original=1.0,
        before=agreement(original, before),
        after=agreement(original, after),
        samples=samples.count,
    )
