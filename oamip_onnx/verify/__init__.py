"""Masked oracle, file checks, drift."""

from oamip_onnx.verify.drift import Drift, measure_drift, run_output
from oamip_onnx.verify.files import check_result, check_validity, load_warnings
from oamip_onnx.verify.metric import AGREEMENT, Metric, comparison_by, load_metric
from oamip_onnx.verify.oracle import (
    Verification,
    compare_with_masked,
    compare_with_original,
    require_passed,
    with_scattered,
)

__all__ = [
    "AGREEMENT",
    "Drift",
    "Metric",
    "Verification",
    "check_result",
    "check_validity",
    "compare_with_masked",
    "compare_with_original",
    "comparison_by",
    "load_metric",
    "load_warnings",
    "measure_drift",
    "require_passed",
    "run_output",
    "with_scattered",
]
