"""Dropping the channels from the graph."""

from oamip_onnx.surgery.cut import cut

__all__ = ["cut"]
