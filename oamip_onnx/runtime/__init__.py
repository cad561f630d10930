"""ONNX Runtime sessions with the user's provider and threads."""

from oamip_onnx.runtime.session import RuntimeOptions, Session, TensorInfo, available_providers, numpy_dtype, runs

__all__ = ["RuntimeOptions", "Session", "TensorInfo", "available_providers", "numpy_dtype", "runs"]
