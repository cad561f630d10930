"""The main job: a trained model and samples in; a narrower, verified, measured model out."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.bench import BenchSettings, LatencyComparison, compare_latency, describe_environment
from oamip_onnx.budget import parse_target, plan_widths
from oamip_onnx.calibration import Samples, Source, check_label_range, load_samples, random_samples
from oamip_onnx.channels import BoolArray, ChannelAnalysis, analyse, comparable_tensor, select_units
from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.errors import DataError, NothingToPruneError
from oamip_onnx.importance import ImportanceContext, Progress, Scores, find_logits, silent
from oamip_onnx.importance import score as score_units
from oamip_onnx.model import (
    Array,
    Model,
    TensorType,
    as_float32,
    bind_inputs,
    has_rare_types,
    infer_shapes,
    load_model,
    save_model,
)
from oamip_onnx.repair import HELD_OUT_SHARE, REPAIRS, RepairContext, Repaired, with_biases, with_initializers
from oamip_onnx.report import Findings, Result, make_result
from oamip_onnx.runtime import RuntimeOptions, runs
from oamip_onnx.surgery import cut
from oamip_onnx.verify import (
    Drift,
    Verification,
    check_result,
    check_validity,
    compare_with_masked,
    measure_drift,
    require_passed,
    with_scattered,
)

# The masked oracle runs on this many samples: a wrong index shows on the first, a few more cover dead units.
_VERIFICATION_SAMPLES = 64

_RANDOM_SAMPLES = 64

_LOG = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes
    ----------
    model
        The pruned model.
    report
        Everything measured, as data; `report.model_dump_json()` is the result JSON.
    """

    model: onnx.ModelProto
    report: Result
    external_data: bool = field(default=False, repr=False)

    def save(self, path: str | Path) -> int:
        """Write the model atomically and return its size in bytes.

        Raises
        ------
        OutputError
            If the target cannot be written.
        """
        return save_model(self.model, Path(path), external_data=self.external_data)


