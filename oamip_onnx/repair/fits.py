"""What is refit together: contractions behind the removal, the tensor they aim at, the activation behind it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.calibration import Layout, layout_of
from oamip_onnx.channels import Labels, kept_indices
from oamip_onnx.model import CONTRACTIONS, Array, Model
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
    consumers, skipped = _find_consumers(context)
    by_output = {consumer.out: consumer for consumer in consumers}
    fits: dict[str, Fit] = {}
    for consumer in consumers:
        fit = _in_a_sum(context, consumer, by_output) or Fit((consumer,), consumer.index, consumer.out)
        fits[fit.target] = fit
    found = [_with_bounds(context, fit) for fit in fits.values()]
    return sorted(found, key=lambda fit: fit.position), skipped


def kept_values(context: RepairContext, name: str, axis: int, values: Array) -> Array:
    """Return values of a tensor of the original along the channels that stay."""
    labels = context.analysis.labels.get(name) or Labels(values.shape)
    chosen = kept_indices(labels, context.kept).get(axis % values.ndim)
    return values if chosen is None else np.take(values, chosen, axis=axis)


def kept_channels(context: RepairContext, name: str, axis: int, vector: FloatArray) -> FloatArray:
    """Return a vector over the channels of a tensor of the original for those that stay."""
    labels = context.analysis.labels.get(name)
    chosen = None if labels is None else kept_indices(labels, context.kept).get(axis % len(labels.shape))
    return vector if chosen is None else vector[chosen]


def _find_consumers(context: RepairContext) -> tuple[list[Consumer], list[RepairStep]]:
    model = context.model
    affected: set[str] = set()
    consumers: list[Consumer] = []
    skipped: list[RepairStep] = []
    left = {tensor.name: tensor for tensor in context.cut.graph.initializer}
    narrow = {name: node for node in context.cut.graph.node for name in node.output}
    for index, node in enumerate(model.graph.node):
        data = [name for name in node.input if name and not model.is_constant(name)]
        if not any(name in affected or touches(context.analysis, [name], context.kept) for name in data):
            continue
        affected.update(name for name in node.output if name)
        if node.op_type not in CONTRACTIONS or len(node.input) < 2:
            continue
        if any(name not in left for name in node.input[1:] if name and model.is_constant(name)):
            continue  # its branch vanished
        # A depthwise convolution is left with fewer groups.
        layout = layout_of(narrow[node.output[0]], tuple(left[node.input[1]].dims)) if node.input[1] in left else ""
        consumer = _consumer(model, index, node, layout)
        if isinstance(consumer, str):
            skipped.append(RepairStep(model.node_name(index), skipped=f"Left as it is: {consumer}."))
        else:
            consumers.append(consumer)
    return consumers, skipped


def _consumer(model: Model, index: int, node: onnx.NodeProto, layout: Layout | str) -> Consumer | str:
    weight = node.input[1]
    if not model.is_constant(weight) or model.is_constant(node.input[0]):
        return "its right operand is no constant weight"
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if node.op_type == "MatMul":
        bias = _added_vector(model, node.output[0], model.initializers[weight].dims[-1])
    if len(model.uses[weight]) > 1 or (bias and len(model.uses[bias]) > 1):
        return "other nodes share its weight or bias"
    if bias and (not model.is_constant(bias) or len(model.initializers[bias].dims) != 1):
        return "its bias is no constant vector"
    if isinstance(layout, str):
        return layout
    return Consumer(index, node.input[0], node.output[0], weight, bias, node.op_type != "MatMul", layout)


def _added_vector(model: Model, out: str, width: int) -> str | None:
    """Return the constant vector that an Add, the only reader of a MatMul's output, adds to it."""
    uses = model.uses.get(out, ())
    if len(uses) != 1 or out in model.output_names:
        return None
    node = model.graph.node[uses[0].node]
    others = [name for name in node.input if name != out]
    if node.op_type != "Add" or len(others) != 1 or not model.is_constant(others[0]):
        return None
    is_own = len(model.uses[others[0]]) == 1 and list(model.initializers[others[0]].dims) == [width]
    return others[0] if is_own else None


