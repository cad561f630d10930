"""Which channels live and die together: labels, one rule per operator, groups."""

from oamip_onnx.channels.analysis import analyse
from oamip_onnx.channels.branches import living_nodes, vanished_consumers
from oamip_onnx.channels.groups import (
    ChannelAnalysis,
    ChannelGroup,
    Contraction,
    Normalisation,
    Pin,
    PinCode,
    TargetElement,
)
from oamip_onnx.channels.labels import FIXED, BoolArray, IntArray, Labels, lookup
from oamip_onnx.channels.limits import with_minimum_widths
from oamip_onnx.channels.outputs import comparable_tensor
from oamip_onnx.channels.reasons import Absence, Cells, Reasons, analyse_with_reasons
from oamip_onnx.channels.remedies import CONSTRAINTS, REMEDIES, Constraint, Remedy
from oamip_onnx.channels.selection import select_units
from oamip_onnx.channels.slicing import kept_indices, kept_shape, scatter_array, slice_array
from oamip_onnx.channels.trace import Heads

__all__ = [
    "CONSTRAINTS",
    "FIXED",
    "REMEDIES",
    "Absence",
    "BoolArray",
    "Cells",
    "ChannelAnalysis",
    "ChannelGroup",
    "Constraint",
    "Contraction",
    "Heads",
    "IntArray",
    "Labels",
    "Normalisation",
    "Pin",
    "PinCode",
    "Reasons",
    "Remedy",
    "TargetElement",
    "analyse",
    "analyse_with_reasons",
    "comparable_tensor",
    "kept_indices",
    "kept_shape",
    "living_nodes",
    "lookup",
    "scatter_array",
    "select_units",
    "slice_array",
    "vanished_consumers",
    "with_minimum_widths",
]
