"""Concrete shapes of every tensor, with dynamic dimensions bound to a sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from oamip_onnx.errors import DataError, ModelError, UsageError, closest, first_line
from oamip_onnx.model.graph import captured_names, needed_nodes, remove_initializers, without_weights
from oamip_onnx.model.known import as_tensor, known_sizes
from oamip_onnx.model.model import Array, Model
from oamip_onnx.runtime import RuntimeOptions, Session

# Tensors up to this size can be shapes, axes or split sizes that inference must see the values of.
_SHAPE_VALUE_ELEMENTS = 1024

# What these make is no tensor; its channels are not followed.
_SEQUENCE_MAKERS = frozenset(
    "Optional SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceMap SplitToSequence".split()
)

# Each round writes the sizes that the shapes of the round before determine.
_ROUNDS = 4


@dataclass(frozen=True)
class TensorType:
    """Concrete shape and ONNX element type of a tensor."""

    shape: tuple[int, ...]
    element_type: int

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.element_type))


def bind_inputs(
    model: Model,
    feeds: Mapping[str, Array] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return a concrete shape per graph input: from a sample's feeds, else from given shapes, else from the model.

    A dynamic first dimension is taken as 1 where nothing else says; a fixed one wins over the sample's batch.

    Raises
    ------
    DataError
        If another dimension is dynamic and neither feeds nor shapes bind it.
    UsageError
        If a shape is given for an input that does not exist.
    """
    given = dict(input_shapes or {})
    for name in given:
        if name not in model.input_names:
            raise UsageError(f"There is no input {name!r} to give a shape to{closest(name, model.input_names)}.")
    bound: dict[str, tuple[int, ...]] = {}
    for value in model.graph.input:
        if value.name in given:
            bound[value.name] = tuple(int(d) for d in given[value.name])
        elif feeds is not None and value.name in feeds:
            bound[value.name] = tuple(feeds[value.name].shape)
        else:
            bound[value.name] = _declared_shape(value)
    return bound


def _declared_shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    shape = []
    for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
        if dimension.HasField("dim_value") and dimension.dim_value > 0:
            shape.append(dimension.dim_value)
        elif axis == 0:
            shape.append(1)
        else:
            raise DataError(
                f"Dimension {axis} of the input {value.name!r} is dynamic; give samples with --data, "
                f"or its shape with --input-shape {value.name}=1,…"
            )
    return tuple(shape)


def infer_shapes(
    model: Model, input_shapes: Mapping[str, Sequence[int]], feeds: Mapping[str, Array] | None = None
) -> dict[str, TensorType]:
    """Return the type of every tensor of the main graph that carries numbers.

    ONNX's own inference goes first, on a copy whose large weights are replaced by their types. Sizes that it
    does not follow are computed from the shapes known so far, and what is still open is read off one run in ONNX
    Runtime with `feeds` (zeros where there are none).

    Raises
    ------
    ModelError
        If shapes contradict each other, or the model does not run on inputs of these shapes.
    """
    skeleton = _skeleton(model, input_shapes)
    types = _inferred(skeleton)
    for _ in range(_ROUNDS):
        if all(n in types for node in model.graph.node for n in node.output if n) or not _put_sizes(skeleton, types):
            break
        types |= _inferred(skeleton)
    for name, constant in model.initializers.items():
        types[name] = TensorType(tuple(constant.dims), constant.data_type)
    open_names = [n for node in model.graph.node for n in node.output if n and n not in types]
    if open_names:
        types |= _measured(model, open_names, types, input_shapes, feeds)
    return types


def _inferred(skeleton: onnx.ModelProto) -> dict[str, TensorType]:
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        # Strict inference stops at the first operator it does not know; the lenient one goes on around it, and the
        # run that measures what is left raises where the model is really inconsistent.
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except ValueError as error:
        raise ModelError(f"The types of the model cannot be inferred: {first_line(error)}") from error
    types: dict[str, TensorType] = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            types[value.name] = TensorType(tuple(d.dim_value for d in tensor.shape.dim), tensor.elem_type)
    return types


def _put_sizes(skeleton: onnx.ModelProto, types: Mapping[str, TensorType]) -> bool:
    """Write computed sizes that are known at these shapes into the nodes that read them; return whether any was new.

    ONNX's inference does not follow division, comparison or reduction of sizes.
    """
    protos = {n: helper.make_tensor_type_proto(t.element_type, list(t.shape)) for n, t in types.items()}
    found = known_sizes(skeleton, protos).elements
    written = {t.name for t in skeleton.graph.initializer}
    changed = False
    for node in skeleton.graph.node:
        for position, name in enumerate(node.input):
            if name not in written and name in found and found[name].complete:
                constant = f"{name}.oamip_known"
                if constant not in written:
                    skeleton.graph.initializer.append(as_tensor(found[name].values, constant))
                    written.add(constant)
                node.input[position] = constant
                changed = True
    return changed


def _skeleton(model: Model, input_shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    skeleton = without_weights(model.proto, lambda tensor: math.prod(tensor.dims) > _SHAPE_VALUE_ELEMENTS)
    for value in skeleton.graph.input:
        if value.name in input_shapes:
            kind = value.type.tensor_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind.elem_type, list(input_shapes[value.name])))
    for value in skeleton.graph.output:
        # Declared output dimensions may name the dynamic batch that the sample has bound.
        value.type.tensor_type.ClearField("shape")
    return skeleton


def _measured(
    model: Model,
    names: Sequence[str],
    known: Mapping[str, TensorType],
    input_shapes: Mapping[str, Sequence[int]],
    feeds: Mapping[str, Array] | None,
) -> dict[str, TensorType]:
    sequences = {o for node in model.graph.node if node.op_type in _SEQUENCE_MAKERS for o in node.output}
    names = [name for name in names if name not in sequences]
    if not names:
        return {}
    probe = with_outputs(model.proto, names)
    session = Session(probe, RuntimeOptions(optimise=False))
    sample = dict(feeds or {})
    for name, shape in input_shapes.items():
        if name not in sample:
            try:
                sample[name] = np.zeros(shape, known[name].dtype)
            except (ValueError, MemoryError) as error:
                raise DataError(f"An input {name!r} of shape {tuple(shape)} does not fit into memory.") from error
    values = session.run(sample, names)
    return {
        name: TensorType(value.shape, helper.np_dtype_to_tensor_dtype(value.dtype)) for name, value in values.items()
    }


def with_outputs(proto: onnx.ModelProto, names: Sequence[str], *, keep: bool = False) -> onnx.ModelProto:
    """Return a copy of the model whose outputs are the named tensors, in addition to its own if `keep`.

    Nodes that none of the outputs needs are left out: ONNX Runtime would run them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {o.name for o in copy.graph.output} if keep else set()
    if not keep:
        del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in have)
    if not keep:
        _drop_unneeded(copy.graph)
    return copy


def _drop_unneeded(graph: onnx.GraphProto) -> None:
    outputs = {output.name for output in graph.output}
    needed = needed_nodes(graph, outputs)
    for index in reversed(range(len(graph.node))):
        if index not in needed:
            del graph.node[index]
    read = {name for node in graph.node for name in [*node.input, *captured_names(node)]} | outputs
    remove_initializers(graph, {t.name for t in graph.initializer} - read)
