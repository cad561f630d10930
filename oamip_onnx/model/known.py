"""What is known of computed sizes and of dimensions, whatever the dynamic ones are.

ONNX's inference, on the dimensions as declared, says which sizes are fixed. A walk over the graph follows small tensors
element by element: an element is known or depends on a dynamic dimension. Where a known size says more about a shape
than inference did, the nodes behind it are inferred again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from oamip_onnx.model.graph import captured_names, without_weights
from oamip_onnx.model.model import Array, int_attribute

# Larger results would make the file grow for what ONNX Runtime folds by itself when it loads the model.
_LARGEST_ELEMENTS = 8192

Dimensions = tuple[int | None, ...]
"""Sizes of a tensor's axes, None where dynamic or unknown."""

# Cells go where the node sends them: values and what is known of them move alike.
_MOVEMENTS = frozenset("Concat Expand Gather Identity Reshape Slice Squeeze Tile Transpose Unsqueeze".split())

# Each element of the output depends on one element of each input.
_ELEMENTWISE = frozenset("Add And Cast Div Equal Greater Less Max Min Mod Mul Neg Not Or Sub Where".split())

# Operators whose operand at this position names the output's sizes.
_TARGETED = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}

# Deterministic operators that sizes, masks and index tables are computed with; all their inputs must be known.
_EVALUABLE = _MOVEMENTS | frozenset(
    "Abs Add And Cast CastLike Ceil Clip Constant ConstantOfShape CumSum Div Equal Exp EyeLike Flatten Floor "
    "GatherElements GatherND Greater GreaterOrEqual Less LessOrEqual Log Max Min Mod Mul Neg Not NonZero OneHot Or Pad "
    "Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Round ScatterElements ScatterND Sign "
    "Size Split Sqrt Sub Sum Trilu Where Xor".split()
)


@dataclass(frozen=True)
class Partial:
    """A small tensor of which some elements are known.

    Attributes
    ----------
    values
        The elements; arbitrary where not known.
    known
        Which elements do not depend on a dynamic dimension or on data, same shape.
    """

    values: Array
    known: npt.NDArray[np.bool_]

    @property
    def complete(self) -> bool:
        """Whether every element is known."""
        return bool(self.known.all())


@dataclass(frozen=True)
class KnownSizes:
    """What holds of a model's sizes whatever its dynamic dimensions are.

    Attributes
    ----------
    elements
        What is known of small tensors, element by element.
    dimensions
        Dimensions of tensors, None where dynamic or unknown.
    """

    elements: Mapping[str, Partial]
    dimensions: Mapping[str, Dimensions]


def known_sizes(proto: onnx.ModelProto, types: Mapping[str, onnx.TypeProto] | None = None) -> KnownSizes:
    """Return what is known of sizes.

    Parameters
    ----------
    proto
        The model; not modified.
    types
        Types of its tensors; those that inference finds by default.
    """
    walk = Walk(proto, declared_types(proto) if types is None else types)
    for node in proto.graph.node:
        walk.step(node)
    dimensions = {name: found for name in walk.types if (found := walk.dimensions(name)) is not None}
    return KnownSizes(walk.partial, dimensions)


