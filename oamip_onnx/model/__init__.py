"""ONNX file ↔ model in memory: load, canonical form, shapes, costs, save."""

from oamip_onnx.model.costs import CONTRACTIONS, Costs, count_costs, node_macs
from oamip_onnx.model.load import load_model
from oamip_onnx.model.model import Array, Model, Use, attribute, int_attribute, ints_attribute
from oamip_onnx.model.save import check_writable, save_model, write_text
from oamip_onnx.model.shapes import TensorType, bind_inputs, infer_shapes, with_outputs

__all__ = [
    "CONTRACTIONS",
    "Array",
    "Costs",
    "Model",
    "TensorType",
    "Use",
    "attribute",
    "bind_inputs",
    "check_writable",
    "count_costs",
    "infer_shapes",
    "int_attribute",
    "ints_attribute",
    "load_model",
    "node_macs",
    "save_model",
    "with_outputs",
    "write_text",
]
