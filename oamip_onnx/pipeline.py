"""The main job: a trained model and samples in; a narrower, verified, measured model out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.bench import (
    BenchSettings,
    LatencyComparison,
    compare_latency,
    describe_environment,
    profile_nodes,
    profiled_runs,
    times_by_operator,
)
from oamip_onnx.budget import parse_target
from oamip_onnx.calibration import Samples, Source, load_samples
from oamip_onnx.certify import input_box, remove_losslessly
from oamip_onnx.channels import BoolArray, ChannelAnalysis, select_units
from oamip_onnx.config import PruneConfig, make_config, shaping_options
from oamip_onnx.errors import DataError, UnsupportedOperatorError, UsageError
from oamip_onnx.importance import Scores
from oamip_onnx.judging import repaired
from oamip_onnx.model import (
    Array,
    history_entry,
    with_initializers,
)
from oamip_onnx.planning import Plan, alignment_of
from oamip_onnx.preparation import ModelSource, Prepared, check_classes, prepare, require_groups
from oamip_onnx.progress import Progress, StageClock
from oamip_onnx.repair import HELD_OUT_SHARE, Repaired
from oamip_onnx.report import (
    Findings,
    LosslessRecord,
    MetricRecord,
    ModelWithReport,
    Result,
    lossless_record,
    make_result,
    read_scores,
    reproducing_command,
)
from oamip_onnx.scoring import plan_for, score
from oamip_onnx.searching import smallest_within_drop
from oamip_onnx.surgery import cut
from oamip_onnx.verify import (
    Drift,
    Metric,
    Verification,
    check_result,
    check_validity,
    compare_with_masked,
    compare_with_original,
    comparison_by,
    load_metric,
    measure_drift,
    require_passed,
    with_scattered,
)

# The masked oracle runs on this many samples: a wrong index shows on the first, a few more cover dead units.
_VERIFICATION_SAMPLES = 64

_Operators = tuple[Mapping[str, float], Mapping[str, float]]
_NO_PROFILE: _Operators = ({}, {})


class PruneResult(ModelWithReport[Result]):
    """What `prune` returns; a notebook, and rich's `print`, show it as the before/after table.

    Attributes
    ----------
    model
        The pruned model.
    report
        Everything measured, as data; `report.model_dump_json()` is the result JSON.

    Examples
    --------
    >>> import oamip_onnx
    >>> result = oamip_onnx.prune("model.onnx", "calibration.npz", importance="magnitude", bench=False)
    >>> result.report.pruned.macs < result.report.original.macs
    True
    >>> [output.name for output in result.model.graph.output]
    ['y']
    >>> size = result.save("small.onnx")
    """


def _stages(config: PruneConfig) -> list[str]:
    """Return the stages of a run in their order."""
    decide = ["prove"] if config.lossless else ["score", "cut"]
    return ["load", *decide, "verify", "repair", "verify repair", "drift", *(["bench"] if config.bench else [])]


def prune(
    source: ModelSource,
    data: Source | None = None,
    *,
    evaluation: Source | None = None,
    labels: str | Path | npt.NDArray[np.integer[Any]] | None = None,
    random_data: bool = False,
    scores: str | Path | None = None,
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
    scores
        A file of `oamip score --out`, in place of scoring.
    config, settings
        Settings as a whole or by name (`PruneConfig`).
    progress
        Called with the stage and the share of it that is done.

    Raises
    ------
    OamipError
        One sentence that says what is wrong, where, and what to do; nothing is written.

    Examples
    --------
    >>> import oamip_onnx
    >>> result = oamip_onnx.prune(
    ...     "model.onnx", "calibration.npz", target="macs=0.5", importance="activation", round_to=1, bench=False
    ... )
    >>> result.report.pruned.macs <= 0.5 * result.report.original.macs
    True
    >>> result.report.importance
    'activation'

    What goes wrong is one class of errors, whose code says what kind of error it is:

    >>> try:
    ...     oamip_onnx.prune("model.onnx", "calibration.npz", target="half")
    ... except oamip_onnx.OamipError as error:
    ...     print(error.code, "-", error)
    usage - The target 'half' has no value; write for example ratio=0.5.
    """
    config = _checked(make_config(config.model_dump() if config else {}, settings), scores)
    metric = load_metric(config.metric) if config.metric else Metric()
    clock = StageClock(progress, _stages(config))
    with clock.stage("load"):
        prepared = prepare(source, data, config, labels=labels, random_data=random_data)
        environment = describe_environment(prepared.options)
        require_groups(prepared.model, prepared.analysis)
        held_out = _evaluation(prepared, evaluation)
    decision = (
        _proven(prepared, config, clock)
        if config.lossless
        else _scored(prepared, config, clock, scores, metric, held_out)
    )
    kept = decision.kept
    with clock.stage("verify"):
        verification = _verify(prepared, kept, decision.narrow, {}, "after surgery")
    notes = [*prepared.original.notes, *prepared.samples.notes, *decision.scores.notes]
    notes += _inexact_note(prepared.analysis)
    if config.round_to == "auto" and not config.lossless:
        notes.append(f"Widths are multiples of {alignment_of(config)}, which pays where the model runs.")
    with clock.stage("repair"):
        outcome = decision.merged or _repair(prepared, kept, decision.narrow, config, notes)
    with clock.stage("verify repair"):
        if decision.merged:
            # What is merged has to compute what the original does.
            merged = compare_with_original(
                prepared.model, prepared.analysis, outcome.proto, _few(prepared), prepared.options
            )
            require_passed(merged, "after merging")
            verification = _worse(verification, merged)
        elif outcome.updates:
            verification = _worse(verification, _verify(prepared, kept, outcome.proto, outcome.updates, "after repair"))
        check_result(outcome.proto, prepared.original.proto, prepared.options)
        proto = _in_own_types(prepared, kept, outcome, _metadata(prepared, config, decision.scores))
    with clock.stage("drift"):
        drift = _drift(prepared, outcome.proto, held_out)
        figures = None if metric.function is None else _figures(prepared, metric, outcome.proto, held_out)
    latency, operators = None, _NO_PROFILE
    if config.bench:
        with clock.stage("bench"):
            latency, operators = _bench(prepared, outcome.proto, held_out, config)
    findings = Findings(
        verification,
        drift,
        decision.scores,
        kept,
        outcome,
        proto.ByteSize(),
        latency,
        environment.after(),
        tuple(notes),
        clock.seconds,
        "evaluation" if evaluation is not None else "calibration",
        operators,
        reproducing_command(
            config,
            source,
            {"--data": data, "--eval": evaluation, "--labels": labels, "--scores": scores},
            random_data=random_data,
        ),
        decision.lossless,
        decision.plan,
        figures,
    )
    result = make_result(prepared.original, prepared.model, prepared.analysis, prepared.types, findings, config)
    return PruneResult(proto, result, prepared.original.external_data)


