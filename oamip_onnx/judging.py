"""What becomes of a subset of units: the model without the others, repaired, and its loss."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnx

from oamip_onnx.calibration import ActivationStream, Samples
from oamip_onnx.channels import BoolArray
from oamip_onnx.config import PruneConfig
from oamip_onnx.importance import Judge, Loss, loss_of
from oamip_onnx.model import Array, with_initializers
from oamip_onnx.preparation import Prepared
from oamip_onnx.repair import REPAIRS, RepairContext, Repaired
from oamip_onnx.surgery import cut

# Repairs that are remembered: those of the plans that are compared.
_REMEMBERED = 4


def loss_after_repair(prepared: Prepared, config: PruneConfig) -> Judge:
    """Return the loss towards the original that a subset has on the samples after the repair of a run.

    All samples count: of a few held out, the noise is larger than what subsets differ by.
    """

    @cache
    def loss() -> Loss:
        original = _values(prepared, prepared.model.proto, prepared.samples)
        return loss_of(original.shape, original)

    # The winner of one comparison enters the next.
    known: dict[bytes, float] = {}

    def judge(kept: BoolArray) -> float:
        key = kept.tobytes()
        if key not in known:
            narrow = cut(prepared.model, prepared.analysis, kept)
            proto = repaired(prepared, config, kept, narrow).proto
            known[key] = loss()(loss().read(_values(prepared, proto, prepared.samples)))
        return known[key]

    return judge


def repaired(prepared: Prepared, config: PruneConfig, kept: BoolArray, narrow: onnx.ModelProto) -> Repaired:
    """Return the cut model after the repair that the settings name; as it was cut where they name none.

    The last repairs are remembered: what was judged best is repaired already.
    """
    if config.repair == "none":
        return Repaired(narrow)
    key = f"{config.repair} {config.seed} {config.memory_limit} ".encode() + kept.tobytes()
    found = prepared.repairs.get(key)
    if found is not None:
        return replace(found, proto=with_initializers(narrow, found.updates))
    context = RepairContext(
        prepared.model,
        prepared.analysis,
        kept,
        narrow,
        prepared.samples,
        prepared.options,
        config.seed,
        config.memory_limit,
    )
    found = REPAIRS[config.repair](context)
    while len(prepared.repairs) >= _REMEMBERED:
        del prepared.repairs[next(iter(prepared.repairs))]
    prepared.repairs[key] = found
    return found


def _values(prepared: Prepared, proto: onnx.ModelProto, samples: Samples) -> Array:
    """Return what a model computes of the tensor that losses are taken of."""
    stream = ActivationStream(proto, [prepared.logits], prepared.options)
    return np.concatenate([batch[prepared.logits] for batch in stream.batches(samples)])
