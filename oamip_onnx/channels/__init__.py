"""Which channels live and die together: labels, one rule per operator, groups."""

from oamip_onnx.channels.analysis import analyse
from oamip_onnx.channels.groups import ChannelAnalysis, ChannelGroup, Contraction, Pin, PinCode
from oamip_onnx.channels.labels import FIXED, BoolArray, IntArray, Labels, lookup

__all__ = [
    "FIXED",
    "BoolArray",
    "ChannelAnalysis",
    "ChannelGroup",
    "Contraction",
    "IntArray",
    "Labels",
    "Pin",
    "PinCode",
    "analyse",
    "lookup",
]
