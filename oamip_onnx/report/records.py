"""From what the stages found to the result that people and programs read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np

from oamip_onnx.bench import Environment, LatencyComparison, warnings
from oamip_onnx.certify import LosslessResult
from oamip_onnx.channels import BoolArray, ChannelAnalysis
from oamip_onnx.config import PruneConfig
from oamip_onnx.importance import Scores
from oamip_onnx.model import Model, TensorType, count_costs, infer_shapes, load_model
from oamip_onnx.repair import Repaired
from oamip_onnx.report.schema import (
    CertificateRecord,
    DriftRecord,
    GroupRecord,
    LatencyRecord,
    LosslessRecord,
    MergeRecord,
    MetricRecord,
    ModelRecord,
    PinRecord,
    RepairRecord,
    Result,
    SolverRecord,
    SpeedupRecord,
    VerificationRecord,
)
from oamip_onnx.verify import Drift, Verification


@dataclass(frozen=True)
class Findings:
    """What one run measured."""

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
    lossless: LosslessRecord | None = None


def make_result(
    original: Model,
    analysis: ChannelAnalysis,
    types: Mapping[str, TensorType],
    findings: Findings,
    config: PruneConfig,
) -> Result:
    """Return the result record of one run."""
    scores, latency = findings.scores, findings.latency
    notes = list(findings.notes)
    if latency:
        notes += warnings(findings.environment, {"original": latency.original, "pruned": latency.pruned})
    return Result(
        original=_original_record(original, types, latency),
        pruned=_pruned_record(findings, original, types, latency),
        speedup=SpeedupRecord(**asdict(latency.speedup)) if latency else None,
        verification=VerificationRecord(**asdict(findings.verification)),
        drift=_drift_record(findings.drift, findings.drift_data),
        groups=group_records(analysis, findings.kept, scores),
        pinned=[PinRecord(tensor=p.tensor, code=str(p.code), reason=p.reason) for p in analysis.pinned],
        solver=solver_records(scores),
        certificates=[CertificateRecord(**asdict(c)) for c in scores.certificates],
        lossless=findings.lossless,
        repair=[RepairRecord(**asdict(step)) for step in findings.repaired.steps],
        importance=importance_name(scores),
        notes=list(dict.fromkeys(notes)),
        seconds=dict(findings.seconds),
        environment=asdict(findings.environment),
        config={"version": version("oamip-onnx"), **config.model_dump(mode="json")},
    )


def _original_record(model: Model, types: Mapping[str, TensorType], latency: LatencyComparison | None) -> ModelRecord:
    costs = count_costs(model, types)
    return ModelRecord(
        parameters=costs.parameters,
        macs=costs.macs,
        size_bytes=model.size_bytes,
        latency_ms=_latency_record(latency, "original"),
    )


def _pruned_record(
    findings: Findings, original: Model, types: Mapping[str, TensorType], latency: LatencyComparison | None
) -> ModelRecord:
    pruned = load_model(findings.repaired.proto)
    shapes = {name: types[name].shape for name in original.input_names}
    costs = count_costs(pruned, infer_shapes(pruned, shapes))
    return ModelRecord(
        parameters=costs.parameters,
        macs=costs.macs,
        size_bytes=findings.size_bytes,
        latency_ms=_latency_record(latency, "pruned"),
    )


def _latency_record(latency: LatencyComparison | None, which: str) -> LatencyRecord | None:
    if latency is None:
        return None
    found = latency.original if which == "original" else latency.pruned
    return LatencyRecord(p50=found.p50_ms, p90=found.p90_ms, p99=found.p99_ms, runs=found.runs)


def _drift_record(drift: Drift, data: str) -> DriftRecord:
    metric = None
    if drift.accuracy_original is not None and drift.accuracy_pruned is not None:
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
            importance=[round(float(v), 6) for v in scores.values[group.units]],
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
