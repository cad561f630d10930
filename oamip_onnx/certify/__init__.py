"""What holds for every input in a box: tightened bounds, and units whose removal changes nothing."""

from oamip_onnx.certify.box import input_box
from oamip_onnx.certify.lossless import LosslessUnits, find_lossless, kept_units
from oamip_onnx.certify.merging import HiddenChannels, MergedLayer, MergeResult, hidden_channels, merge_always_active
from oamip_onnx.certify.removal import LosslessResult, remove_losslessly
from oamip_onnx.certify.tightening import Tightened, tighten

__all__ = [
    "HiddenChannels",
    "LosslessResult",
    "LosslessUnits",
    "MergeResult",
    "MergedLayer",
    "Tightened",
    "find_lossless",
    "hidden_channels",
    "input_box",
    "kept_units",
    "merge_always_active",
    "remove_losslessly",
    "tighten",
]