class _Clock:
    """Seconds by stage, and progress to whoever listens."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress or silent

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        self._progress(name, 0.0)
        began = time.perf_counter()
        yield self._progress
        self.seconds[name] = round(time.perf_counter() - began, 3)
        _LOG.info("%s took %.1f s", name, self.seconds[name])
        self._progress(name, 1.0)


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
    options = RuntimeOptions(config.provider, config.threads)
    options.provider_names()  # an unknown provider is reported before anything is loaded
    original, stored, model = _load(source, config, options)
    shapes = config.input_shapes
    if data is not None:
        samples = load_samples(data, model, labels=labels, limit=config.samples)
        feeds = samples.one_run()
        types = infer_shapes(model, bind_inputs(model, feeds, shapes), feeds)
    elif random_data:
        types = infer_shapes(model, bind_inputs(model, None, shapes))
        samples = random_samples(model, types, config.samples or _RANDOM_SAMPLES, config.seed)
    else:
        raise DataError("Pruning needs calibration samples: give --data, or --random-data to do without.")
    analysis = analyse_as(model, types, config)
    compared = comparable_tensor(model, analysis)
    logits = find_logits(model, types, compared)
    _check_classes(samples, types[logits])
    return Prepared(original, stored, model, samples, types, analysis, options, compared, logits)


def analyse_as(model: Model, types: Mapping[str, TensorType], config: PruneConfig) -> ChannelAnalysis:
    """Return the channel groups of a model under the settings of a run.

    Raises
    ------
    ModelError, UsageError
        If the operands of a node do not fit each other, or a pattern matches nothing.
    """
    return analyse(
        model,
        types,
        ignore=config.ignore,
        only=config.only,
        allow_inexact=config.allow_inexact,
        heads=config.heads,
    )


def _load(source: ModelSource, config: PruneConfig, options: RuntimeOptions) -> tuple[Model, Model, Model]:
    """Return the original, what is cut for the file, and what is analysed; see `Prepared`."""
    original = load_model(source)
    stored = original if config.repair == "none" else with_biases(original)
    if not has_rare_types(original.proto) or runs(original.proto, options):
        return original, stored, stored
    note = "Everything was computed and verified on a float32 copy: ONNX Runtime has no kernels for the model's types."
    copy = replace(original, proto=as_float32(original.proto), notes=(*original.notes, note))
    return copy, stored, replace(copy, proto=as_float32(stored.proto))


def _check_classes(samples: Samples, logits: TensorType) -> None:
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
    raise NothingToPruneError(
        f"There is nothing to prune in {what}, because {reasons or 'it has no Conv, Gemm or MatMul with weights'}"
    )


def score(prepared: Prepared, config: PruneConfig, progress: Progress | None = None) -> tuple[Scores, tuple[int, ...]]:
    """Return the importance of every unit, and the widths it was computed for.

    Raises
    ------
    SolverError, TargetError, UnsupportedOperatorError
        If a program has no solution, the target cannot be reached, or a form does not fit the model.
    """
    require_groups(prepared.model, prepared.analysis)
    widths = plan_widths(prepared.original, prepared.analysis, parse_target(config.target), config.round_to)
    context = ImportanceContext(
        prepared.model,
        prepared.analysis,
        prepared.samples,
        prepared.options,
        widths,
        config.seed,
        prepared.logits,
        progress,
        form=config.form,
        images=config.images,
    )
    return score_units(config.importance, context), widths


def prune(
    source: ModelSource,
    data: Source | None = None,
    *,
    evaluation: Source | None = None,
    labels: str | Path | npt.NDArray[np.integer[Any]] | None = None,
    random_data: bool = False,
    config: PruneConfig | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> PruneResult:
    """Return a physically narrower model with the same inputs and outputs, verified and measured.

    Parameters
    ----------
    source
        The model: a path, its bytes, or a message; it is not modified.
    data
        Calibration samples (see `oamip_onnx.calibration.load_samples`).
    evaluation
        Samples on which drift and accuracy are measured; the calibration samples by default.
    labels
        Class indices of the calibration samples, if they are not in `data`.
    random_data
        Draw samples at random for want of data; the report says so.
    config, settings
        Settings as a whole or by name (`PruneConfig`).
    progress
        Called with the stage and the share of it that is done.

    Raises
    ------
    OamipError
        One sentence that says what is wrong, where, and what to do; nothing is written.
    """
    config = make_config(config.model_dump() if config else {}, settings)
    parse_target(config.target)
    clock = _Clock(progress)
    environment = describe_environment(RuntimeOptions(config.provider, config.threads))
    with clock.stage("load"):
        prepared = prepare(source, data, config, labels=labels, random_data=random_data)
        require_groups(prepared.model, prepared.analysis)
        held_out = _evaluation(prepared, evaluation)
    with clock.stage("score") as report_progress:
        scores, widths = score(prepared, config, report_progress)
        kept = select_units(prepared.analysis, widths, scores.values)
    with clock.stage("cut"):
        narrow = cut(prepared.model, prepared.analysis, kept, _metadata(config))
    with clock.stage("verify"):
        verification = _verify(prepared, kept, narrow, {}, "after surgery")
    notes = [*prepared.original.notes, *prepared.samples.notes, *scores.notes, *_inexact_note(prepared.analysis)]
    with clock.stage("repair"):
        repaired = _repair(prepared, kept, narrow, config, notes)
    with clock.stage("verify repair"):
        if repaired.updates:
            verification = _worse(
                verification, _verify(prepared, kept, repaired.proto, repaired.updates, "after repair")
            )
        check_result(repaired.proto, prepared.original.proto, prepared.options)
        proto = _in_own_types(prepared, kept, repaired, _metadata(config))
    with clock.stage("drift"):
        drift = _drift(prepared, repaired.proto, held_out)
    with clock.stage("bench"):
        latency = _bench(prepared, repaired.proto, held_out, config) if config.bench else None
    findings = Findings(
        verification,
        drift,
        scores,
        kept,
        repaired,
        proto.ByteSize(),
        latency,
        environment.after(),
        tuple(notes),
        clock.seconds,
        "evaluation" if evaluation is not None else "calibration",
    )
    result = make_result(prepared.original, prepared.analysis, prepared.types, findings, config)
    return PruneResult(proto, result, prepared.original.external_data)


def _in_own_types(
    prepared: Prepared, kept: BoolArray, repaired: Repaired, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the pruned model in the types that the original has."""
    if prepared.stored is prepared.model:
        return repaired.proto
    narrow = cut(prepared.stored, prepared.analysis, kept, metadata)
    types = {t.name: t.data_type for t in narrow.graph.initializer}
    updates = {
        name: values.astype(onnx.helper.tensor_dtype_to_np_dtype(types[name]))
        for name, values in repaired.updates.items()
    }
    proto = with_initializers(narrow, updates)
    check_validity(proto, prepared.stored.proto)
    return proto


