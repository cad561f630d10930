"""Pooling as jax2onnx writes it, over all axes at once, as pooling over the plane, which runtimes have kernels for."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from oamip_onnx.model import ints_attribute

from .inference import drop_unneeded


@dataclass(frozen=True)
class _Window:
    """A window that moves over the axes between samples and channels; sums where it is not a maximum."""

    source: str
    target: str
    kernel: list[int]
    strides: list[int]
    pads: list[int]
    sums: bool

    def nodes(self) -> list[onnx.NodeProto]:
        """Return the same as pooling: channels go to the second axis and back."""
        rank = len(self.kernel) + 2
        there, back = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
        inner = [f"{self.target}.{part}" for part in ("channels_first", "pooled", "summed")]
        extra: dict[str, Any] = {"count_include_pad": 1} if self.sums else {}
        made = [
            helper.make_node("Transpose", [self.source], [inner[0]], perm=there),
            helper.make_node(
                "AveragePool" if self.sums else "MaxPool",
                [inner[0]],
                [inner[1]],
                kernel_shape=self.kernel,
                strides=self.strides,
                pads=self.pads,
                **extra,
            ),
        ]
        if self.sums:
            made.append(helper.make_node("Mul", [inner[1], f"{self.target}.size"], [inner[2]]))
        made.append(helper.make_node("Transpose", [inner[2 if self.sums else 1]], [self.target], perm=back))
        return made


def use_plain_windows(model: onnx.ModelProto) -> None:
    """Replace, in place, each window over samples, plane and channels by pooling over the plane.

    jax2onnx adds two axes of one in front, moves a window over all the others, and removes the two again. ONNX Runtime
    has no maximum over more than three axes, and channels inside a window cannot be pruned.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    windows = {}
    for node in graph.node:
        window = _window(node, makers, readers, constants)
        if window is not None:
            windows[window.target] = window
    if not windows:
        return
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        found = windows.get(node.output[0])
        nodes += [node] if found is None else found.nodes()
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    for window in windows.values():
        if window.sums:
            size = np.array(math.prod(window.kernel), np.float32)
            graph.initializer.append(numpy_helper.from_array(size, f"{window.target}.size"))
    drop_unneeded(graph)


def _window(
    node: onnx.NodeProto,
    makers: dict[str, onnx.NodeProto],
    readers: dict[str, list[onnx.NodeProto]],
    constants: dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"],
) -> _Window | None:
    """Return the window of a node that has the form which jax2onnx writes, else None."""

    def axes(one: onnx.NodeProto | None, kind: str) -> list[int]:
        if one is None or one.op_type != kind or len(one.input) < 2 or one.input[1] not in constants:
            return []
        return [int(axis) for axis in constants[one.input[1]].ravel()]

    if node.op_type not in {"Conv", "MaxPool"}:
        return None
    second = makers.get(node.input[0])
    first = makers.get(second.input[0]) if second is not None else None
    behind = readers.get(node.output[0], [])
    if len(behind) != 1 or axes(first, "Unsqueeze") != [0] or axes(second, "Unsqueeze") != [1] or first is None:
        return None
    if axes(behind[0], "Squeeze") != [0, 1]:
        return None
    weight = constants.get(node.input[1]) if node.op_type == "Conv" else None
    kernel = ints_attribute(node, "kernel_shape") if weight is None else list(weight.shape[2:])
    if not kernel or len(kernel) < 3 or (node.op_type == "Conv" and (weight is None or not (weight == 1).all())):
        return None
    strides = ints_attribute(node, "strides") or [1] * len(kernel)
    pads = ints_attribute(node, "pads") or [0] * 2 * len(kernel)
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    ends_alone = all(kernel[at] == strides[at] == 1 and begins[at] == ends[at] == 0 for at in (0, -1))
    if not ends_alone or set(ints_attribute(node, "dilations") or [1]) != {1}:
        return None
    return _Window(
        source=first.input[0],
        target=behind[0].output[0],
        kernel=kernel[1:-1],
        strides=strides[1:-1],
        pads=[*begins[1:-1], *ends[1:-1]],
        sums=node.op_type == "Conv",
    )
