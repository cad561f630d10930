"""ONNX Runtime sessions with the user's provider and threads."""

from oamip_onnx.runtime.providers import (
    RuntimeOptions,
    available_providers,
    create_session,
    options_that_start,
    short_name,
)
from oamip_onnx.runtime.session import Session, TensorInfo, numpy_dtype, runs

__all__ = [
    "RuntimeOptions",
    "Session",
    "TensorInfo",
    "available_providers",
    "create_session",
    "numpy_dtype",
    "options_that_start",
    "runs",
    "short_name",
]
