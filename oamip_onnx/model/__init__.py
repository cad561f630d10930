"""ONNX file ↔ model in memory: load, canonical form, shapes, costs, save."""

from oamip_onnx.model.bias import added_to, bias_of, only_reader
from oamip_onnx.model.costs import CONTRACTIONS, Costs, count_costs, node_macs
from oamip_onnx.model.einsum import einsum_terms
from oamip_onnx.model.graph import (
    captured_names,
    inner_nodes,
    needed_nodes,
    remove_initializers,
    replace_nodes,
    with_initializers,
)
from oamip_onnx.model.known import KnownSizes, Partial, known_sizes, run_node
from oamip_onnx.model.load import load_model
from oamip_onnx.model.model import Array, Model, Use, attribute, batch_norm_affine, int_attribute, ints_attribute
from oamip_onnx.model.precision import as_float32, has_rare_types
from oamip_onnx.model.provenance import Step, file_digest, history, history_entry, with_metadata
from oamip_onnx.model.save import check_writable, save_model, write_text
from oamip_onnx.model.shapes import TensorType, bind_inputs, infer_shapes, with_outputs

__all__ = [
    "CONTRACTIONS",
    "Array",
    "Costs",
    "KnownSizes",
    "Model",
    "Partial",
    "Step",
    "TensorType",
    "Use",
    "added_to",
    "as_float32",
    "attribute",
    "batch_norm_affine",
    "bias_of",
    "bind_inputs",
    "captured_names",
    "check_writable",
    "count_costs",
    "einsum_terms",
    "file_digest",
    "has_rare_types",
    "history",
    "history_entry",
    "infer_shapes",
    "inner_nodes",
    "int_attribute",
    "ints_attribute",
    "known_sizes",
    "load_model",
    "needed_nodes",
    "node_macs",
    "only_reader",
    "remove_initializers",
    "replace_nodes",
    "run_node",
    "save_model",
    "with_initializers",
    "with_metadata",
    "with_outputs",
    "write_text",
]
