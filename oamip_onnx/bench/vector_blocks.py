"""Widths that waste a part of the CPU's vectors, by the block that its instruction set suggests: nothing is timed."""

from dataclasses import dataclass
from pathlib import Path

import onnx

from oamip_onnx.model import int_attribute

# The floats of the block in which ONNX Runtime's convolutions keep channels, with and without AVX-512.
_WIDE_BLOCK, _BLOCK = 16, 8


@dataclass(frozen=True)
class Misaligned:
    """The layers of a model whose output widths are no multiple of the vector block.

    Attributes
    ----------
    layers
        Name and width of each.
    considered
        How many convolutions and matrix products with weights there are, without those that only an output follows.
    block
        The block.
    """

    layers: tuple[tuple[str, int], ...]
    considered: int
    block: int

    def describe(self, model: str) -> str:
        """Return a sentence about the model called `model`, or an empty text where all widths fit."""
        if not self.layers:
            return ""
        name, width = self.layers[0]
        return (
            f"{len(self.layers)} of {self.considered} convolutions and matrix products of {model} have a width that is "
            f"no multiple of {self.block}, this CPU's vector block ({name!r} has {width}), so part of the work is "
            f"wasted; prune with --round-to {self.block}."
        )


def vector_block() -> int:
    """Return how many channels ONNX Runtime computes at a time on this CPU: 16 with AVX-512, otherwise 8."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return _BLOCK  # not on Linux
    return _WIDE_BLOCK if "avx512f" in flags.split() else _BLOCK


def misaligned_widths(model: onnx.ModelProto, block: int | None = None) -> Misaligned:
    """Return the layers whose output widths are no multiple of the block.

    Layers behind which no other layer comes are left out: how wide they are is for the task to say.

    Parameters
    ----------
    model
        The model.
    block
        The block; `vector_block` by default.
    """
    block = block or vector_block()
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    last = _last_layers(model.graph, shapes)
    widths = [
        (node.name or f"{node.op_type} → {node.output[0]}", _width(node, shapes))
        for position, node in enumerate(model.graph.node)
        if _width(node, shapes) and position not in last
    ]
    return Misaligned(tuple(found for found in widths if found[1] % block), len(widths), block)


def _width(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the output width of a layer with a weight, and 0 for every other node."""
    shape = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
    if len(shape) < 2:
        return 0
    if node.op_type == "Conv":
        return shape[0]
    if node.op_type == "Gemm":
        return shape[0] if int_attribute(node, "transB", 0) else shape[1]
    return shape[-1] if node.op_type == "MatMul" else 0


def _last_layers(graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]) -> set[int]:
    """Return the positions of the layers that reach an output of the graph without passing another layer."""
    makers = {name: position for position, node in enumerate(graph.node) for name in node.output if name}
    pending, seen, last = [value.name for value in graph.output], set[str](), set[int]()
    while pending:
        name = pending.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        node = graph.node[makers[name]]
        if _width(node, shapes):
            last.add(makers[name])
        else:
            pending.extend(node.input)
    return last
