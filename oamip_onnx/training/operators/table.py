"""The table of operators: for each, what makes a function of tensors out of a node."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import TensorProto

from oamip_onnx.errors import UnsupportedOperatorError

Tensor = Any
"""A `torch.Tensor`; PyTorch's types are not seen by the type checker."""

Function = Callable[..., Any]
"""Takes a node's operands by position, None for an absent one; returns one tensor, or a tuple of the outputs."""

# Every floating-point type is computed in float32, whatever the file stores: training in half of it loses updates.
_TYPES: dict[int, Any] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float32,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    # PyTorch has hardly any arithmetic for wider unsigned numbers; those that graphs hold fit the next signed type.
    TensorProto.UINT16: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


@dataclass
class Mode:
    """How batch normalisations run, shared by all of a network.

    Attributes
    ----------
    batch_statistics
        Whether a batch is normalised by its own statistics, and moves the stored ones.
    momentum
        Weight of a batch in the stored statistics; None for that of each node.
    """

    batch_statistics: bool = False
    momentum: float | None = None


@dataclass(frozen=True)
class Operation:
    """A node as the table's functions see it.

    Attributes
    ----------
    op_type, opset
        The operator, and the version of its domain.
    attributes
        The node's attributes as Python values.
    operands
        How many operands the node names, absent ones included.
    outputs
        How many of its outputs are used, counted to the last one.
    mode
        How batch normalisations run.
    """

    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    operands: int
    outputs: int
    mode: Mode = field(default_factory=Mode)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or `default` where the node does not carry it."""
        return self.attributes.get(name, default)

    def only_output(self) -> None:
        """Raise if more than the first output is used.

        Raises
        ------
        UnsupportedOperatorError
            If so.
        """
        if self.outputs > 1:
            raise UnsupportedOperatorError(f"{self.op_type} with more than one output")

    def refuse(self, **values: Sequence[Any]) -> None:
        """Raise if an attribute has a value beside those that are given.

        Raises
        ------
        UnsupportedOperatorError
            Naming attribute and value.
        """
        for name, allowed in values.items():
            value = self.attributes.get(name, allowed[0])
            if value not in allowed:
                raise UnsupportedOperatorError(f"{self.op_type} with {name} = {value}")


Builder = Callable[[Operation], Function]


@dataclass(frozen=True)
class Entry:
    """One operator of the table.

    Attributes
    ----------
    build
        Makes the function of a node.
    weights
        Operands that are weights where they are constant.
    sizes
        Operands that are read as Python numbers, such as shapes and axes; they stay in the CPU's memory.
    gradient
        Whether the output depends smoothly on floating-point operands.
    """

    build: Builder
    weights: frozenset[int] = frozenset()
    sizes: frozenset[int] = frozenset()
    gradient: bool = True


TABLE: dict[tuple[str, str], Entry] = {}
"""The operators by domain and name; the standard domain is the empty string."""


def operator(
    *names: str, weights: Sequence[int] = (), sizes: Sequence[int] = (), gradient: bool = True
) -> Callable[[Builder], Builder]:
    """Put what makes the function of a node into the table; a domain stands before its name, with a colon."""

    def register(build: Builder) -> Builder:
        for name in names:
            domain, _, op_type = name.rpartition(":")
            TABLE[domain, op_type] = Entry(build, frozenset(weights), frozenset(sizes), gradient)
        return build

    return register


def simple(name: str, function: Function, *, gradient: bool = True) -> None:
    """Put an operator without attributes into the table."""
    TABLE["", name] = Entry(lambda _operation: function, gradient=gradient)


def torch_type(element_type: int) -> Any:
    """Return the PyTorch type that an ONNX element type is computed in.

    Raises
    ------
    UnsupportedOperatorError
        If there is none.
    """
    if element_type not in _TYPES:
        raise UnsupportedOperatorError(f"the element type {TensorProto.DataType.Name(element_type)}")
    return _TYPES[element_type]


def numbers(tensor: Tensor) -> list[Any]:
    """Return the elements of a small tensor, in order."""
    return list(tensor.reshape(-1).tolist())
