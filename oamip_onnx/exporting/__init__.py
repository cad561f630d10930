"""A model in the format of a runtime: converted, loaded back, compared with the original, timed."""

from oamip_onnx.exporting.run import check_possible, export

__all__ = ["check_possible", "export"]