def _evaluation(prepared: Prepared, evaluation: Source | None) -> Samples:
    if evaluation is None:
        return prepared.samples
    samples = load_samples(evaluation, prepared.model)
    _check_classes(samples, prepared.types[prepared.logits])
    return samples


def _inexact_note(analysis: ChannelAnalysis) -> list[str]:
    inexact = [g.name for g in analysis.groups if not g.exact]
    if not inexact:
        return []
    note = f"The channels of {len(inexact)} groups lie under a normalisation over them, {inexact[0]!r} among them; "
    return [note + "the narrower model normalises over those it keeps."]


def _metadata(config: PruneConfig) -> dict[str, str]:
    """Return what the file says about its making; nothing that differs between two runs of the same command."""
    return {
        "oamip.target": config.target,
        "oamip.importance": config.importance,
        "oamip.repair": config.repair,
        "oamip.seed": str(config.seed),
    }


def _verify(
    prepared: Prepared, kept: BoolArray, narrow: onnx.ModelProto, updates: Mapping[str, Array], when: str
) -> Verification:
    few = prepared.samples.take(slice(0, max(_VERIFICATION_SAMPLES, prepared.samples.run_size or 0)))
    model = with_scattered(prepared.model, prepared.analysis, kept, updates)
    verification = compare_with_masked(model, prepared.analysis, kept, narrow, few, prepared.options)
    require_passed(verification, when)
    return verification


def _worse(left: Verification, right: Verification) -> Verification:
    return max(left, right, key=lambda v: v.max_rel_error / v.tolerance)


def _repair(
    prepared: Prepared, kept: BoolArray, narrow: onnx.ModelProto, config: PruneConfig, notes: list[str]
) -> Repaired:
    """Repair, unless that moves the output of held-out samples further away."""
    if config.repair == "none":
        return Repaired(narrow)
    context = RepairContext(
        prepared.model, prepared.analysis, kept, narrow, prepared.samples, prepared.options, config.seed
    )
    repaired = REPAIRS[config.repair](context)
    _, held_out = prepared.samples.split(HELD_OUT_SHARE)
    before, after = (_drift(prepared, proto, held_out) for proto in (narrow, repaired.proto))
    if repaired.updates and after.sqnr_db < before.sqnr_db:
        notes.append(
            f"The repair was left out: on held-out samples it moved the outputs from an SQNR of {before.sqnr_db:.1f} "
            f"to {after.sqnr_db:.1f} dB."
        )
        return Repaired(narrow, {}, repaired.steps)
    return repaired


def _drift(prepared: Prepared, proto: onnx.ModelProto, samples: Samples) -> Drift:
    return measure_drift(prepared.original.proto, proto, prepared.compared, samples, prepared.options)


def _bench(prepared: Prepared, proto: onnx.ModelProto, samples: Samples, config: PruneConfig) -> LatencyComparison:
    feeds = samples.one_run()
    return compare_latency(
        prepared.original.proto, proto, feeds, prepared.options, settings=BenchSettings(), seed=config.seed
    )
