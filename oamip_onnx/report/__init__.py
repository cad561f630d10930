"""The result as JSON and as the table people read first."""

from oamip_onnx.report.bench import BenchEntry, BenchReport, bench_report
from oamip_onnx.report.inspection import GroupInspection, Inspection, inspect_channels
from oamip_onnx.report.plots import front_plot, require_plots
from oamip_onnx.report.records import Findings, lossless_record, make_result
from oamip_onnx.report.schema import (
    SCHEMA_VERSION,
    DriftRecord,
    GroupRecord,
    LatencyRecord,
    LosslessRecord,
    MetricRecord,
    ModelRecord,
    PinRecord,
    RepairRecord,
    Result,
    SolverRecord,
    SpeedupRecord,
    VerificationRecord,
)
from oamip_onnx.report.scores import (
    FrontReport,
    ScoreReport,
    SubnetworksReport,
    front_report,
    read_scores,
    score_report,
    subnetworks_report,
)
from oamip_onnx.report.table import before_after_table, rows, summary_lines

__all__ = [
    "SCHEMA_VERSION",
    "BenchEntry",
    "BenchReport",
    "DriftRecord",
    "Findings",
    "FrontReport",
    "GroupInspection",
    "GroupRecord",
    "Inspection",
    "LatencyRecord",
    "LosslessRecord",
    "MetricRecord",
    "ModelRecord",
    "PinRecord",
    "RepairRecord",
    "Result",
    "ScoreReport",
    "SolverRecord",
    "SpeedupRecord",
    "SubnetworksReport",
    "VerificationRecord",
    "before_after_table",
    "bench_report",
    "front_plot",
    "front_report",
    "inspect_channels",
    "lossless_record",
    "make_result",
    "read_scores",
    "require_plots",
    "rows",
    "score_report",
    "subnetworks_report",
    "summary_lines",
]
