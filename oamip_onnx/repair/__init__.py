"""Making up for what was dropped, in closed form and without labels."""

from oamip_onnx.repair.context import HELD_OUT_SHARE, RepairContext, Repaired, RepairStep
from oamip_onnx.repair.prepare import with_biases
from oamip_onnx.repair.refit import repair_bias, repair_least_squares
from oamip_onnx.repair.statistics import repair_batch_norm

REPAIRS = {"batch-norm": repair_batch_norm, "bias": repair_bias, "least-squares": repair_least_squares}
"""Repairs by the name that `--repair` takes; ``none`` is the absence of one."""

__all__ = [
    "HELD_OUT_SHARE",
    "REPAIRS",
    "RepairContext",
    "RepairStep",
    "Repaired",
    "repair_batch_norm",
    "repair_bias",
    "repair_least_squares",
    "with_biases",
]
