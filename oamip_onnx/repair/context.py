"""What every repair reads and returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from oamip_onnx.calibration import ConvolutionLayout, ProductLayout, Samples, layout_of
from oamip_onnx.channels import BoolArray, ChannelAnalysis, Labels, kept_indices
from oamip_onnx.model import CONTRACTIONS, Array, Model
from oamip_onnx.runtime import RuntimeOptions
from oamip_onnx.surgery.constants import touches

# Output positions of one sample that enter the Gram matrices, on average.
POSITIONS_PER_SAMPLE = 200

# Share of the calibration samples on which a refit must prove itself.
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class RepairContext:
    """What a repair works on.

    Attributes
    ----------
    model, analysis, kept
        The original, its channels, and which units stay.
    cut
        The narrower model; not modified.
    samples
        Calibration samples; labels are not used.
    options
        Provider and threads.
    seed
        Seed of the subsampling of positions.
    """

    model: Model
    analysis: ChannelAnalysis
    kept: BoolArray
    cut: onnx.ModelProto
    samples: Samples
    options: RuntimeOptions
    seed: int = 0


@dataclass(frozen=True)
class RepairStep:
    """What was done at one contraction.

    Attributes
    ----------
    node
        Name of the node.
    error_before, error_after
        Squared error per output position on held-out samples, relative to the output's energy; None if not measured.
    ridge
        Weight of the pull towards the old weights, relative to the mean feature energy; None where nothing was refit.
    skipped
        Why the node was left as it is; empty if it was repaired.
    """

    node: str
    error_before: float | None = None
    error_after: float | None = None
    ridge: float | None = None
    skipped: str = ""


@dataclass(frozen=True)
class Repaired:
    """A repaired model.

    Attributes
    ----------
    proto
        The narrower model with new weights.
    updates
        The changed initializers by name, in the narrower shapes.
    steps
        What was done, in network order.
    """

    proto: onnx.ModelProto
    updates: Mapping[str, Array] = field(default_factory=dict)
    steps: tuple[RepairStep, ...] = ()


@dataclass(frozen=True)
class Consumer:
    """A contraction whose operand changed through removal and whose weights can be refit."""

    index: int
    data: str
    out: str
    weight: str
    bias: str | None
    layout: ConvolutionLayout | ProductLayout
    out_axis: int


def find_consumers(context: RepairContext) -> tuple[list[Consumer], list[RepairStep]]:
    """Return the contractions behind the removal, in network order, and those that cannot be refit, with reasons."""
    model = context.model
    affected: set[str] = set()
    consumers: list[Consumer] = []
    skipped: list[RepairStep] = []
    left = {tensor.name for tensor in context.cut.graph.initializer}
    for index, node in enumerate(model.graph.node):
        data = [name for name in node.input if name and not model.is_constant(name)]
        if not any(name in affected or touches(context.analysis, [name], context.kept) for name in data):
            continue
        affected.update(name for name in node.output if name)
        if node.op_type not in CONTRACTIONS or len(node.input) < 2:
            continue
        if any(name not in left for name in node.input[1:] if name and model.is_constant(name)):
            continue  # its branch vanished
        consumer = _consumer(model, index, node)
        if isinstance(consumer, str):
            skipped.append(RepairStep(model.node_name(index), skipped=f"Left as it is: {consumer}."))
        else:
            consumers.append(consumer)
    return consumers, skipped


def _consumer(model: Model, index: int, node: onnx.NodeProto) -> Consumer | str:
    weight = node.input[1]
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if not model.is_constant(weight) or model.is_constant(node.input[0]):
        return "its right operand is no constant weight"
    if len(model.uses[weight]) > 1 or (bias and len(model.uses[bias]) > 1):
        return "other nodes share its weight or bias"
    if bias and (not model.is_constant(bias) or len(model.initializers[bias].dims) != 1):
        return "its bias is no constant vector"
    dims = tuple(model.initializers[weight].dims)
    layout = layout_of(node, dims)
    if isinstance(layout, str):
        return layout
    out_axis = 1 if isinstance(layout, ConvolutionLayout) else -1
    return Consumer(index, node.input[0], node.output[0], weight, bias, layout, out_axis)


def kept_outputs(context: RepairContext, consumer: Consumer, out: Array) -> Array:
    """Return an original output with the channels that stay."""
    labels = context.analysis.labels.get(consumer.out) or Labels(out.shape)
    axis = consumer.out_axis % out.ndim
    chosen = kept_indices(labels, context.kept).get(axis)
    return out if chosen is None else np.take(out, chosen, axis=axis)


def with_initializers(proto: onnx.ModelProto, updates: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a copy of the model with new values for some initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name in updates:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(updates[tensor.name]), tensor.name))
    return copy


def initializer_array(proto: onnx.ModelProto, name: str) -> Array:
    """Return the values of an initializer of a model."""
    return onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name))
