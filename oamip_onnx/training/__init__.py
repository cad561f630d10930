"""Training an ONNX graph in PyTorch; the modules behind this one need the extra `torch`."""

from oamip_onnx.training.require import require_torch
from oamip_onnx.training.settings import FinetuneSettings, make_finetune_settings, shaping_options

__all__ = ["FinetuneSettings", "make_finetune_settings", "require_torch", "shaping_options"]
