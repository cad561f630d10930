"""The result as JSON and as the table people read first."""

from oamip_onnx.report.bench import BenchEntry, BenchReport, bench_report
from oamip_onnx.report.inspection import GroupInspection, Inspection, inspect_channels
from oamip_onnx.report.records import Findings, make_result
from oamip_onnx.report.schema import (
    SCHEMA_VERSION,
    DriftRecord,
    GroupRecord,
    LatencyRecord,
    MetricRecord,
    ModelRecord,
    PinRecord,
    RepairRecord,
    Result,
    SolverRecord,
    SpeedupRecord,
    VerificationRecord,
)
from oamip_onnx.report.scores import ScoreReport, score_report
from oamip_onnx.report.table import before_after_table, rows

__all__ = [
    "SCHEMA_VERSION",
    "BenchEntry",
    "BenchReport",
    "DriftRecord",
    "Findings",
    "GroupInspection",
    "GroupRecord",
    "Inspection",
    "LatencyRecord",
    "MetricRecord",
    "ModelRecord",
    "PinRecord",
    "RepairRecord",
    "Result",
    "ScoreReport",
    "SolverRecord",
    "SpeedupRecord",
    "VerificationRecord",
    "before_after_table",
    "bench_report",
    "inspect_channels",
    "make_result",
    "rows",
    "score_report",
]
