"""A trained model of any framework as an ONNX model that can be pruned: converted, cleaned up, compared."""

from oamip_onnx.importing.inputs import parse_inputs
from oamip_onnx.importing.run import import_model

__all__ = ["import_model", "parse_inputs"]
