"""Bounds tightened by linear and integer programs, within a budget of time."""

from oamip_onnx.tightening.tighten import Tightened, tighten

__all__ = ["Tightened", "tighten"]
