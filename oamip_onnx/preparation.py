"""A model with its samples and channels, before anything is decided."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.budget import parse_target
from oamip_onnx.calibration import Samples, Source, check_label_range, load_samples, random_samples
from oamip_onnx.certify import input_box
from oamip_onnx.channels import ChannelAnalysis, analyse, comparable_tensor, with_minimum_widths
from oamip_onnx.config import PruneConfig
from oamip_onnx.errors import DataError, NothingToPruneError, UsageError
from oamip_onnx.importance import MomentStore, find_logits
from oamip_onnx.model import (
    Model,
    TensorType,
    as_float32,
    bind_inputs,
    has_rare_types,
    infer_shapes,
    load_model,
)
from oamip_onnx.repair import Repaired, with_biases
from oamip_onnx.runtime import RuntimeOptions, options_that_start, runs

_RANDOM_SAMPLES = 64

ModelSource = str | Path | bytes | onnx.ModelProto


@dataclass(frozen=True)
class Prepared:
    """A model with its samples and channels, before anything is decided.

    Attributes
    ----------
    original
        The model as it came, in canonical form; a float32 copy where the provider has no kernels for its types.
    stored
        What is cut for the file: the model with a bias at every layer, in its own types.
    model
        The same in the types of `original`.
    samples, types, analysis, options
        Calibration samples, concrete types, channels, provider and threads.
    compared
        The tensor that drift is measured on.
    logits
        The tensor that importance takes a loss of.
    moments
        Moments of what layers read, as far as they are known.
    repairs
        The last repairs, by settings and units.
    """

    original: Model
    stored: Model
    model: Model
    samples: Samples
    types: dict[str, TensorType]
    analysis: ChannelAnalysis
    options: RuntimeOptions
    compared: str
    logits: str
    moments: MomentStore = field(default_factory=MomentStore, repr=False, compare=False)
    repairs: dict[bytes, Repaired] = field(default_factory=dict, repr=False, compare=False)


def prepare(
    source: ModelSource,
    data: Source | None,
    config: PruneConfig,
    *,
    labels: str | Path | npt.NDArray[np.integer[Any]] | None = None,
    random_data: bool = False,
) -> Prepared:
    """Return a model with its samples and channel groups.

    Raises
    ------
    ModelError, DataError, UsageError
        If the model, the samples or a setting are not usable.
    """
    options, fallback = _options(config)
    original, stored, model = _load(source, config, options)
    if fallback:
        original = replace(original, notes=(*original.notes, fallback))
    shapes = config.input_shapes
    if data is not None:
        samples = load_samples(data, model, labels=labels, limit=config.samples)
        feeds = samples.one_run()
        types = infer_shapes(model, bind_inputs(model, feeds, shapes), feeds)
    elif random_data:
        types = infer_shapes(model, bind_inputs(model, None, shapes))
        count = config.samples or _RANDOM_SAMPLES
        samples = random_samples(model, types, count, config.seed, _ranges(model, config))
    else:
        raise DataError("Pruning needs calibration samples: give --data, or --random-data to do without.")
    analysis = analyse_as(model, types, config)
    compared = comparable_tensor(model, analysis)
    logits = find_logits(model, types, compared)
    check_classes(samples, types[logits])
    moments = MomentStore(config.memory_limit)
    return Prepared(original, stored, model, samples, types, analysis, options, compared, logits, moments)


def _options(config: PruneConfig) -> tuple[RuntimeOptions, str]:
    """Return the provider and threads of a run, and a sentence if the provider that was asked for does not start.

    Raises
    ------
    UsageError
        If this build of ONNX Runtime does not offer the provider, or a latency is wanted on one that does not start.
    """
    options, fallback = options_that_start(RuntimeOptions(config.provider, config.threads))
    if fallback and any(limit.kind == "latency" for limit in parse_target(config.target).limits):
        raise UsageError(
            f"The target {config.target!r} limits a latency on {config.provider}, which does not start here; oamip "
            "doctor says why. Limit the macs instead, or use --provider cpu."
        )
    return options, fallback


def _ranges(model: Model, config: PruneConfig) -> dict[str, tuple[float, float]] | None:
    """Return the range of each input where proofs are wanted over one."""
    if not config.lossless:
        return None
    lower, upper = input_box(config.input_range, model.input_names)
    return {name: (lower[name], upper[name]) for name in lower}


def analyse_as(model: Model, types: Mapping[str, TensorType], config: PruneConfig) -> ChannelAnalysis:
    """Return the channel groups of a model under the settings of a run.

    Raises
    ------
    ModelError, UsageError
        If the operands of a node do not fit each other, or a pattern matches nothing.
    """
    analysis = analyse(
        model,
        types,
        ignore=config.ignore,
        only=config.only,
        allow_inexact=config.allow_inexact,
        heads=config.heads,
    )
    return with_minimum_widths(model, analysis, config.min_width, config.max_ratio)


def _load(source: ModelSource, config: PruneConfig, options: RuntimeOptions) -> tuple[Model, Model, Model]:
    """Return the original, what is cut for the file, and what is analysed; see `Prepared`."""
    original = load_model(source)
    stored = original if config.repair == "none" else with_biases(original)
    if not has_rare_types(original.proto) or runs(original.proto, options):
        return original, stored, stored
    note = "Everything was computed and verified on a float32 copy: ONNX Runtime has no kernels for the model's types."
    copy = replace(original, proto=as_float32(original.proto), notes=(*original.notes, note))
    return copy, stored, replace(copy, proto=as_float32(stored.proto))


def check_classes(samples: Samples, logits: TensorType) -> None:
    """Raise if labels name classes that the logits do not have.

    Raises
    ------
    DataError
        With the label and the number of classes.
    """
    if samples.labels is not None and len(logits.shape) == 2:
        check_label_range(samples.labels, logits.shape[1])


def require_groups(model: Model, analysis: ChannelAnalysis) -> None:
    """Raise if nothing can be removed.

    Raises
    ------
    NothingToPruneError
        With the reasons.
    """
    if analysis.groups:
        return
    reasons = "; ".join(dict.fromkeys(f"{p.tensor!r}: {p.reason}" for p in analysis.pinned[:3]))
    what = f"the model {str(model.path)!r}" if model.path else "the model"
    if not reasons:
        raise NothingToPruneError(f"There is nothing to prune in {what}: it has no Conv, Gemm or MatMul with weights.")
    raise NothingToPruneError(
        f"There is nothing to prune in {what}, because {reasons.rstrip('.')}. oamip explain MODEL TENSOR says what "
        "would free a tensor."
    )
