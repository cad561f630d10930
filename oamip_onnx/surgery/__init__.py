"""Dropping the channels from the graph."""

from oamip_onnx.surgery.cut import cut
from oamip_onnx.surgery.slicing import kept_indices, kept_shape, scatter_array, slice_array

__all__ = ["cut", "kept_indices", "kept_shape", "scatter_array", "slice_array"]
