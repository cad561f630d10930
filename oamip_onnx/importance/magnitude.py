"""Magnitude: the ℓ2 norm of the weights that produce a unit."""

import numpy as np
import onnx

from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.model import int_attribute


@criterion("magnitude")
def magnitude(context: ImportanceContext) -> Scores:
    """Return √Σ w² over the weights of every contraction that produces the unit, divided by the group's largest."""
    model, analysis = context.model, context.analysis
    energy = np.zeros(analysis.unit_count + 1)  # FIXED is -1, the last entry
    seen: set[str] = set()
    for node in model.graph.node:
        for operand, axis in _leaving_axes(node):
            name = node.input[operand]
            if name in seen or not model.is_constant(name):
                continue
            seen.add(name)
            labels = analysis.labels.get(name)
            factor = None if labels is None else labels.factor_over(axis % len(labels.shape))
            if factor is not None:
                values = model.array(name).astype(np.float64) ** 2
                np.add.at(energy, np.broadcast_to(factor, values.shape), values)
    return Scores(_relative(np.sqrt(energy[:-1]), context), "magnitude")


def _leaving_axes(node: onnx.NodeProto) -> list[tuple[int, int]]:
    """Return the operands that can hold a contraction's weight, with the axis of each that is the output's."""
    if node.op_type == "Conv":
        return [(1, 0)]
    if node.op_type == "ConvTranspose":
        return [(1, 1)]
    if node.op_type == "Gemm":
        return [(0, int_attribute(node, "transA", 0)), (1, 1 - int_attribute(node, "transB", 0))]
    return [(0, -2), (1, -1)] if node.op_type == "MatMul" else []


def _relative(scores: FloatArray, context: ImportanceContext) -> FloatArray:
    result = scores.copy()
    for group in context.analysis.groups:
        result[group.units] /= max(float(result[group.units].max()), np.finfo(np.float64).tiny)
    return result
