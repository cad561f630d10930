"""Converters from training frameworks to ONNX; each imports its framework only when it reads a model."""

from .base import Converter, FrameworkModel, ImportOptions, InputSpec, load_converter
from .from_torch import TorchConverter

__all__ = ["Converter", "FrameworkModel", "ImportOptions", "InputSpec", "TorchConverter", "load_converter"]
