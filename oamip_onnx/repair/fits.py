"""What is refit together: contractions behind the removal, the tensor they aim at, the activation behind it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.calibration import Layout, layout_of
from oamip_onnx.channels import IntArray, Labels, kept_indices
from oamip_onnx.model import CONTRACTIONS, Model, added_to, attribute, batch_norm_affine, bias_of, only_reader
from oamip_onnx.repair.context import RepairContext, RepairStep
from oamip_onnx.surgery.constants import touches

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Consumer:
    """A contraction whose operand changed through removal and whose weights can be refit.

    Attributes
    ----------
    index
        Position of the node in the graph.
    data, out, weight
        Names of its operand, its output and its weight.
    bias
        Name of the constant vector that is added to what it multiplies; None without one.
    adds_bias
        Whether it adds the bias itself, and not an Add behind it.
    layout
        How it reads its operand and its weight in the narrower model.
    """

    index: int
    data: str
    out: str
    weight: str
    bias: str | None
    adds_bias: bool
    layout: Layout


@dataclass(frozen=True)
class Fit:
    """Contractions that are refit together towards one tensor.

    Attributes
    ----------
    parts
        One contraction, or two whose outputs are added.
    position
        Where in the graph all that reaches the target is known.
    target
        The tensor whose original values are aimed at: the output of the contraction, or the sum that it enters.
    rest
        What is added to the contraction's output; None where nothing is. The refit makes up for its changes as well.
    bounds
        Least and largest value of the target that the activation behind it lets through, by output channel of the
        original, each of shape (outputs,); None where it lets all through, or more than the activation reads it.
    """

    parts: tuple[Consumer, ...]
    position: int
    target: str
    rest: str | None = None
    bounds: tuple[FloatArray, FloatArray] | None = None

    @property
    def layout(self) -> Layout:
        """The layout of the first part; the others' outputs are laid out alike."""
        return self.parts[0].layout


def find_fits(context: RepairContext) -> tuple[list[Fit], list[RepairStep]]:
    """Return what is refit, in network order, and the contractions that cannot be, with reasons."""
    narrow = {name: node for node in context.cut.graph.node for name in node.output}
    consumers, skipped = _find_consumers(context, narrow)
    by_output = {consumer.out: consumer for consumer in consumers}
    fits: dict[str, Fit] = {}
    for consumer in consumers:
        fit = _in_a_sum(context, consumer, by_output, narrow) or Fit((consumer,), consumer.index, consumer.out)
        fits[fit.target] = fit
    found = [_with_bounds(context, fit) for fit in fits.values()]
    return sorted(found, key=lambda fit: fit.position), skipped


def kept_channels(context: RepairContext, name: str, axis: int) -> IntArray:
    """Return the positions of the channels that a tensor of the original keeps along an axis."""
    shape = context.analysis.types[name].shape
    labels = context.analysis.labels.get(name) or Labels(shape)
    axis %= len(shape)
    return kept_indices(labels, context.kept).get(axis, np.arange(shape[axis]))


def _find_consumers(
    context: RepairContext, narrow: Mapping[str, onnx.NodeProto]
) -> tuple[list[Consumer], list[RepairStep]]:
    model = context.model
    affected: set[str] = set()
    consumers: list[Consumer] = []
    skipped: list[RepairStep] = []
    left = {tensor.name: tensor for tensor in context.cut.graph.initializer}
    for index, node in enumerate(model.graph.node):
        data = [name for name in node.input if name and not model.is_constant(name)]
        if not any(name in affected or touches(context.analysis, [name], context.kept) for name in data):
            continue
        affected.update(name for name in node.output if name)
        if node.op_type not in CONTRACTIONS or len(node.input) < 2:
            continue
        if any(name not in left for name in node.input[1:] if name and model.is_constant(name)):
            continue  # its branch vanished
        consumer = _consumer(model, index, narrow[node.output[0]], left)
        if isinstance(consumer, str):
            skipped.append(RepairStep(model.node_name(index), skipped=f"Left as it is: {consumer}."))
        else:
            consumers.append(consumer)
    return consumers, skipped


