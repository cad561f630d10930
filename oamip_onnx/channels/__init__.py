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
from oamip_onnx.channels.outputs import comparable_tensor
from oamip_onnx.channels.selection import select_units
from oamip_onnx.channels.slicing import kept_indices, kept_shape, scatter_array, slice_array
from oamip_onnx.channels.trace import Heads

__all__ = [
    "FIXED",
    "BoolArray",
    "ChannelAnalysis",
    "ChannelGroup",
    "Contraction",
    "Heads",
    "IntArray",
    "Labels",
    "Normalisation",
    "Pin",
    "PinCode",
    "TargetElement",
    "analyse",
    "comparable_tensor",
    "kept_indices",
    "kept_shape",
    "living_nodes",
    "lookup",
    "scatter_array",
    "select_units",
    "slice_array",
    "vanished_consumers",
]