@dataclass(frozen=True)
class _Decision:
    """Which units stay, the model without the others, and for lossless removal what else was done."""

    scores: Scores
    kept: BoolArray
    narrow: onnx.ModelProto
    merged: Repaired | None = None
    lossless: LosslessRecord | None = None
    plan: Plan | None = None


def _checked(config: PruneConfig, scores: str | Path | None) -> PruneConfig:
    """Return the settings of a run, checked against each other."""
    parse_target(config.target)
    if not config.lossless:
        if config.input_range:
            raise UsageError("The input range is that of lossless removal; add --lossless, or leave --input-range out.")
        return config
    if scores is not None:
        raise UsageError("Lossless removal needs no scores; give --lossless or --scores, not both.")
    # A repair would change outputs that are equal.
    return config.model_copy(update={"repair": "none"})


def _scored(
    prepared: Prepared,
    config: PruneConfig,
    clock: StageClock,
    scores_path: str | Path | None,
    metric: Metric,
    held_out: Samples,
) -> _Decision:
    """Remove what scores lowest at the target."""
    with clock.stage("score") as report_progress:
        if scores_path is None:
            scores, plan = _found(prepared, config, metric, held_out, report_progress)
        else:
            scores, plan = plan_for(
                prepared, config, read_scores(Path(scores_path), prepared.analysis), report_progress
            )
        kept = select_units(prepared.analysis, plan.widths, scores.values)
    with clock.stage("cut"):
        narrow = cut(prepared.model, prepared.analysis, kept, _metadata(prepared, config, scores))
    return _Decision(scores, kept, narrow, plan=plan)


def _found(
    prepared: Prepared, config: PruneConfig, metric: Metric, held_out: Samples, progress: Progress
) -> tuple[Scores, Plan]:
    """Return scores and widths for a target of any kind."""
    target = parse_target(config.target)
    if target.kind != "max-drop":
        return score(prepared, config, progress)
    require_groups(prepared.model, prepared.analysis)
    return smallest_within_drop(prepared, config, target.limits[0], metric, held_out, progress)


