"""A model in the format of a runtime: converted, loaded back, compared with the original, timed."""

from oamip_onnx.exporting.run import export

__all__ = ["export"]
