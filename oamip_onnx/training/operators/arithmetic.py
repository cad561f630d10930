"""Functions of several tensors, element by element, with broadcasting."""

import functools
from collections.abc import Callable

import torch

from oamip_onnx.training.operators.table import Function, Operation, Tensor, operator, simple

# A constant that is added or multiplied is a weight where it has more than one element: biases, gains, tables of
# positions. A single number is part of a formula.
_WEIGHTS = (0, 1)


@operator("Add", weights=_WEIGHTS)
def add(_operation: Operation) -> Function:
    """Add."""
    return torch.add  # type: ignore[no-any-return] # torch is not typed here


@operator("Sub", weights=_WEIGHTS)
def sub(_operation: Operation) -> Function:
    """Sub."""
    return torch.sub  # type: ignore[no-any-return] # torch is not typed here


@operator("Mul", weights=_WEIGHTS)
def mul(_operation: Operation) -> Function:
    """Mul."""
    return torch.mul  # type: ignore[no-any-return] # torch is not typed here


@operator("Div", weights=_WEIGHTS)
def div(_operation: Operation) -> Function:
    """Div; of whole numbers, the quotient is cut off towards zero."""

    def run(a: Tensor, b: Tensor) -> Tensor:
        return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")

    return run


@operator("Pow")
def power(_operation: Operation) -> Function:
    """Pow, whose result has the type of the base."""
    return lambda a, b: torch.pow(a, b).to(a.dtype)


@operator("Mod")
def modulo(operation: Operation) -> Function:
    """Mod, with the sign of the divisor, or of the dividend for `fmod`."""
    return torch.fmod if operation.get("fmod", 0) else torch.remainder  # type: ignore[no-any-return] # torch is not typed here


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda *operands: functools.reduce(function, operands)


simple("Max", _folded(torch.maximum))
simple("Min", _folded(torch.minimum))


@operator("Sum", weights=(0, 1, 2, 3))
def total(_operation: Operation) -> Function:
    """Sum of any number of tensors."""
    return _folded(torch.add)


@operator("Mean", weights=(0, 1, 2, 3))
def mean(_operation: Operation) -> Function:
    """Mean of any number of tensors."""
    return lambda *operands: functools.reduce(torch.add, operands) / len(operands)


for _name, _function in {
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}.items():
    simple(_name, _function, gradient=False)


@operator("BitShift", gradient=False)
def bit_shift(operation: Operation) -> Function:
    """BitShift."""
    left = operation.get("direction") == "LEFT"
    return torch.bitwise_left_shift if left else torch.bitwise_right_shift  # type: ignore[no-any-return] # torch is not typed here


simple("Where", torch.where)
