"""Converters from training frameworks to ONNX; each imports its framework only when it converts."""

from .base import Converter, load_converter
from .from_torch import TorchConverter

__all__ = ["Converter", "TorchConverter", "load_converter"]
