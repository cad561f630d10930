"""Sizes, constants and types: what graphs compute shapes with."""

import torch
from onnx import numpy_helper

from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.training.operators.table import Function, Operation, Tensor, numbers, operator, torch_type


@operator("Shape", gradient=False)
def shape(operation: Operation) -> Function:
    """Shape, or a part of it."""
    part = slice(operation.get("start", 0), operation.get("end"))
    return lambda x: torch.tensor(x.shape[part], dtype=torch.int64)


@operator("Size", gradient=False)
def size(_operation: Operation) -> Function:
    """Size."""
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape", sizes=(0,), gradient=False)
def constant_of_shape(operation: Operation) -> Function:
    """ConstantOfShape, of zeros where no value is given."""
    filling = operation.get("value")
    value = 0.0 if filling is None else numpy_helper.to_array(filling).reshape(-1)[0].item()
    kind = torch.float32 if filling is None else torch_type(filling.data_type)
    return lambda sizes: torch.full(numbers(sizes), value, dtype=kind)


@operator("Range", sizes=(0, 1, 2), gradient=False)
def number_range(_operation: Operation) -> Function:
    """Range."""
    return lambda start, limit, step: torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


@operator("Cast")
def cast(operation: Operation) -> Function:
    """Cast; between floating-point types nothing happens."""
    kind = torch_type(operation.get("to"))
    return lambda x: x.to(kind)


@operator("CastLike")
def cast_like(_operation: Operation) -> Function:
    """CastLike."""
    return lambda x, other: x.to(other.dtype)


@operator("Identity")
def identity(_operation: Operation) -> Function:
    """Identity."""
    return lambda x: x


@operator("Dropout", sizes=(1, 2))
def dropout(operation: Operation) -> Function:
    """Dropout as in inference; the mask, where it is used, keeps everything."""
    if operation.outputs == 1:
        return lambda x, *_rest: x
    return lambda x, *_rest: (x, torch.ones_like(x, dtype=torch.bool))


@operator("NonZero", gradient=False)
def non_zero(_operation: Operation) -> Function:
    """NonZero."""
    return lambda x: torch.nonzero(x).t()


@operator("OneHot", sizes=(1, 2), gradient=False)
def one_hot(operation: Operation) -> Function:
    """OneHot."""
    axis = operation.get("axis", -1)

    def run(indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        off, on = numbers(values)
        hot = torch.nn.functional.one_hot(indices.long() % int(depth.item()), int(depth.item())).bool()
        return torch.where(hot, on, off).to(values.dtype).movedim(-1, axis)

    return run


@operator("EyeLike", gradient=False)
def eye_like(operation: Operation) -> Function:
    """EyeLike."""
    if operation.get("k", 0):
        raise UnsupportedOperatorError("EyeLike with k beside 0")
    kind = operation.get("dtype")
    return lambda x: torch.eye(*x.shape, dtype=x.dtype if kind is None else torch_type(kind), device=x.device)


@operator("Trilu", sizes=(1,))
def trilu(operation: Operation) -> Function:
    """Trilu."""
    function = torch.triu if operation.get("upper", 1) else torch.tril
    return lambda x, k=None: function(x, 0 if k is None else int(k.item()))