def _in_a_sum(context: RepairContext, consumer: Consumer, by_output: Mapping[str, Consumer]) -> Fit | None:
    """Return the fit of a consumer whose output only an Add of equal shapes reads."""
    model, types = context.model, context.analysis.types
    uses = model.uses.get(consumer.out, ())
    if len(uses) != 1 or consumer.out in model.output_names:
        return None
    node = model.graph.node[uses[0].node]
    others = [name for name in node.input if name != consumer.out]
    if node.op_type != "Add" or len(others) != 1 or model.is_constant(others[0]):
        return None
    (other,) = others
    if types[other].shape != types[consumer.out].shape or node.output[0] not in _outputs(context.cut):
        return None
    partner = by_output.get(other)
    if partner is not None and _may_join(model, consumer, partner):
        first, second = sorted((consumer, partner), key=lambda c: c.index)
        return Fit((first, second), uses[0].node, node.output[0])
    if partner is not None and partner.index > consumer.index:
        return None  # the later one makes up for both
    return Fit((consumer,), uses[0].node, node.output[0], other)


def _may_join(model: Model, consumer: Consumer, partner: Consumer) -> bool:
    return (
        len(model.uses[partner.out]) == 1
        and partner.out not in model.output_names
        and consumer.layout.groups == partner.layout.groups == 1
        and consumer.layout.channel_axis == partner.layout.channel_axis
        and (consumer.bias is None) == (partner.bias is None)
    )


def _outputs(proto: onnx.ModelProto) -> set[str]:
    return {name for node in proto.graph.node for name in node.output}


def _with_bounds(context: RepairContext, fit: Fit) -> Fit:
    """Return the fit with the bounds of the activation behind its target."""
    model = context.model
    name, axis = fit.target, fit.layout.channel_axis
    width = context.analysis.types[name].shape[axis]
    scale, shift = np.ones(width), np.zeros(width)
    (first, *others) = fit.parts
    if not others and first.bias is not None and not first.adds_bias:
        name = model.graph.node[model.uses[name][0].node].output[0]
        shift = model.array(first.bias).astype(np.float64)
    reader = _only_reader(model, name)
    if reader is not None and reader.op_type == "BatchNormalization" and reader.input[0] == name:
        gamma, beta, mean, variance = (model.array(n).astype(np.float64) for n in reader.input[1:5])
        epsilon = next((a.f for a in reader.attribute if a.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        scale, shift = scale * factor, shift * factor + beta - mean * factor
        name = reader.output[0]
    limits = _limits(model, name)
    if limits is None or bool((scale == 0).any()):
        return fit
    ends = np.sort([(limit - shift) / scale for limit in limits], axis=0)
    return Fit(fit.parts, fit.position, fit.target, fit.rest, (ends[0], ends[1]))


def _only_reader(model: Model, name: str) -> onnx.NodeProto | None:
    uses = model.uses.get(name, ())
    return model.graph.node[uses[0].node] if len(uses) == 1 and name not in model.output_names else None


def _limits(model: Model, name: str) -> tuple[float, float] | None:
    """Return the range that every reader of a tensor clips it to; None where one does not, or they differ."""
    found = set()
    for use in model.uses.get(name, ()):
        node = model.graph.node[use.node]
        if node.op_type == "Relu":
            found.add((0.0, np.inf))
        elif node.op_type == "Clip" and all(model.is_constant(n) for n in node.input[1:] if n):
            ends = [float(model.array(n).ravel()[0]) if n else None for n in [*node.input[1:], "", ""][:2]]
            lower, upper = ends
            attributes = {a.name: a.f for a in node.attribute}
            lower = attributes.get("min", -np.inf) if lower is None else lower
            upper = attributes.get("max", np.inf) if upper is None else upper
            found.add((lower, upper))
        else:
            return None
    if len(found) != 1 or name in model.output_names:
        return None
    return found.pop()