def _proven(prepared: Prepared, config: PruneConfig, clock: StageClock) -> _Decision:
    """Remove and merge what is proven to change nothing."""
    if prepared.stored is not prepared.model:
        raise UnsupportedOperatorError(
            "Lossless removal needs a model whose types ONNX Runtime computes in; convert it to float32 first."
        )
    lower, upper = input_box(config.input_range, prepared.model.input_names)
    _check_inside(prepared.samples, lower, upper)
    with clock.stage("prove"):
        found = remove_losslessly(
            prepared.model,
            prepared.analysis,
            lower,
            upper,
            prepared.logits,
            seconds=config.lossless_seconds,
            seed=config.seed,
            samples=prepared.samples.feeds,
            metadata=_metadata(prepared, config, Scores(np.zeros(0), "lossless")),
        )
    units = found.units
    notes = [*units.notes]
    if found.kept.all() and not found.merged:
        notes.append("Nothing is proven removable over this range of the inputs; the model is the original.")
    scores = Scores((~units.inactive).astype(np.float64), "lossless", notes=tuple(notes))
    return _Decision(
        scores, found.kept, found.narrow, Repaired(found.proto), lossless_record(found, config.input_range)
    )


def _check_inside(samples: Samples, lower: Mapping[str, float], upper: Mapping[str, float]) -> None:
    """Raise if a sample lies outside the range that proofs are wanted over."""
    for name, values in samples.feeds.items():
        least, most = float(values.min()), float(values.max())
        if least < lower[name] or most > upper[name]:
            raise DataError(
                f"The samples of the input {name!r} lie between {least:g} and {most:g}, outside the input range "
                f"{lower[name]:g},{upper[name]:g} that outputs are to be equal over; widen --input-range."
            )


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
    check_classes(samples, prepared.types[prepared.logits])
    return samples


def _inexact_note(analysis: ChannelAnalysis) -> list[str]:
    inexact = [g.name for g in analysis.groups if not g.exact]
    if not inexact:
        return []
    note = f"The channels of {len(inexact)} groups lie under a normalisation over them, {inexact[0]!r} among them; "
    return [note + "the narrower model normalises over those it keeps."]


def _metadata(prepared: Prepared, config: PruneConfig, scores: Scores) -> dict[str, str]:
    """Return what the file says about its making; nothing that differs between two runs of the same command."""
    return {
        "oamip.target": config.target,
        "oamip.importance": scores.criterion,
        "oamip.repair": config.repair,
        "oamip.seed": str(config.seed),
        **history_entry(prepared.original.proto, "prune", shaping_options(config), prepared.original.sha256),
    }


def _verify(
    prepared: Prepared, kept: BoolArray, narrow: onnx.ModelProto, updates: Mapping[str, Array], when: str
) -> Verification:
    model = with_scattered(prepared.model, prepared.analysis, kept, updates)
    verification = compare_with_masked(model, prepared.analysis, kept, narrow, _few(prepared), prepared.options)
    require_passed(verification, when)
    return verification


def _few(prepared: Prepared) -> Samples:
    return prepared.samples.take(slice(0, max(_VERIFICATION_SAMPLES, prepared.samples.run_size or 0)))


def _worse(left: Verification, right: Verification) -> Verification:
    return max(left, right, key=lambda v: v.max_rel_error / v.tolerance)


def _repair(
    prepared: Prepared, kept: BoolArray, narrow: onnx.ModelProto, config: PruneConfig, notes: list[str]
) -> Repaired:
    """Repair, unless that moves the output of held-out samples further away."""
    if config.repair == "none":
        return Repaired(narrow)
    found = repaired(prepared, config, kept, narrow)
    _, held_out = prepared.samples.split(HELD_OUT_SHARE)
    before, after = (_drift(prepared, proto, held_out) for proto in (narrow, found.proto))
    if found.updates and after.sqnr_db < before.sqnr_db:
        notes.append(
            f"The repair was left out: on held-out samples it moved the outputs from an SQNR of {before.sqnr_db:.1f} "
            f"to {after.sqnr_db:.1f} dB."
        )
        return Repaired(narrow, {}, found.steps)
    notes += found.notes
    return found


def _figures(prepared: Prepared, metric: Metric, proto: onnx.ModelProto, samples: Samples) -> MetricRecord:
    """Return the user's metric of both models."""
    compared = comparison_by(metric, prepared.original.proto, prepared.compared, samples, prepared.options)
    before, after = compared(proto)
    return MetricRecord(name=metric.name, original=before, pruned=after)


def _drift(prepared: Prepared, proto: onnx.ModelProto, samples: Samples) -> Drift:
    return measure_drift(prepared.original.proto, proto, prepared.compared, samples, prepared.options)


def _bench(
    prepared: Prepared, proto: onnx.ModelProto, samples: Samples, config: PruneConfig
) -> tuple[LatencyComparison, _Operators]:
    """Return the latencies of both models, and where their time goes."""
    feeds, options = samples.one_run(), prepared.options
    models = prepared.original.proto, proto
    latency = compare_latency(*models, feeds, options, settings=BenchSettings(), seed=config.seed)
    runs = profiled_runs(latency.original.p50_ms)
    before, after = (times_by_operator(profile_nodes(model, feeds, options, runs=runs)) for model in models)
    return latency, (before, after)
