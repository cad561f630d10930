"""The masked model: what "removed" means before anything is cut."""

from oamip_onnx.masking.masked_model import MASK_INPUT, MaskedSession, masked_proto

__all__ = ["MASK_INPUT", "MaskedSession", "masked_proto"]
