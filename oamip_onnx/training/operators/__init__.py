"""The operators that run in PyTorch: one small function each, in a table."""

from oamip_onnx.training.operators import (
    activation,
    arithmetic,
    contraction,
    movement,
    normalisation,
    pooling,
    recurrent,
    reduction,
    resampling,
    sizes,
)
from oamip_onnx.training.operators.table import TABLE, Entry, Mode, Operation, torch_type

__all__ = [
    "TABLE",
    "Entry",
    "Mode",
    "Operation",
    "activation",
    "arithmetic",
    "contraction",
    "movement",
    "normalisation",
    "pooling",
    "recurrent",
    "reduction",
    "resampling",
    "sizes",
    "torch_type",
]
