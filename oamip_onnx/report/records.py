"""From what the stages found to the result that people and programs read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np

from oamip_onnx.bench import Environment, Latency, LatencyComparison, warnings
from oamip_onnx.budget import parse_target
from oamip_onnx.certify import LosslessResult
from oamip_onnx.channels import BoolArray, ChannelAnalysis
from oamip_onnx.config import PruneConfig
from oamip_onnx.importance import Scores
from oamip_onnx.model import Model, TensorType, count_costs, infer_shapes, load_model
from oamip_onnx.planning import Plan
from oamip_onnx.repair import Repaired
from oamip_onnx.report.layers import layer_records
from oamip_onnx.report.schema import (
    CertificateRecord,
    DriftRecord,
    GroupRecord,
    LatencyRecord,
    LosslessRecord,
    MergeRecord,
    MetricRecord,
    ModelRecord,
    OperatorRecord,
    PinRecord,
    PlanRecord,
    RepairRecord,
    Result,
    SolverRecord,
    SpeedupRecord,
    VerificationRecord,
)
from oamip_onnx.verify import Drift, Verification

# Share of the costs that rounding may take beyond the target without a word.
_ROUNDED_AWAY = 0.05


@dataclass(frozen=True)
class Findings:
    """What one run measured.

    Attributes
    ----------
    operators
        Milliseconds a run by operator, of the original and of the pruned model; empty where they were not profiled.
    command
        The command that reproduces the run; None where the model or the data came from memory.
    plan
        The widths, and how they were found; None where nothing was planned.
    metric
        The user's metric; None without one.
    """

    verification: Verification
    drift: Drift
    scores: Scores
    kept: BoolArray
    repaired: Repaired
    size_bytes: int
    latency: LatencyComparison | None
    environment: Environment
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    drift_data: str
    operators: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
    command: str | None = None
    lossless: LosslessRecord | None = None
    plan: Plan | None = None
    metric: MetricRecord | None = None


def make_result(
    original: Model,
    analysed: Model,
    analysis: ChannelAnalysis,
    types: Mapping[str, TensorType],
    findings: Findings,
    config: PruneConfig,
) -> Result:
    """Return the result record of one run.

    Parameters
    ----------
    original, analysed
        The original as it came, and in the form whose channels `analysis` are.
    analysis, types
        Channels, and concrete types of the tensors.
    findings, config
        What was measured, under which settings.
    """
    scores, latency = findings.scores, findings.latency
    notes = list(findings.notes)
    if latency:
        notes += warnings(findings.environment, {"original": latency.original, "pruned": latency.pruned})
    before, after = _original_record(original, types, findings), _pruned_record(findings, original, types)
    notes += _rounding_note(before, after, config)
    return Result(
        original=before,
        pruned=after,
        speedup=SpeedupRecord(**asdict(latency.speedup)) if latency else None,
        verification=VerificationRecord(**asdict(findings.verification)),
        drift=drift_record(findings.drift, findings.drift_data, findings.metric),
        groups=group_records(analysis, findings.kept, scores),
        pinned=[PinRecord(tensor=p.tensor, code=str(p.code), reason=p.reason) for p in analysis.pinned],
        solver=solver_records(scores),
        certificates=[CertificateRecord(**asdict(c)) for c in scores.certificates],
        lossless=findings.lossless,
        plan=_plan_record(findings),
        repair=[RepairRecord(**asdict(step)) for step in findings.repaired.steps],
        importance=importance_name(scores),
        notes=list(dict.fromkeys(notes)),
        seconds=dict(findings.seconds),
        environment=asdict(findings.environment),
        config={"version": version("oamip-onnx"), **config.model_dump(mode="json")},
        layers=layer_records(analysed, analysis, findings.kept),
        command=findings.command,
    )


def _rounding_note(before: ModelRecord, after: ModelRecord, config: PruneConfig) -> list[str]:
    """Return a sentence where rounded widths leave much less than the target allows."""
    target = parse_target(config.target)
    if config.lossless or config.round_to in {1, "auto"} or target.kind not in {"macs", "params"}:
        return []
    macs = target.kind == "macs"
    whole = max(before.macs if macs else before.parameters, 1)
    left, allowed = (after.macs if macs else after.parameters) / whole, target.limits[0].absolute(whole) / whole
    if left > min(allowed, 1.0) - _ROUNDED_AWAY:
        return []
    widths = f"Widths in multiples of {config.round_to} leave {left:.1%} of the {'MACs' if macs else 'parameters'}"
    return [f"{widths} where {target} allows {allowed:.1%}; a smaller --round-to comes closer."]


def _original_record(model: Model, types: Mapping[str, TensorType], findings: Findings) -> ModelRecord:
    costs = count_costs(model, types)
    return ModelRecord(
        parameters=costs.parameters,
        macs=costs.macs,
        size_bytes=model.size_bytes,
        latency_ms=None if findings.latency is None else latency_record(findings.latency.original),
        operators=_operators(findings.operators[0]),
    )


def _pruned_record(findings: Findings, original: Model, types: Mapping[str, TensorType]) -> ModelRecord:
    pruned = load_model(findings.repaired.proto)
    shapes = {name: types[name].shape for name in original.input_names}
    costs = count_costs(pruned, infer_shapes(pruned, shapes))
    return ModelRecord(
        parameters=costs.parameters,
        macs=costs.macs,
        size_bytes=findings.size_bytes,
        latency_ms=None if findings.latency is None else latency_record(findings.latency.pruned),
        operators=_operators(findings.operators[1]),
    )


def latency_record(found: Latency) -> LatencyRecord:
    """Return the record of the run times of one model."""
    percentiles = [round(value, 6) for value in found.percentiles_ms]
    return LatencyRecord(p50=found.p50_ms, p90=found.p90_ms, p99=found.p99_ms, runs=found.runs, percentiles=percentiles)


def _operators(times_ms: Mapping[str, float]) -> list[OperatorRecord]:
    return [OperatorRecord(operator=name, milliseconds=round(value, 6)) for name, value in times_ms.items()]


def _plan_record(findings: Findings) -> PlanRecord | None:
    plan = findings.plan
    if plan is None:
        return None
    if plan.predicted_share is None or findings.latency is None:
        return PlanRecord(widths=plan.kind)
    predicted_ms = plan.predicted_share * findings.latency.original.p50_ms
    return PlanRecord(
        widths=plan.kind,
        predicted_latency_ms=predicted_ms,
        latency_error=predicted_ms / findings.latency.pruned.p50_ms - 1,
    )


def drift_record(drift: Drift, data: str, metric: MetricRecord | None = None) -> DriftRecord:
    """Return the record of a drift that was measured on ``evaluation`` or ``calibration`` samples.

    Parameters
    ----------
    drift, data
        What was measured, and on which samples.
    metric
        The user's metric, in place of the accuracy.
    """
    if metric is None and drift.accuracy_original is not None and drift.accuracy_pruned is not None:
        metric = MetricRecord(name="accuracy", original=drift.accuracy_original, pruned=drift.accuracy_pruned)
    return DriftRecord(
        cosine=drift.cosine,
        sqnr_db=drift.sqnr_db,
        top1_agreement=drift.top1_agreement,
        metric=metric,
        samples=drift.samples,
        data=data,
    )


def group_records(analysis: ChannelAnalysis, kept: BoolArray, scores: Scores) -> list[GroupRecord]:
    """Return one record a group: widths, kept units, importances."""
    return [
        GroupRecord(
            name=group.name,
            tensors=list(group.tensors),
            before=group.width,
            after=int(kept[group.units].sum()),
            kept=[int(u) for u in np.flatnonzero(kept[group.units])],
            # Scores of any size keep six digits.
            importance=[float(f"{v:.6g}") for v in scores.values[group.units]],
            exact=group.exact,
        )
        for group in analysis.groups
    ]


def lossless_record(found: LosslessResult, input_range: Sequence[str]) -> LosslessRecord:
    """Return the record of what was proven over a range of the inputs."""
    units = found.units
    return LosslessRecord(
        inactive=int(units.inactive.sum()),
        always_active=int(units.always_active.sum()),
        by_interval=units.by_interval,
        by_linear=units.by_linear,
        by_integer=units.by_integer,
        undecided=units.undecided,
        seconds=units.seconds,
        exhausted=units.exhausted,
        input_range=list(input_range),
        merged=[
            MergeRecord(
                first=layer.first,
                second=layer.second,
                units=layer.units,
                macs_before=layer.macs_before,
                macs_after=layer.macs_after,
            )
            for layer in found.merged
        ],
        skipped=list(found.skipped),
    )


def importance_name(scores: Scores) -> str:
    """Return how the units were ranked, with the form of the program."""
    return f"{scores.criterion} ({scores.form})" if scores.form else scores.criterion


def solver_records(scores: Scores) -> list[SolverRecord]:
    """Return one record a program."""
    return [SolverRecord(**{**asdict(s), "status": str(s.status)}) for s in scores.solver]
