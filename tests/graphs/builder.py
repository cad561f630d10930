"""Building small graphs with seeded random weights, and the table of those on which removal must equal masking."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8

GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {}


class Builder:
    """A graph under construction, with seeded random weights."""

    def __init__(
        self, shape: Sequence[int | str], seed: int = 0, opset: int = OPSET, dtype: int = TensorProto.FLOAT
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.declared: list[onnx.ValueInfoProto] = []
        self.inputs = [helper.make_tensor_value_info("x", dtype, list(shape))]

    def constant(self, values: Any, name: str | None = None) -> str:
        """Add an initializer."""
        array = np.asarray(values)
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Add random weights."""
        spread = scale or 1 / np.sqrt(max(int(np.prod(shape[1:])), 1))
        values = self.random.normal(0, spread, shape)
        return self.constant(values.astype(helper.tensor_dtype_to_np_dtype(self.dtype)))

    def positive(self, *shape: int) -> str:
        """Add random weights between a half and one and a half."""
        values = self.random.uniform(0.5, 1.5, shape)
        return self.constant(values.astype(helper.tensor_dtype_to_np_dtype(self.dtype)))

    def add(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first output."""
        names = [f"t{len(self.nodes)}" + (f"_{k}" if k else "") for k in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, f"{op_type}_{len(self.nodes)}", **attributes))
        return names[0]

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True, **attributes: Any) -> str:
        """Add a convolution that keeps the plane's size."""
        group = attributes.get("group", 1)
        operands = [x, self.weight(outputs, inputs // group, kernel, kernel)]
        if bias:
            operands.append(self.weight(outputs, scale=0.5))
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.add("Conv", *operands, **attributes)

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        """Add a fully connected layer."""
        return self.add("Gemm", x, self.weight(outputs, inputs), self.weight(outputs, scale=0.5), transB=1)

    def declare(self, name: str, shape: Sequence[int | str | None]) -> None:
        """Declare the shape of a tensor that ONNX does not infer (operators of other domains)."""
        self.declared.append(helper.make_tensor_value_info(name, self.dtype, list(shape)))

    def finish(self, y: str) -> onnx.ModelProto:
        """Return the model with one output `y`."""
        self.nodes.append(helper.make_node("Identity", [y], ["y"], "out"))
        outputs = [helper.make_tensor_value_info("y", self.dtype, None)]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, outputs, self.constants)
        graph.value_info.extend(self.declared)
        domains = [helper.make_opsetid(d, 1) for d in sorted({n.domain for n in self.nodes if n.domain})]
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset), *domains])
        model.ir_version = IR_VERSION
        return onnx.shape_inference.infer_shapes(model)


def graph(function: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    """Register a graph under its function's name."""
    GRAPHS[function.__name__] = function
    return function


def image(**settings: Any) -> Builder:
    """Return a builder with an image input of 3 × 8 × 8."""
    return Builder(["N", 3, 8, 8], **settings)


def head(b: Builder, x: str, channels: int, plane: int = 64) -> onnx.ModelProto:
    """Flatten a feature map and classify it."""
    return b.finish(b.gemm(b.add("Flatten", x), channels * plane, 5))
