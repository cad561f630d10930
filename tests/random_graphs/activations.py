"""Pointwise operators that a random graph may hold."""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from random_graphs.sketch import Sketch

# Pointwise functions without jumps, and the opset that brings each.
ACTIVATIONS = {
    "Relu": 7, "LeakyRelu": 7, "Sigmoid": 7, "Tanh": 7, "Elu": 7, "Selu": 7, "Softplus": 7, "Softsign": 7, "Abs": 7,
    "reflected": 7, "HardSigmoid": 7, "Erf": 9, "Sin": 7, "Cos": 7, "Atan": 7, "Asinh": 9, "Celu": 12, "HardSwish": 14,
    "Mish": 18, "Gelu": 20, "swish": 7, "gelu": 9, "clip": 7, "root": 7, "exponential": 7, "reciprocal": 7, "square": 7,
    "cast": 7, "dropout": 13,
}  # fmt: skip


def _swish(s: Sketch, x: str) -> str:
    return s.b.add("Mul", x, s.b.add("Sigmoid", x))


def _gelu(s: Sketch, x: str) -> str:
    inner = s.b.add("Add", s.b.add("Erf", s.b.add("Div", x, s.scalar(np.sqrt(2)))), s.scalar(1))
    return s.b.add("Mul", s.b.add("Mul", x, inner), s.scalar(0.5))


def _clip(s: Sketch, x: str) -> str:
    if s.opset < 11:
        return s.b.add("Clip", x, min=-0.5, max=1.0)
    return s.b.add("Clip", x, s.scalar(-0.5), s.scalar(1))


def _root(s: Sketch, x: str) -> str:
    return s.b.add("Sqrt", s.b.add("Add", s.b.add("Abs", x), s.scalar(0.5)))


def _reflected(s: Sketch, x: str) -> str:
    # Shifted, so that a Relu on either side leaves something.
    return s.b.add("Add", s.b.add("Neg", x), s.scalar(1))


def _exponential(s: Sketch, x: str) -> str:
    return s.b.add("Exp", s.b.add("Tanh", x))


def _reciprocal(s: Sketch, x: str) -> str:
    return s.b.add("Reciprocal", s.b.add("Add", s.b.add("Sigmoid", x), s.scalar(0.5)))


def _square(s: Sketch, x: str) -> str:
    return s.b.add("Pow", s.b.add("Tanh", x), s.scalar(2))


def _cast(s: Sketch, x: str) -> str:
    return s.b.add("Relu", s.b.add("Cast", s.b.add("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT))


def _dropout(s: Sketch, x: str) -> str:
    return s.b.add("Dropout", s.b.add("Identity", x))


COMPOSED: dict[str, Callable[[Sketch, str], str]] = {
    "swish": _swish,
    "gelu": _gelu,
    "clip": _clip,
    "root": _root,
    "reflected": _reflected,
    "exponential": _exponential,
    "reciprocal": _reciprocal,
    "square": _square,
    "cast": _cast,
    "dropout": _dropout,
}
