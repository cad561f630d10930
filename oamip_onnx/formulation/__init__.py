"""Layer description → mathematical program: constraints, bounds, objectives; no solver in sight."""

from oamip_onnx.formulation.bounds import (
    PAPER_RADIUS,
    Bounds,
    interval_bounds,
    score_aware_bounds,
    trust_region_bounds,
)
from oamip_onnx.formulation.build import build_network
from oamip_onnx.formulation.constraints import GATE_FORM, SHIFT_FORM, Constraint, max_pool, max_pool_at_winner
from oamip_onnx.formulation.joint import (
    JointProgram,
    gate_response,
    joint_bounds,
    joint_program,
    shift_response,
)
from oamip_onnx.formulation.network import Affine, MaxPool, Network, Relu, Shift
from oamip_onnx.formulation.operators import BUILDERS
from oamip_onnx.formulation.options import JointForm, JointOptions, LossKind
from oamip_onnx.formulation.program import LinearRows, LogSumExpTerms, Program, SquaredTerms, VariableBlock
from oamip_onnx.formulation.response import response_program
from oamip_onnx.formulation.view import Builder, NodeView, Same

__all__ = [
    "BUILDERS",
    "GATE_FORM",
    "PAPER_RADIUS",
    "SHIFT_FORM",
    "Affine",
    "Bounds",
    "Builder",
    "Constraint",
    "JointForm",
    "JointOptions",
    "JointProgram",
    "LinearRows",
    "LogSumExpTerms",
    "LossKind",
    "MaxPool",
    "Network",
    "NodeView",
    "Program",
    "Relu",
    "Same",
    "Shift",
    "SquaredTerms",
    "VariableBlock",
    "build_network",
    "gate_response",
    "interval_bounds",
    "joint_bounds",
    "joint_program",
    "max_pool",
    "max_pool_at_winner",
    "response_program",
    "score_aware_bounds",
    "shift_response",
    "trust_region_bounds",
]
