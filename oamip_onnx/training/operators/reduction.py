"""Reductions over axes, positions of extremes, running sums."""

from collections.abc import Callable

import torch

from oamip_onnx.training.operators.table import Function, Operation, Tensor, numbers, operator

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:  # noqa: FBT001 - as PyTorch's own reductions
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Reduce] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep),
}


@operator(*_REDUCTIONS, sizes=(1,))
def reduction(operation: Operation) -> Function:
    """Reduce over axes that are an attribute in older opsets and an operand in newer ones."""
    function, keep = _REDUCTIONS[operation.op_type], bool(operation.get("keepdims", 1))
    own, keeps_all = operation.get("axes"), bool(operation.get("noop_with_empty_axes", 0))

    def run(x: Tensor, axes: Tensor = None) -> Tensor:
        chosen = own if axes is None else numbers(axes)
        if not chosen:
            if keeps_all:
                return x
            chosen = list(range(x.dim()))
        return function(x, chosen, keep)

    return run


@operator("ArgMax", "ArgMin", gradient=False)
def position_of_extreme(operation: Operation) -> Function:
    """Position of the largest or smallest element: the first, or the last, of equal ones."""
    axis, keep = operation.get("axis", 0), bool(operation.get("keepdims", 1))
    function = torch.argmax if operation.op_type == "ArgMax" else torch.argmin
    if not operation.get("select_last_index", 0):
        return lambda x: function(x, axis, keepdim=keep)
    return lambda x: x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)


@operator("TopK", sizes=(1,))
def top_k(operation: Operation) -> Function:
    """TopK, with its number as an attribute before opset 10."""
    axis, count = operation.get("axis", -1), operation.get("k")
    largest, in_order = bool(operation.get("largest", 1)), bool(operation.get("sorted", 1))

    def run(x: Tensor, wanted: Tensor = None) -> tuple[Tensor, ...]:
        found = torch.topk(x, count if wanted is None else int(wanted.item()), axis, largest, in_order)
        return found.values, found.indices

    return run


@operator("CumSum", sizes=(1,))
def cumulative_sum(operation: Operation) -> Function:
    """CumSum, forwards or backwards, with or without the element itself."""
    exclusive, backwards = bool(operation.get("exclusive", 0)), bool(operation.get("reverse", 0))

    def run(x: Tensor, axis: Tensor) -> Tensor:
        along = int(axis.item())
        x = x.flip(along) if backwards else x
        y = x.cumsum(along)
        y = y - x if exclusive else y
        return y.flip(along) if backwards else y

    return run
