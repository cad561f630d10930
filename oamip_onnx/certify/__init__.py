"""Units whose removal changes nothing for every input in a box, and what is merged of them."""

from oamip_onnx.certify.box import input_box
from oamip_onnx.certify.lossless import LosslessUnits, find_lossless, kept_units
from oamip_onnx.certify.merging import HiddenChannels, MergedLayer, MergeResult, hidden_channels, merge_always_active
from oamip_onnx.certify.removal import LosslessResult, remove_losslessly

__all__ = [
    "HiddenChannels",
    "LosslessResult",
    "LosslessUnits",
    "MergeResult",
    "MergedLayer",
    "find_lossless",
    "hidden_channels",
    "input_box",
    "kept_units",
    "merge_always_active",
    "remove_losslessly",
]
