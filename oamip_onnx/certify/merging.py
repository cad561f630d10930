"""Merging always active units into the next layer.

With A the hidden units whose ReLU never cuts anything off, and R the rest,

    y = W₂ ReLU(W₁ x + b₁) + b₂ = W₂[:, R] ReLU(W₁[R] x + b₁[R]) + S x + c,
    S = W₂[:, A] W₁[A],   c = b₂ + W₂[:, A] b₁[A]

(Serra, Kumar, Ramalingam 2020). With W₁ a k×k convolution and W₂ a 1×1 convolution, S is a k×k convolution with the
first one's strides, padding and dilations.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from oamip_onnx.certify.linear_layers import GraphView, LinearLayer, Pair
from oamip_onnx.channels import BoolArray, ChannelAnalysis
from oamip_onnx.formulation.program import FloatArray
from oamip_onnx.model import TensorType, captured_names, replace_nodes


@dataclass(frozen=True)
class HiddenChannels:
    """Channels of a ReLU's output: their axis, and whether each is always active, shape (channels,)."""

    axis: int
    active: BoolArray


@dataclass(frozen=True)
class MergedLayer:
    """Units that were merged into the layer behind them.

    Attributes
    ----------
    first, second
        Names of the nodes around the ReLU.
    hidden
        Name of the tensor between them.
    units
        Number of units merged.
    vanished
        Whether these were all, so that one layer is left of two.
    macs_before, macs_after
        Multiply-accumulate operations a sample of the two layers, and of what computes the same now.
    """

    first: str
    second: str
    hidden: str
    units: int
    vanished: bool
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class MergeResult:
    """A model after merging.

    Attributes
    ----------
    proto
        The model.
    merged
        What was merged, in the order in which it happened.
    skipped
        A sentence for every layer with always active units that stays as it is.
    """

    proto: onnx.ModelProto
    merged: tuple[MergedLayer, ...]
    skipped: tuple[str, ...]


