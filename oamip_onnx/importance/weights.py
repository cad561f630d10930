"""Magnitude: the ℓ2 norm of the weights that produce a unit."""

from typing import Any

import numpy as np
import onnx

from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.model import Array, Model, int_attribute, run_node


@criterion("magnitude")
def magnitude(context: ImportanceContext) -> Scores:
    """Return √Σ w² over the weights of every contraction that produces the unit, divided by the group's largest."""
    model, analysis = context.model, context.analysis
    energy = np.zeros(analysis.unit_count + 1)  # FIXED is -1, the last entry
    seen: set[str] = set()
    for node in model.graph.node:
        for operand, axis in _leaving_axes(node):
            name = node.input[operand]
            values = None if name in seen else _weight(model, name)
            if values is None:
                continue
            seen.add(name)
            labels = analysis.labels.get(name)
            factor = None if labels is None else labels.factor_over(axis % len(labels.shape))
            if factor is not None:
                axes = list(range(values.ndim))
                spread = [a for a in axes if factor.shape[a] > 1]
                # Squares are summed in float64 without a copy of the weight in float64.
                operands: list[Any] = [values, axes, values, axes, spread]
                sums = np.asarray(np.einsum(*operands, dtype=np.float64, casting="unsafe"))
                np.add.at(energy, factor.reshape(sums.shape), sums)
    return Scores(_relative(np.sqrt(energy[:-1]), context), "magnitude")


def _weight(model: Model, name: str) -> Array | None:
    """Return the values of a weight: an initializer, or what one node makes of initializers; None for activations."""
    values: Array | None = None
    if model.is_constant(name):
        values = model.array(name)
    elif name in model.producers:
        node = model.graph.node[model.producers[name]]
        if not node.domain and all(model.is_constant(n) for n in node.input if n):
            results = run_node(node, [model.array(n) if n else None for n in node.input], model.opsets[""])
            values = None if results is None else results[list(node.output).index(name)]
    return values.astype(np.float32) if values is not None and values.dtype.kind == "V" else values


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