class Walk:
    """Values of small tensors, element by element, in one pass over a graph."""

    def __init__(self, proto: onnx.ModelProto, types: Mapping[str, onnx.TypeProto]) -> None:
        self.types = dict(types)
        self.opsets = list(proto.opset_import)
        self.opset = standard_opset(proto)
        self.ir_version = proto.ir_version
        self.partial: dict[str, Partial] = {}
        self.improved: set[str] = set()
        self.computed: set[str] = set()
        for tensor in proto.graph.initializer:
            if math.prod(tensor.dims) <= _LARGEST_ELEMENTS:
                values = numpy_helper.to_array(tensor)
                self.partial[tensor.name] = Partial(values, np.ones(values.shape, dtype=np.bool_))

    def dimensions(self, name: str) -> Dimensions | None:
        """Return a tensor's dimensions as far as they are known; None where not even the rank is."""
        kind = self.types.get(name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim)

    def step(self, node: onnx.NodeProto) -> None:
        """Follow one node."""
        if node.domain not in {"", "ai.onnx"}:
            return
        if any(name in self.improved or name in self.computed for name in node.input):
            self._infer_again(node)
        if node.op_type == "Shape":
            self._shape(node)
        elif node.op_type in _EVALUABLE:
            self._follow(node)
        if node.op_type in _TARGETED:
            self._use_target(node)
        self.computed.update(name for name in node.output if name in self.partial)

    def _follow(self, node: onnx.NodeProto) -> None:
        """Compute what the operands let know."""
        inputs = [self.partial.get(name) for name in node.input if name]
        if _all_complete(inputs):
            self._evaluate(node, [None if not name else self.partial[name].values for name in node.input])
        elif node.op_type == "Concat":
            self._concat(node)
        elif node.op_type in _ELEMENTWISE and all(part is not None for part in inputs):
            self._combine(node)
        elif node.op_type in _MOVEMENTS and inputs[0] is not None and _all_complete(inputs[1:]):
            self._move(node, inputs[0])

    def _use_target(self, node: onnx.NodeProto) -> None:
        """Read the output's dimensions off the elements of the target that are known."""
        target = self.partial.get(node.input[_TARGETED[node.op_type]])
        if target is None or target.values.ndim != 1:
            return
        sizes = [int(v) if k else None for v, k in zip(target.values, target.known, strict=True)]
        if node.op_type == "Reshape":
            sizes = self._reshaped(node, sizes)
        elif node.op_type == "Expand":
            data = self.dimensions(node.input[0])
            if data is None:
                return
            own = [1] * (len(sizes) - len(data)) + list(data)
            wanted = [1] * (len(own) - len(sizes)) + sizes
            sizes = [w if o == 1 else o for o, w in zip(own, wanted, strict=True)]
        if node.op_type == "ConstantOfShape":
            filling = [a.t.data_type for a in node.attribute if a.name == "value"]
            element_type = filling[0] if filling else onnx.TensorProto.FLOAT
        elif node.input[0] in self.types:
            element_type = self.types[node.input[0]].tensor_type.elem_type
        else:
            return
        self._set_dimensions(node.output[0], tuple(sizes), element_type)

    def _reshaped(self, node: onnx.NodeProto, sizes: list[int | None]) -> list[int | None]:
        """Return the sizes with zeros copied from the data and -1 inferred, where that is possible."""
        data = self.dimensions(node.input[0])
        if not int_attribute(node, "allowzero", 0):
            copied = (data or ()) + (None,) * len(sizes)
            sizes = [copied[i] if size == 0 else size for i, size in enumerate(sizes)]
        known = [size for size in sizes if size is not None]
        if -1 in known:
            whole = len(known) == len(sizes) and data is not None and None not in data
            rest = math.prod(size for size in known if size != -1)
            inferred = _count(data) // rest if whole and data is not None and rest else None
            sizes = [inferred if size == -1 else size for size in sizes]
        return sizes

    def _set_dimensions(self, name: str, dimensions: Dimensions, element_type: int) -> None:
        """Note dimensions that inference did not know."""
        before = self.dimensions(name)
        if before is not None and len(before) == len(dimensions):
            dimensions = tuple(new if old is None else old for old, new in zip(before, dimensions, strict=True))
        if dimensions == before:
            return
        kind = onnx.TypeProto()
        kind.tensor_type.elem_type = self.types[name].tensor_type.elem_type if name in self.types else element_type
        kind.tensor_type.shape.SetInParent()
        for size in dimensions:
            dimension = kind.tensor_type.shape.dim.add()
            if size is not None:
                dimension.dim_value = size
        self.types[name] = kind
        self.improved.add(name)

    def _infer_again(self, node: onnx.NodeProto) -> None:
        """Run ONNX's inference on one node whose inputs are known better than before."""
        names = [name for name in node.input if name]
        is_open = any(None in (self.dimensions(name) or (None,)) for name in node.output if name)
        if not is_open or any(name not in self.types for name in names) or captured_names(node):
            return
        data = {
            name: as_tensor(self.partial[name].values, name)
            for name in names
            if name in self.partial and self.partial[name].complete
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
            found = onnx.shape_inference.infer_node_outputs(
                schema, node, {name: self.types[name] for name in names}, data, None, self.opsets, self.ir_version
            )
        except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError):
            return
        for name, kind in found.items():
            if kind.tensor_type.HasField("shape"):
                sizes = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim)
                self._set_dimensions(name, sizes, kind.tensor_type.elem_type)

    def _shape(self, node: onnx.NodeProto) -> None:
        dimensions = self.dimensions(node.input[0])
        if dimensions is None:
            return
        part = dimensions[slice(int_attribute(node, "start", 0), int_attribute(node, "end", len(dimensions)))]
        values = np.array([0 if d is None else d for d in part], dtype=np.int64)
        self.partial[node.output[0]] = Partial(values, np.array([d is not None for d in part], dtype=np.bool_))

    def _evaluate(self, node: onnx.NodeProto, operands: list[Array | None]) -> None:
        """Run a node whose operands are known."""
        sizes = [self.dimensions(name) for name in node.output]
        if any(s is not None and None not in s and _count(s) > _LARGEST_ELEMENTS for s in sizes):
            return
        results = run_node(node, operands, self.opset)
        for name, values in zip(node.output, results or [], strict=bool(results)):
            if name and values.size <= _LARGEST_ELEMENTS:
                self.partial[name] = Partial(values, np.ones(values.shape, dtype=np.bool_))

    def _move(self, node: onnx.NodeProto, data: Partial) -> None:
        """Move values and what is known of them by known parameters."""
        rest = [self.partial[name].values if name else None for name in node.input[1:]]
        values = run_node(node, [data.values, *rest], self.opset)
        known = run_node(node, [data.known.astype(np.int64), *rest], self.opset)
        if values and known and values[0].size <= _LARGEST_ELEMENTS:
            self.partial[node.output[0]] = Partial(values[0], known[0].astype(np.bool_))

    def _combine(self, node: onnx.NodeProto) -> None:
        """Compute the elements whose operands are all known."""
        parts = [self.partial[name] for name in node.input]
        operands: list[Array | None] = [np.where(p.known, p.values, np.ones_like(p.values)) for p in parts]
        results = run_node(node, operands, self.opset)
        known = np.logical_and.reduce(np.broadcast_arrays(*(p.known for p in parts)))
        if results and results[0].shape == known.shape and known.size <= _LARGEST_ELEMENTS:
            self.partial[node.output[0]] = Partial(results[0], known)

    def _concat(self, node: onnx.NodeProto) -> None:
        """Lay known and unknown elements one behind the other; all lengths must be known."""
        parts = []
        for name in node.input:
            part = self.partial.get(name)
            if part is None:
                dimensions = self.dimensions(name)
                if dimensions is None or len(dimensions) != 1 or dimensions[0] is None:
                    return
                values = np.zeros(dimensions[0], dtype=np.int64)
                part = Partial(values, np.zeros(values.shape, dtype=np.bool_))
            parts.append(part)
        if any(part.values.ndim != 1 for part in parts):
            return
        values, known = np.concatenate([p.values for p in parts]), np.concatenate([p.known for p in parts])
        self.partial[node.output[0]] = Partial(values, known)


