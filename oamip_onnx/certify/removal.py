"""Lossless removal as a whole: what is proven, the narrower model, and what was merged in it."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from oamip_onnx.certify.lossless import Box, LosslessUnits, find_lossless, kept_units
from oamip_onnx.certify.merging import MergedLayer, hidden_channels, merge_always_active
from oamip_onnx.channels import BoolArray, ChannelAnalysis
from oamip_onnx.errors import UnsupportedOperatorError, UsageError, closest
from oamip_onnx.formulation.build import build_network
from oamip_onnx.formulation.network import Network, Relu
from oamip_onnx.model import Array, Model
from oamip_onnx.surgery import cut


@dataclass(frozen=True)
class LosslessResult:
    """A smaller model with equal outputs for every input in the box.

    Attributes
    ----------
    proto
        The model, with inactive units cut and always active ones merged.
    narrow
        The same before merging, which a masked model can be compared with.
    kept
        Whether each unit of the original stays in `narrow`; shape (units,).
    units
        What is proven about each unit.
    merged
        The layers that units were merged into.
    skipped
        Sentences on always active units that stay as they are.
    """

    proto: onnx.ModelProto
    narrow: onnx.ModelProto
    kept: BoolArray
    units: LosslessUnits
    merged: tuple[MergedLayer, ...]
    skipped: tuple[str, ...]


def remove_losslessly(
    model: Model,
    analysis: ChannelAnalysis,
    lower: Box,
    upper: Box,
    logits: str,
    *,
    seconds: float,
    seed: int = 0,
    samples: Mapping[str, Array] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> LosslessResult:
    """Return a smaller model whose outputs are the original's for every input in a box; outside they may differ.

    Parameters
    ----------
    model, analysis
        The model and its channels; neither is modified.
    lower, upper
        Smallest and largest value of every input cell, by input; each broadcasts to the input's per-sample shape.
    logits
        Tensor up to which the model is described; what only other outputs read stays.
    seconds
        Wall-clock budget of the proofs; 0 for intervals alone.
    seed
        Seed of the random inputs and of SCIP.
    samples
        Real inputs, where there are any; they save time.
    metadata
        Entries to add to the model's metadata.

    Raises
    ------
    UsageError
        If the box lacks an input, names one that does not exist, is not finite, is empty, or does not fit.
    UnsupportedOperatorError
        If an operator on the way to the logits has no bounds.
    ModelError
        If a node cannot be narrowed.
    """
    for name in [*lower, *upper]:
        if name not in model.input_names:
            raise UsageError(f"There is no input {name!r} to give a range to{closest(name, model.input_names)}.")
    network = _network(model, analysis, logits)
    units = find_lossless(model, analysis, network, lower, upper, seconds=seconds, seed=seed, samples=samples)
    kept = kept_units(analysis, units.inactive)
    narrow = cut(model, analysis, kept, metadata)
    relus = {layer.output for layer in network.layers if isinstance(layer, Relu)}
    hidden = hidden_channels(narrow, analysis, kept, units.always_active, relus)
    result = merge_always_active(narrow, analysis.types, hidden)
    return LosslessResult(result.proto, narrow, kept, units, result.merged, result.skipped)


def _network(model: Model, analysis: ChannelAnalysis, logits: str) -> Network:
    try:
        return build_network(model, analysis, logits)
    except UnsupportedOperatorError as error:
        # Another form of the program, which the error recommends, is no help here.
        raise UnsupportedOperatorError(
            f"Lossless removal needs bounds on all values, and this model has none: {error.detail}."
        ) from error
