"""Small graphs, at least one per operator, on which removal must equal masking."""

from graphs import attention, broadcast, contraction, movement, recurrent, reduction, single, weights
from graphs.builder import GRAPHS, IR_VERSION, OPSET, Builder, graph, head, image

__all__ = [
    "GRAPHS",
    "IR_VERSION",
    "OPSET",
    "Builder",
    "attention",
    "broadcast",
    "contraction",
    "graph",
    "head",
    "image",
    "movement",
    "recurrent",
    "reduction",
    "single",
    "weights",
]