def _all_complete(parts: list[Partial | None]) -> bool:
    return all(part is not None and part.complete for part in parts)


def _count(dimensions: Dimensions) -> int:
    return math.prod(d or 1 for d in dimensions)


def standard_opset(proto: onnx.ModelProto) -> int:
    """Return the version of the standard domain that a model uses."""
    return next((o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"}), 1)


def as_tensor(values: Array, name: str) -> onnx.TensorProto:
    """Return values as an initializer; a scalar stays one."""
    return numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name)


def run_node(node: onnx.NodeProto, operands: list[Array | None], opset: int) -> list[Array] | None:
    """Return the outputs of one node of the standard domain, or None where it cannot be evaluated here.

    Parameters
    ----------
    node
        The node; not modified.
    operands
        Its inputs; None stands for an absent one.
    opset
        Version of the standard domain.
    """
    feeds = {f"operand{i}": value for i, value in enumerate(operands) if value is not None}
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.domain = ""
    del copy.input[:]
    copy.input.extend("" if value is None else f"operand{i}" for i, value in enumerate(operands))
    try:
        results = ReferenceEvaluator(copy, opsets={"": opset}).run(None, feeds)
    except Exception:  # noqa: BLE001 - whatever the evaluator refuses stays in the graph and is computed at run time
        return None
    return [np.asarray(value) for value in results]


def declared_types(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Return the type of every tensor that inference sees, with the dimensions as declared."""
    light = without_weights(proto, lambda tensor: math.prod(tensor.dims) > _LARGEST_ELEMENTS)
    for output in light.graph.output:
        output.ClearField("type")
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    found = {value.name: value.type for value in values}
    for tensor in proto.graph.initializer:
        found[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return found
