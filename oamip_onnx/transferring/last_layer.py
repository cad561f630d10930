"""The layer that makes the logits, and the same model with another number of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from oamip_onnx.errors import ModelError
from oamip_onnx.importance import find_logits
from oamip_onnx.model import Array, Model, TensorType, bind_inputs, infer_shapes, int_attribute, load_model
from oamip_onnx.transferring.initialise import last_layer_weight

# Between the last layer and the logits, these treat every class alike: they hold no number for each of them.
_ALIKE = frozenset(
    "AveragePool Cast Clip Dropout Elu Flatten GlobalAveragePool GlobalMaxPool Identity LeakyRelu LogSoftmax MaxPool "
    "ReduceMax ReduceMean ReduceSum Relu Reshape Sigmoid Softmax Squeeze Tanh Transpose Unsqueeze".split()
)

# These do where what they combine the classes with is a single number.
_WITH_A_NUMBER = frozenset("Add Div Mul Sub".split())

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})

_ADVICE = "the last layer has to be a Gemm, a MatMul or a Conv with constant weights"


@dataclass(frozen=True)
class Operand:
    """A constant that a node reads, with one entry for each class along an axis; a shape has one element in all."""

    node: int
    position: int
    axis: int


@dataclass(frozen=True)
class LastLayer:
    """The layer that makes the logits.

    Attributes
    ----------
    node
        Position of the node in the graph.
    name
        Its name for people.
    logits
        The tensor of logits, shape (samples, classes).
    classes
        How many classes there are.
    weight
        The operand with the weights.
    biases
        Operands that are added to its output, with a number for each class.
    sizes
        Elements of constant shapes that hold the number of classes; `axis` is the element.
    """

    node: int
    name: str
    logits: str
    classes: int
    weight: Operand
    biases: tuple[Operand, ...]
    sizes: tuple[Operand, ...]


def find_last_layer(model: Model, types: Mapping[str, TensorType]) -> LastLayer:
    """Return the layer that makes the logits.

    Parameters
    ----------
    model
        The canonical model.
    types
        Concrete types of its tensors.

    Raises
    ------
    ModelError
        If the output is no vector of classes, or no single layer with constant weights makes it.
    """
    logits = find_logits(model, types)
    shape = types[logits].shape
    if len(shape) != 2 or shape[1] < 2:
        raise ModelError(
            f"The output {logits!r} of the model has the shape {shape}, which is no vector of classes, so there is no "
            "last layer to replace; transfer needs a classifier."
        )
    classes, name = shape[1], logits
    biases: list[Operand] = []
    sizes: list[Operand] = []
    while name in model.producers:
        index = model.producers[name]
        node = model.graph.node[index]
        found = _layer(model, index, classes)
        if found is not None:
            weight, own = found
            return LastLayer(index, model.node_name(index), logits, classes, weight, (*own, *biases), tuple(sizes))
        if node.op_type in _WITH_A_NUMBER:
            position, bias = _addend(model, index, classes)
            biases += [] if bias is None else [bias]
        elif node.op_type in _ALIKE and not node.domain:
            position = 0
            sizes += _class_sizes(model, index, classes)
        else:
            raise _refused(model, index, "which transfer cannot adapt to another number of classes")
        name = node.input[position]
    raise ModelError(f"No layer of the model makes the logits {logits!r}, so there is no last one to replace.")


def _refused(model: Model, index: int, why: str) -> ModelError:
    node = model.graph.node[index]
    return ModelError(
        f"The last layer cannot be replaced: on the way from it to the logits stands {model.node_name(index)!r} "
        f"({node.op_type}), {why}; {_ADVICE}."
    )


def _layer(model: Model, index: int, classes: int) -> tuple[Operand, tuple[Operand, ...]] | None:
    """Return the weight and the own bias of a contraction; None for other nodes.

    Raises
    ------
    ModelError
        If it is a contraction that cannot be replaced.
    """
    node = model.graph.node[index]
    if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.domain:
        return None
    weight = model.initializers.get(node.input[1])
    if weight is None or weight.data_type not in _FLOATS:
        raise _refused(model, index, "whose weights are not constant")
    if node.op_type == "Conv":
        axis = 0
        fits = int_attribute(node, "group", 1) == 1
    else:
        axis = 0 if node.op_type == "Gemm" and int_attribute(node, "transB", 0) else len(weight.dims) - 1
        fits = len(weight.dims) == 2
    if not fits or weight.dims[axis] != classes:
        raise _refused(model, index, f"whose weights of shape {tuple(weight.dims)} have no axis of {classes} classes")
    if len(node.input) < 3 or not node.input[2]:
        return Operand(index, 1, axis), ()
    bias = _class_vector(model, node.input[2], classes)
    if bias is None:
        raise _refused(model, index, f"whose bias is no constant of {classes} numbers")
    return Operand(index, 1, axis), (Operand(index, 2, bias),)


def _class_vector(model: Model, name: str, classes: int) -> int | None:
    """Return the axis of a constant that holds one number for each class; None if it is no such constant."""
    if name not in model.initializers:
        return None
    long = [axis for axis, size in enumerate(model.initializers[name].dims) if size != 1]
    return long[0] if len(long) == 1 and model.initializers[name].dims[long[0]] == classes else None


def _addend(model: Model, index: int, classes: int) -> tuple[int, Operand | None]:
    """Return which operand leads on to the last layer, and the other one if it is a bias.

    Raises
    ------
    ModelError
        If the other one is neither a bias nor a number.
    """
    node = model.graph.node[index]
    constants = [position for position, name in enumerate(node.input) if name in model.initializers]
    if len(constants) != 1:
        raise _refused(model, index, "which joins two layers")
    (position,) = constants
    name = node.input[position]
    if all(size == 1 for size in model.initializers[name].dims):
        return 1 - position, None
    axis = _class_vector(model, name, classes)
    if node.op_type != "Add" or axis is None:
        raise _refused(model, index, f"which has numbers of its own of shape {tuple(model.initializers[name].dims)}")
    return 1 - position, Operand(index, position, axis)


def _class_sizes(model: Model, index: int, classes: int) -> list[Operand]:
    """Return the element of a Reshape's constant shape that holds the number of classes, if one does."""
    node = model.graph.node[index]
    if node.op_type != "Reshape" or node.input[1] not in model.initializers:
        return []
    # The first element counts samples.
    found = [k for k, size in enumerate(model.array(node.input[1]).tolist()) if k and size == classes]
    if len(found) > 1:
        raise _refused(model, index, f"whose shape holds {classes} more than once")
    return [Operand(index, 1, element) for element in found]


