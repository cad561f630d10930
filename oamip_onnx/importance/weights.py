"""Weights and activations: the norm of the weights that produce a unit, and of those that read it times its values."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.calibration import ActivationStream
from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.model import Array, Model, int_attribute, run_node

# The operands of a node that can hold a weight, with an axis of each.
AxesOf = Callable[[onnx.NodeProto], list[tuple[int, int]]]


@criterion("magnitude")
def magnitude(context: ImportanceContext) -> Scores:
    """Return √Σ w² over the weights of every contraction that produces the unit, divided by the group's largest."""
    return Scores(relative_to_group(np.sqrt(weight_energy(context, leaving_axes)), context), "magnitude")


@criterion("activation")
def activation(context: ImportanceContext) -> Scores:
    """Return Σ ‖w‖·rms(h) over the contractions that read the unit, divided by the group's largest.

    ‖w‖ is the norm of the weights that meet the unit and rms(h) the root mean square of its activations on the samples
    (Wanda's criterion, Sun et al. 2023, summed over a structure). Where both operands are activations, ‖w‖ is 1.
    """
    weights = dict(_energies(context, _entering_axes, None))
    total = np.zeros(context.analysis.unit_count)
    tensors = sorted({c.tensor for c in context.analysis.contractions if not context.model.is_constant(c.tensor)})
    energy = _activation_energy(context, tensors)
    for contraction in context.analysis.contractions:
        if contraction.tensor in energy:
            own = energy[contraction.tensor]
            total += np.sqrt(own * weights[contraction.node]) if contraction.node in weights else np.sqrt(own)
    return Scores(relative_to_group(total, context), "activation")


def _activation_energy(context: ImportanceContext, tensors: list[str]) -> dict[str, FloatArray]:
    """Return the mean square of every unit's activations by tensor, 0 for units that it does not hold."""
    units = {c.tensor: c.units for c in context.analysis.contractions}
    width = context.analysis.unit_count + 1  # FIXED is -1, the last entry
    sums = {name: np.zeros(width) for name in tensors}
    counts = {name: np.zeros(width) for name in tensors}
    for batch in ActivationStream(context.model.proto, tensors, context.options).batches(context.samples):
        for name in tensors:
            cells = np.broadcast_to(_fitted(units[name], batch[name].shape), batch[name].shape)
            square = batch[name].astype(np.float64) ** 2
            sums[name] += np.bincount(cells.ravel() % width, square.ravel(), width)
            counts[name] += np.bincount(cells.ravel() % width, minlength=width)
    return {name: (sums[name] / np.maximum(counts[name], 1.0))[:-1] for name in tensors}


def _fitted(units: npt.NDArray[np.int64], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return the units of cells for a batch of another size; units never differ along an axis that changes."""
    index = tuple(
        slice(0, 1) if have not in {1, want} else slice(None) for have, want in zip(units.shape, shape, strict=True)
    )
    return units[index]


def relative_to_group(scores: FloatArray, context: ImportanceContext) -> FloatArray:
    """Return scores divided by the largest of each group."""
    result = scores.copy()
    for group in context.analysis.groups:
        result[group.units] /= max(float(result[group.units].max()), np.finfo(np.float64).tiny)
    return result


def weight_energy(
    context: ImportanceContext, axes_of: AxesOf, values_of: Callable[[str], Array | None] | None = None
) -> FloatArray:
    """Return Σ w² over the weights that meet each unit on the axes that `axes_of` names; every weight counts once.

    With `values_of`, its values by the name of a weight take the place of w; None leaves a weight out.
    """
    total = np.zeros(context.analysis.unit_count)
    for _, energy in _energies(context, axes_of, set(), values_of):
        total += energy
    return total


def _energies(
    context: ImportanceContext,
    axes_of: AxesOf,
    seen: set[str] | None,
    values_of: Callable[[str], Array | None] | None = None,
) -> Iterator[tuple[int, FloatArray]]:
    """Yield nodes with the energy of their weights by unit; names in `seen` are skipped and added, None skips none."""
    model, analysis = context.model, context.analysis
    read = values_of or partial(_weight, model)
    for index, node in enumerate(model.graph.node):
        for operand, axis in axes_of(node):
            name = node.input[operand]
            values = None if seen is not None and name in seen else read(name)
            if values is None:
                continue
            if seen is not None:
                seen.add(name)
            labels = analysis.labels.get(name)
            factor = None if labels is None else labels.factor_over(axis % len(labels.shape))
            if factor is not None:
                axes = list(range(values.ndim))
                spread = [a for a in axes if factor.shape[a] > 1]
                # Squares are summed in float64 without a copy of the weight in float64.
                operands: list[Any] = [values, axes, values, axes, spread]
                sums = np.asarray(np.einsum(*operands, dtype=np.float64, casting="unsafe"))
                energy = np.zeros(analysis.unit_count + 1)  # FIXED is -1, the last entry
                np.add.at(energy, factor.reshape(sums.shape), sums)
                yield index, energy[:-1]


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


def leaving_axes(node: onnx.NodeProto) -> list[tuple[int, int]]:
    """Return the operands that can hold a contraction's weight, with the axis of each that is the output's."""
    if node.op_type == "Conv":
        return [(1, 0)]
    if node.op_type == "ConvTranspose":
        return [(1, 1)]
    if node.op_type == "Gemm":
        return [(0, int_attribute(node, "transA", 0)), (1, 1 - int_attribute(node, "transB", 0))]
    return [(0, -2), (1, -1)] if node.op_type == "MatMul" else []


def _entering_axes(node: onnx.NodeProto) -> list[tuple[int, int]]:
    """Return the operands that can hold a contraction's weight, with the axis of each that is contracted."""
    if node.op_type == "Conv":
        return [(1, 1)]
    if node.op_type == "ConvTranspose":
        return [(1, 0)]
    if node.op_type == "Gemm":
        return [(0, 1 - int_attribute(node, "transA", 0)), (1, int_attribute(node, "transB", 0))]
    return [(0, -1), (1, -2)] if node.op_type == "MatMul" else []
