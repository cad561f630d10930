"""From float32 to float16."""

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from oamip_onnx.errors import ModelError, first_line

from .formats import Exported, ExportTask
from .to_mixed import choose_kept, layers_of, with_node_names


def to_float16(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model with float16 weights and activations; its inputs and outputs keep their types.

    Weights beyond float16's range are clipped to it: the largest finite number is 65504, the smallest 6e-8.

    Parameters
    ----------
    model
        The model; it is left as it is.
    kept
        Names of nodes that stay in float32, with casts around them.

    Raises
    ------
    ModelError
        If no weight is float32, the model is quantised, or ONNX Runtime's converter fails.
    """
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise ModelError("The model is quantised already, so it has no float16 variant; do without float16.")
    if not any(tensor.data_type == onnx.TensorProto.FLOAT for tensor in model.graph.initializer):
        raise ModelError("The model has no float32 weights, so it has no float16 variant; do without float16.")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            # One line for each weight that is clipped, which this function's contract says.
            warnings.simplefilter("ignore")
            converted = OnnxModel(convert_float_to_float16(copy, keep_io_types=True, node_block_list=list(kept)))
            _join_casts(converted.model.graph)
            # The casts at the inputs stand behind the nodes that read them, which ONNX's checker refuses.
            converted.topological_sort()
    except Exception as error:  # the converter raises whatever its graph code stumbles over
        raise ModelError(
            f"ONNX Runtime cannot convert the model to float16: {first_line(error)}; do without float16."
        ) from error
    return onnx.ModelProto.FromString(converted.model.SerializeToString())


def export(task: ExportTask, _path: Path) -> Exported:
    """Return the model in float16, less the layers that keep the output from the bound.

    A layer stays with the nodes between it and the layer before: where values leave the range of float16, that is
    where they do.

    Raises
    ------
    ModelError
        If all layers would have to stay.
    """
    plain = with_node_names(task.model)
    layers = layers_of(plain)

    def make(kept: Sequence[int]) -> onnx.ModelProto:
        return to_float16(plain, _with_surroundings(plain, layers, kept))

    found, kept = choose_kept(plain, make, task, len(layers))
    if layers and len(kept) == len(layers):
        raise ModelError(
            f"No layer can be in float16 if the output is to come within {task.min_sqnr_db:g} dB of the original's; "
            "choose another format."
        )
    return Exported(found, tuple(plain.graph.node[number].name for number in kept))


def _with_surroundings(model: onnx.ModelProto, layers: Sequence[int], kept: Sequence[int]) -> list[str]:
    """Return the names of layers, of the nodes between each and the layer before, and of those behind the last."""
    names = []
    for number in kept:
        place = layers.index(number)
        first = layers[place - 1] + 1 if place else 0
        last = number + 1 if number != layers[-1] else len(model.graph.node)
        names += [node.name for node in model.graph.node[first:last]]
    return names


def _join_casts(graph: onnx.GraphProto) -> None:
    """Let nodes that stay in float32 hand values to each other and to outputs directly.

    The converter puts a detour over float16 between them, and its range may be too small for these values.
    """
    producer = {name: node for node in graph.node for name in node.output}
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input]}
    outputs = {value.name for value in graph.output}
    direct = {}
    for node in [node for node in graph.node if node.op_type == "Cast"]:
        inner = producer.get(node.input[0])
        if inner is None or inner.op_type != "Cast" or types.get(inner.input[0]) != onnx.TensorProto.FLOAT:
            continue
        if node.name.endswith("_cast_to_fp32_node"):
            direct[node.output[0]] = inner.input[0]
        elif node.output[0] in outputs and inner.name.endswith("_cast_to_fp16_node"):
            node.CopyFrom(onnx.helper.make_node("Identity", [inner.input[0]], [node.output[0]], name=node.name))
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in direct:
                node.input[position] = direct[name]
    _remove_unread_casts(graph, outputs)


def _remove_unread_casts(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Remove the casts of the converter that nothing reads any more: those to float32, then those they read."""
    for suffix in ("_cast_to_fp32_node", "_cast_to_fp16_node"):
        read = {name for node in graph.node for name in node.input}.union(outputs)
        for node in [node for node in graph.node if node.name.endswith(suffix) and node.output[0] not in read]:
            graph.node.remove(node)
