"""To mixed precision: which layers stay in float32 so that the output stays close."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx

from .formats import Array, ExportTask, Feeds

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply with weights: where precision is lost and can be kept."""

_SUFFIX = ".oamip_recomputed"

# What ONNX Runtime's quantiser calls a tensor after rounding.
_ROUNDED = "_DequantizeLinear_Output"

Make = Callable[[Sequence[int]], onnx.ModelProto]


def with_node_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model whose nodes have distinct names, as the converters tell nodes apart by them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    count = Counter(node.name for node in copy.graph.node)
    for number, node in enumerate(copy.graph.node):
        if not node.name or count[node.name] > 1:
            node.name = f"{node.name or node.op_type}#{number}"
    return copy


def layers_of(model: onnx.ModelProto) -> list[int]:
    """Return the positions of the nodes that multiply with weights, in graph order."""
    return [number for number, node in enumerate(model.graph.node) if node.op_type in LAYERS]


def choose_kept(plain: onnx.ModelProto, make: Make, task: ExportTask, most: int) -> tuple[onnx.ModelProto, list[int]]:
    """Return the converted model with the fewest layers in float32 that comes close enough, and these layers.

    Layers are kept in the order of the error that each makes by itself. If even `most` do not suffice, that many are
    kept: the caller says what becomes of it.

    Parameters
    ----------
    plain
        The model in float32.
    make
        Converts it, all but the layers at some positions.
    task
        The samples, how outputs are compared, and the bound.
    most
        How many layers may be kept at most.
    """
    model = make(())
    if task.sqnr_db is None or most == 0 or task.sqnr_db(model) >= task.min_sqnr_db:
        return model, []
    errors = layer_errors(plain, model, task.example, task.run)
    ranking = sorted(errors, key=lambda layer: -errors[layer])
    too_few, enough = 0, most
    best = make(ranking[:most])
    if task.sqnr_db(best) < task.min_sqnr_db:
        return best, sorted(ranking[:most])
    # Each further layer brings the output closer, or nearly so: bisection needs few conversions.
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        candidate = make(ranking[:middle])
        if task.sqnr_db(candidate) >= task.min_sqnr_db:
            enough, best = middle, candidate
        else:
            too_few = middle
    return best, sorted(ranking[:enough])


def layer_errors(
    plain: onnx.ModelProto,
    converted: onnx.ModelProto,
    feeds: Feeds,
    run: Callable[[onnx.ModelProto, Feeds], Mapping[str, Array]],
) -> dict[int, float]:
    """Return the relative error that each layer makes by itself, by its position in the float32 model.

    The converted model is cut open behind each layer, and every part is fed with what the float32 model computes
    there: an error does not travel on to later layers. What lies behind the last layer counts to it.
    """
    layers = layers_of(plain)
    outputs = {value.name for value in plain.graph.output}
    kinds = _types_of(converted)
    found = {number: _counterpart(plain, number, kinds) for number in layers}
    cuts = {number: names for number, names in found.items() if names is not None and names[0] not in outputs}
    expected = run(_with_outputs(plain, sorted({name for name, _ in cuts.values()})), feeds)
    with np.errstate(over="ignore"):  # beyond the range of float16: infinite there too
        inside = {
            there: expected[here].astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[there]))
            for here, there in cuts.values()
        }
    got = run(_cut_open(converted, inside, kinds), {**feeds, **inside})
    errors = dict.fromkeys(layers, 0.0)
    for number, (here, there) in cuts.items():
        errors[number] = _relative(expected[here], got[there + _SUFFIX])
    behind = [_relative(expected[name], got[name]) for name in outputs if expected[name].dtype.kind == "f"]
    if layers:
        errors[layers[-1]] = max([errors[layers[-1]], *behind])
    return errors


def _counterpart(plain: onnx.ModelProto, number: int, made: Collection[str]) -> tuple[str, str] | None:
    """Return the tensor behind a layer, and that of the converted model which holds the same values; None without one.

    Quantisation takes a ReLU into the rounding behind it, so that its output alone is left, and that after rounding.
    """
    name = plain.graph.node[number].output[0]
    readers = [node for node in plain.graph.node if name in node.input]
    candidates = [name, readers[0].output[0]] if len(readers) == 1 else [name]
    return next(
        ((one, there) for one in candidates for there in (one + _ROUNDED, one) if there in made),
        None,
    )


def _types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element types of the tensors that nodes make."""
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    made = {name for node in model.graph.node for name in node.output}
    return {name: kind for name, kind in known.items() if name in made and kind}


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def _cut_open(model: onnx.ModelProto, inside: Feeds, kinds: Mapping[str, int]) -> onnx.ModelProto:
    """Return the model with inputs in place of some tensors, and what it computes of them as outputs."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.value_info[:]  # types of tensors that are inputs now
    for node in cut.graph.node:
        for position, name in enumerate(node.output):
            if name in inside:
                node.output[position] = name + _SUFFIX
    for name, values in inside.items():
        cut.graph.input.append(onnx.helper.make_tensor_value_info(name, kinds[name], [None] * values.ndim))
        cut.graph.output.append(onnx.ValueInfoProto(name=name + _SUFFIX))
    return cut


def _relative(expected: Array, got: Array) -> float:
    """Return the size of the difference relative to what was expected; infinite where it is not finite."""
    wanted, found = expected.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(found).all():
        return float("inf")
    scale = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(wanted - found)) / scale if scale > 0 else 0.0