def replace_last_layer(
    model: Model, layer: LastLayer, classes: int, feeds: Mapping[str, Array], seed: int
) -> onnx.ModelProto:
    """Return a copy of the model whose last layer is new: drawn weights for so many classes, and no bias.

    Parameters
    ----------
    model, layer
        The model, and its last layer.
    classes
        The new number of classes.
    feeds
        One run of samples by input, for shapes.
    seed
        Seed of the draw.

    Raises
    ------
    ModelError
        If the logits do not come to that number of classes.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    weight = model.array(model.graph.node[layer.node].input[1])
    drawn = last_layer_weight(_resized(weight.shape, layer.weight.axis, classes), layer.weight.axis, seed)
    _put(model, proto, layer.weight, drawn.astype(weight.dtype))
    for operand in layer.biases:
        old = model.array(model.graph.node[operand.node].input[operand.position])
        _put(model, proto, operand, np.zeros(_resized(old.shape, operand.axis, classes), old.dtype))
    for operand in layer.sizes:
        sizes = model.array(model.graph.node[operand.node].input[operand.position]).copy()
        sizes[operand.axis] = classes
        _put(model, proto, operand, sizes)
    del proto.graph.value_info[:]
    _declare_outputs(model, proto, layer, classes, feeds)
    return proto


def _resized(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _put(model: Model, proto: onnx.ModelProto, operand: Operand, values: Array) -> None:
    """Give a node another constant: in the place of the old one, or beside it where other nodes read that."""
    name = proto.graph.node[operand.node].input[operand.position]
    tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
    if len(model.uses[name]) > 1 or name in model.output_names:
        taken = {*model.initializers, *model.producers, *model.input_names}
        while tensor.name in taken:
            tensor.name += "_"
        proto.graph.node[operand.node].input[operand.position] = tensor.name
        proto.graph.initializer.append(tensor)
        return
    next(one for one in proto.graph.initializer if one.name == name).CopyFrom(tensor)


def _declare_outputs(
    model: Model, proto: onnx.ModelProto, layer: LastLayer, classes: int, feeds: Mapping[str, Array]
) -> None:
    """Give outputs the shape that they have now, and check that the logits have the wanted one.

    Raises
    ------
    ModelError
        If they do not.
    """
    before = infer_shapes(model, bind_inputs(model, feeds), feeds)
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for value in bare.graph.output:
        # What is declared would contradict what is computed.
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    changed = load_model(bare)
    wanted = (before[layer.logits].shape[0], classes)
    try:
        after = infer_shapes(changed, bind_inputs(changed, feeds), feeds)
    except ModelError as error:
        raise _computed_shapes(layer, classes, "no shape that holds") from error
    if after[layer.logits].shape != wanted:
        raise _computed_shapes(layer, classes, f"the shape {after[layer.logits].shape} instead of {wanted}")
    for value in proto.graph.output:
        dims = value.type.tensor_type.shape.dim
        for dim, old, new in zip(dims, before[value.name].shape, after[value.name].shape, strict=False):
            if old != new:
                dim.dim_value = new


def _computed_shapes(layer: LastLayer, classes: int, found: str) -> ModelError:
    return ModelError(
        f"With {classes} classes in the last layer {layer.name!r} the logits have {found}: shapes between them are "
        "computed from the old number of classes; export the model with a Flatten there."
    )