def merge_always_active(
    proto: onnx.ModelProto, types: Mapping[str, TensorType], hidden: Mapping[str, HiddenChannels]
) -> MergeResult:
    """Return a model in which always active units are merged wherever that saves operations.

    The merge that saves most comes first, since it can change what the next one saves.

    Parameters
    ----------
    proto
        A model whose constants are initializers; it is not modified.
    types
        Types of its tensors; sizes of channel axes are not read.
    hidden
        Channels by the name of a ReLU's output.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    left = {name: channels for name, channels in hidden.items() if channels.active.any()}
    merged: list[MergedLayer] = []
    while True:
        view = GraphView(result.graph, types)
        found = [pair for pair in (_pair(view, name, left[name]) for name in left) if isinstance(pair, Pair)]
        records = [_record(pair, left[pair.hidden].active) for pair in found]
        saved = [record.macs_before - record.macs_after for record in records]
        if not saved or max(saved) <= 0:
            break
        best = int(np.argmax(saved))
        merged.append(records[best])
        _rewrite(result.graph, found[best], left.pop(found[best].hidden).active)
    if merged:
        _remove_unread(result.graph)
        # Declared shapes of inner tensors no longer hold; ONNX Runtime infers them anew.
        del result.graph.value_info[:]
    view = GraphView(result.graph, types)
    skipped = [_sentence(view, name, channels) for name, channels in left.items() if name in view.producers]
    return MergeResult(result, tuple(merged), tuple(skipped))


def hidden_channels(
    proto: onnx.ModelProto,
    analysis: ChannelAnalysis,
    kept: BoolArray,
    always_active: BoolArray,
    relus: Collection[str],
) -> dict[str, HiddenChannels]:
    """Return the channels of ReLUs' outputs after a cut, in graph order.

    Parameters
    ----------
    proto
        The model after the cut.
    analysis
        The channels of the model before.
    kept, always_active
        Which units stayed, and which are always active; shape (units,).
    relus
        Outputs of the ReLUs that this holds for.
    """
    found = {}
    for node in proto.graph.node:
        labels = analysis.labels.get(node.output[0]) if node.output[0] in relus else None
        if labels is None or len(labels.factors) != 1:
            continue
        axes = [axis for axis, size in enumerate(labels.factors[0].shape) if size > 1]
        if len(axes) == 1:  # units over several axes are no channels of a linear layer
            units = labels.factors[0].reshape(-1)
            staying = units[np.append(kept, np.True_)[units]]
            found[node.output[0]] = HiddenChannels(axes[0], np.append(always_active, np.False_)[staying])
    return found


def _pair(view: GraphView, name: str, channels: HiddenChannels) -> Pair | str:
    """Return the layers around a hidden tensor, or why they cannot be merged."""
    pair = view.pair(view.producers[name]) if name in view.producers else "it is gone"
    if isinstance(pair, str):
        return pair
    axis = 1 if pair.first.is_convolution else len(view.types[name].shape) - 1
    fits = channels.axis == axis and len(pair.first.weight) == channels.active.size
    return pair if fits else "its units are no channels of the layer before"


def _record(pair: Pair, active: BoolArray) -> MergedLayer:
    first, second = pair.first, pair.second
    each = (first.macs + second.macs) // active.size
    direct = second.weight.shape[0] * (first.macs // active.size)
    staying = int((~active).sum())
    return MergedLayer(
        first.node.name or first.output,
        second.node.name or second.output,
        pair.hidden,
        active.size - staying,
        staying == 0,
        pair.positions * each * active.size,
        pair.positions * (each * staying + direct),
    )


def _sentence(view: GraphView, name: str, channels: HiddenChannels) -> str:
    pair = _pair(view, name, channels)
    reason = pair if isinstance(pair, str) else "merging them would not save operations"
    return f"The {int(channels.active.sum())} always active units of {name!r} stay as they are: {reason}."


def _rewrite(graph: onnx.GraphProto, pair: Pair, active: BoolArray) -> None:
    """Write the merged layers in the place of a pair."""
    first, second = pair.first, pair.second
    names = {t.name for t in graph.initializer} | {name for node in graph.node for name in node.output}
    number = 0
    while any(name.startswith(f"oamip_merged_{number}_") for name in names):
        number += 1
    writer = _Writer(graph, f"oamip_merged_{number}")
    flat = second.weight.reshape(second.weight.shape[:2])
    direct = np.tensordot(flat[:, active], first.weight[active], 1)
    bias = second.bias + flat[:, active] @ first.bias[active]
    gone = {*first.nodes, *second.nodes}
    written: dict[int, list[onnx.NodeProto]] = {}
    if active.all():
        gone |= set(pair.between)
        written[max(second.nodes)] = writer.layer("direct", first, first.data, second.output, direct, bias)
    else:
        rest, straight = writer.name("rest"), writer.name("straight")
        written[max(first.nodes)] = writer.layer(
            "first", first, first.data, first.output, first.weight[~active], first.bias[~active]
        )
        written[max(second.nodes)] = [
            *writer.layer("second", second, second.data, rest, second.weight[:, ~active], bias),
            *writer.layer("direct", first, first.data, straight, direct, np.zeros(len(direct)), is_new=True),
            helper.make_node("Add", [rest, straight], [second.output], writer.name("add")),
        ]
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        nodes.extend(written.get(index, [] if index in gone else [node]))
    replace_nodes(graph, nodes)


class _Writer:
    """Writes linear layers with names of their own into a graph."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self._graph, self._prefix = graph, prefix

    def name(self, role: str) -> str:
        return f"{self._prefix}_{role}"

    def layer(
        self,
        role: str,
        like: LinearLayer,
        data: str,
        output: str,
        weight: FloatArray,
        bias: FloatArray,
        *,
        is_new: bool = False,
    ) -> list[onnx.NodeProto]:
        """Return the nodes of ``output = weight · data + bias``, written like a given layer.

        A new layer, which stands beside the given one, has no bias.
        """
        node = onnx.NodeProto()
        node.CopyFrom(like.node)
        del node.output[:]
        if is_new:
            node.name = self.name(role)
        if node.op_type == "Conv":
            inputs = [data, self._constant(f"{role}_weight", weight, like)]
            if bias.any():
                inputs.append(self._constant(f"{role}_bias", bias, like))
        elif node.op_type == "Gemm" and not is_new:
            inputs = [data, self._constant(f"{role}_weight", weight, like), self._constant(f"{role}_bias", bias, like)]
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("transB", 1))
        else:
            # Before opset 11 a Gemm needs a bias.
            node.op_type = "MatMul"
            del node.attribute[:]
            inputs = [data, self._constant(f"{role}_weight", weight.T, like)]
        del node.input[:]
        node.input.extend(inputs)
        if node.op_type != "MatMul" or not bias.any():
            node.output.append(output)
            return [node]
        node.output.append(self.name(f"{role}_product"))
        operands = [node.output[0], self._constant(f"{role}_bias", bias, like)]
        return [node, helper.make_node("Add", operands, [output], self.name(f"{role}_add"))]

    def _constant(self, role: str, values: FloatArray, like: LinearLayer) -> str:
        array = np.ascontiguousarray(values).astype(like.dtype)
        self._graph.initializer.append(numpy_helper.from_array(array, self.name(role)))
        return self.name(role)


def _remove_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in [*node.input, *captured_names(node)]}
    read |= {output.name for output in graph.output}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]
