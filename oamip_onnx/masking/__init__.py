"""The masked model: what "removed" means before anything is cut."""

from oamip_onnx.masking.masked_model import MASK_INPUT, MaskedSession, masked_proto
from oamip_onnx.masking.suffix import MaskedSuffixes

__all__ = ["MASK_INPUT", "MaskedSession", "MaskedSuffixes", "masked_proto"]
