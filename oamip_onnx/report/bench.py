"""What `bench` reports."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pydantic import BaseModel, ConfigDict

from oamip_onnx.bench import Measurement
from oamip_onnx.report.schema import SCHEMA_VERSION, LatencyRecord, SpeedupRecord


class BenchEntry(BaseModel):
    """One model: latency, and speed-up against the first; None for the first itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    latency_ms: LatencyRecord
    speedup: SpeedupRecord | None


class BenchReport(BaseModel):
    """Latencies of several models, measured together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    batch: int
    models: list[BenchEntry]
    environment: dict[str, str | int | float]
    notes: list[str]


def bench_report(
    paths: Sequence[str],
    measured: Measurement,
    environment: Mapping[str, str | int | float],
    notes: Sequence[str],
    batch: int,
) -> BenchReport:
    """Return the report of one measurement."""
    entries = [
        BenchEntry(
            path=path,
            latency_ms=LatencyRecord(p50=found.p50_ms, p90=found.p90_ms, p99=found.p99_ms, runs=found.runs),
            speedup=SpeedupRecord(**asdict(measured.speedup(number))) if number else None,
        )
        for number, (path, found) in enumerate(zip(paths, measured.latencies, strict=True))
    ]
    return BenchReport(batch=batch, models=entries, environment=dict(environment), notes=list(notes))
