"""Layer description → mathematical program: constraints, bounds, objectives; no solver in sight."""

from oamip_onnx.formulation.bounds import PAPER_RADIUS, Bounds, interval_bounds, trust_region_bounds
from oamip_onnx.formulation.build import build_network
from oamip_onnx.formulation.network import Affine, MaxPool, Network, Relu, Shift
from oamip_onnx.formulation.oamip import shift_bounds, shift_program, shift_response
from oamip_onnx.formulation.operators import BUILDERS
from oamip_onnx.formulation.options import ShiftOptions
from oamip_onnx.formulation.program import LinearRows, LogSumExpTerms, Program, SquaredTerms, VariableBlock
from oamip_onnx.formulation.view import Builder, NodeView, Same

__all__ = [
    "BUILDERS",
    "PAPER_RADIUS",
    "Affine",
    "Bounds",
    "Builder",
    "LinearRows",
    "LogSumExpTerms",
    "MaxPool",
    "Network",
    "NodeView",
    "Program",
    "Relu",
    "Same",
    "Shift",
    "ShiftOptions",
    "SquaredTerms",
    "VariableBlock",
    "build_network",
    "interval_bounds",
    "shift_bounds",
    "shift_program",
    "shift_response",
    "trust_region_bounds",
]