def _consumer(model: Model, index: int, narrow: onnx.NodeProto, left: Mapping[str, onnx.TensorProto]) -> Consumer | str:
    """Return the consumer at a position, or why it is none; `narrow` is its node in the narrower model."""
    node = model.graph.node[index]
    weight = node.input[1]
    if not model.is_constant(weight) or model.is_constant(node.input[0]):
        return "its right operand is no constant weight"
    bias = bias_of(model, index)
    if len(model.uses[weight]) > 1 or (bias and len(model.uses[bias]) > 1):
        return "other nodes share its weight or bias"
    if bias and (not model.is_constant(bias) or len(model.initializers[bias].dims) != 1):
        return "its bias is no constant vector"
    # A depthwise convolution is left with fewer groups.
    layout = layout_of(narrow, tuple(left[weight].dims))
    if isinstance(layout, str):
        return layout
    return Consumer(index, node.input[0], node.output[0], weight, bias, node.op_type != "MatMul", layout)


def _in_a_sum(
    context: RepairContext,
    consumer: Consumer,
    by_output: Mapping[str, Consumer],
    narrow: Mapping[str, onnx.NodeProto],
) -> Fit | None:
    """Return the fit of a consumer whose output only an Add of equal shapes reads."""
    model, types = context.model, context.analysis.types
    added = added_to(model, consumer.out)
    if added is None or model.is_constant(added[1]):
        return None
    position, other = added
    total = model.graph.node[position].output[0]
    if types[other].shape != types[consumer.out].shape or total not in narrow:
        return None
    partner = by_output.get(other)
    if partner is not None and _may_join(model, consumer, partner):
        first, second = sorted((consumer, partner), key=lambda c: c.index)
        return Fit((first, second), position, total)
    if partner is not None and partner.index > consumer.index:
        return None  # the later one makes up for both
    return Fit((consumer,), position, total, other)


def _may_join(model: Model, consumer: Consumer, partner: Consumer) -> bool:
    return (
        only_reader(model, partner.out) is not None
        and consumer.layout.groups == partner.layout.groups == 1
        and consumer.layout.channel_axis == partner.layout.channel_axis
        and (consumer.bias is None) == (partner.bias is None)
    )


def _with_bounds(context: RepairContext, fit: Fit) -> Fit:
    """Return the fit with the bounds of the activation behind its target."""
    model = context.model
    name, axis = fit.target, fit.layout.channel_axis
    width = context.analysis.types[name].shape[axis]
    slope, offset = np.ones(width), np.zeros(width)
    (first, *others) = fit.parts
    if not others and first.bias is not None and not first.adds_bias:
        name = model.graph.node[model.uses[name][0].node].output[0]
        offset = model.array(first.bias).astype(np.float64)
    position = only_reader(model, name)
    node = None if position is None else model.graph.node[position]
    if node is not None and node.op_type == "BatchNormalization" and node.input[0] == name:
        scale, shift, mean, variance = (model.array(n).astype(np.float64) for n in node.input[1:5])
        factor, added = batch_norm_affine(node, scale, shift, mean, variance)
        slope, offset = slope * factor, offset * factor + added
        name = node.output[0]
    limits = _limits(model, name)
    if limits is None or bool((slope == 0).any()):
        return fit
    ends = np.sort([(limit - offset) / slope for limit in limits], axis=0)
    return replace(fit, bounds=(ends[0], ends[1]))


def _limits(model: Model, name: str) -> tuple[float, float] | None:
    """Return the range that every reader of a tensor clips it to; None where one does not, or they differ."""
    found = {_clipped(model, model.graph.node[use.node]) for use in model.uses.get(name, ())}
    return found.pop() if len(found) == 1 and name not in model.output_names else None


def _clipped(model: Model, node: onnx.NodeProto) -> tuple[float, float] | None:
    """Return the range that a node clips its operand to; None where it does something else."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip" or not all(model.is_constant(name) for name in node.input[1:] if name):
        return None
    # Until opset 11 the ends are attributes.
    ends = [attribute(node, "min", -np.inf), attribute(node, "max", np.inf)]
    for position, name in enumerate(node.input[1:]):
        if name:
            ends[position] = model.array(name).item()
    return float(ends[0]), float(ends[1])  # type: ignore[arg-type]
