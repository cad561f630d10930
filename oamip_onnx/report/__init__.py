"""The result as JSON and as the table people read first."""

from oamip_onnx.report.bench import (
    BenchReport,
    bench_report,
    check_comparable,
    compare_with,
    read_bench_report,
    regression_sentence,
)
from oamip_onnx.report.bench_records import BenchEntry, ComparisonRecord, configuration_labels
from oamip_onnx.report.command import reproducing_command
from oamip_onnx.report.doctor import DoctorReport
from oamip_onnx.report.explaining import Explainer, explain
from oamip_onnx.report.explanation import Explanation
from oamip_onnx.report.export import ExportedFile, ExportReport
from oamip_onnx.report.finetuning import EpochRecord, EvaluationRecord, FinetuneReport
from oamip_onnx.report.folder import check_report_folder, write_report_folder
from oamip_onnx.report.importing import ImportReport, OutputRecord
from oamip_onnx.report.inspection import GroupInspection, Inspection, inspect_channels
from oamip_onnx.report.markdown import report_markdown
from oamip_onnx.report.page import report_page, require_page
from oamip_onnx.report.plots import front_plot, require_plots
from oamip_onnx.report.read import read_report, read_result
from oamip_onnx.report.records import Findings, drift_record, lossless_record, make_result
from oamip_onnx.report.running import ModelFigures, RequirementRecord, RunReport, StageRecord
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
from oamip_onnx.report.shown import Shown
from oamip_onnx.report.table import before_after_table, rows, summary_lines
from oamip_onnx.report.transfer import DifferenceRecord, TrainedRecord, TransferReport
from oamip_onnx.report.written import ModelWithReport

__all__ = [
    "SCHEMA_VERSION",
    "BenchEntry",
    "BenchReport",
    "ComparisonRecord",
    "DifferenceRecord",
    "DoctorReport",
    "DriftRecord",
    "EpochRecord",
    "EvaluationRecord",
    "Explainer",
    "Explanation",
    "ExportReport",
    "ExportedFile",
    "Findings",
    "FinetuneReport",
    "FrontReport",
    "GroupInspection",
    "GroupRecord",
    "ImportReport",
    "Inspection",
    "LatencyRecord",
    "LosslessRecord",
    "MetricRecord",
    "ModelFigures",
    "ModelRecord",
    "ModelWithReport",
    "OutputRecord",
    "PinRecord",
    "RepairRecord",
    "RequirementRecord",
    "Result",
    "RunReport",
    "ScoreReport",
    "Shown",
    "SolverRecord",
    "SpeedupRecord",
    "StageRecord",
    "SubnetworksReport",
    "TrainedRecord",
    "TransferReport",
    "VerificationRecord",
    "before_after_table",
    "bench_report",
    "check_comparable",
    "check_report_folder",
    "compare_with",
    "configuration_labels",
    "drift_record",
    "explain",
    "front_plot",
    "front_report",
    "inspect_channels",
    "lossless_record",
    "make_result",
    "read_bench_report",
    "read_report",
    "read_result",
    "read_scores",
    "regression_sentence",
    "report_markdown",
    "report_page",
    "reproducing_command",
    "require_page",
    "require_plots",
    "rows",
    "score_report",
    "subnetworks_report",
    "summary_lines",
    "write_report_folder",
]
