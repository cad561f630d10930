"""Layers with weights: convolutions, matrix products, Einsum."""

import functools
import math
from typing import Any

import torch
from torch.nn import functional

from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.training.operators.table import Function, Operation, Tensor, operator

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def plane_padding(pads: list[int]) -> list[int]:
    """Return ONNX's begins and ends of all axes as PyTorch's pairs, last axis first."""
    rank = len(pads) // 2
    return [side for axis in reversed(range(rank)) for side in (pads[axis], pads[axis + rank])]


def same_pads(
    sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int], auto_pad: str
) -> list[int]:
    """Return the pads that make a plane's output its size divided by the stride, rounded up."""
    begins, ends = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        whole = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        less, more = whole // 2, whole - whole // 2
        begins.append(more if auto_pad == "SAME_LOWER" else less)
        ends.append(less if auto_pad == "SAME_LOWER" else more)
    return begins + ends


@operator("Conv", "com.microsoft:FusedConv", weights=(1, 2))
def conv(operation: Operation) -> Function:
    """Conv, and ONNX Runtime's fusion of it with an activation."""
    group, auto_pad, pads = operation.get("group", 1), operation.get("auto_pad", "NOTSET"), operation.get("pads")
    strides, dilations = operation.get("strides"), operation.get("dilations")
    activation = _fused_activation(operation)
    symmetric = pads is None or pads[: len(pads) // 2] == pads[len(pads) // 2 :]

    def run(x: Tensor, weight: Tensor, bias: Tensor = None, added: Tensor = None) -> Tensor:
        rank = x.dim() - 2
        stride, dilation, padding = strides or [1] * rank, dilations or [1] * rank, [0] * rank
        if auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
            sides = same_pads(list(x.shape[2:]), list(weight.shape[2:]), stride, dilation, auto_pad)
            x = functional.pad(x, plane_padding(sides))
        elif pads and auto_pad == "NOTSET":
            if symmetric:
                padding = pads[:rank]
            else:
                x = functional.pad(x, plane_padding(pads))
        y = _CONVOLUTIONS[rank](x, weight, bias, stride, padding, dilation, group)
        y = y if added is None else y + added
        return y if activation is None else activation(y)

    return run


def _fused_activation(operation: Operation) -> Function | None:
    name, parameters = operation.get("activation"), operation.get("activation_params", [])
    if name is None:
        return None
    if name in {"Relu", "Tanh", "Sigmoid"}:
        return {"Relu": functional.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid}[name]  # type: ignore[no-any-return] # torch is not typed here
    if name == "LeakyRelu":
        return functools.partial(functional.leaky_relu, negative_slope=parameters[0])
    raise UnsupportedOperatorError(f"FusedConv with activation = {name}")


@operator("ConvTranspose", weights=(1, 2))
def conv_transpose(operation: Operation) -> Function:
    """ConvTranspose: everything is computed, and the pads are cut off where they differ between the sides."""
    operation.refuse(auto_pad=("NOTSET", "VALID"))
    group, pads = operation.get("group", 1), operation.get("pads")
    strides, dilations = operation.get("strides"), operation.get("dilations")
    extra, wanted = operation.get("output_padding"), operation.get("output_shape")
    if wanted is not None:
        raise UnsupportedOperatorError("ConvTranspose with output_shape")

    def run(x: Tensor, weight: Tensor, bias: Tensor = None) -> Tensor:
        rank = x.dim() - 2
        stride, dilation, more = strides or [1] * rank, dilations or [1] * rank, extra or [0] * rank
        sides = pads or [0] * (2 * rank)
        if sides[:rank] == sides[rank:]:
            return _TRANSPOSED[rank](x, weight, bias, stride, sides[:rank], more, group, dilation)
        y = _TRANSPOSED[rank](x, weight, bias, stride, 0, more, group, dilation)
        return functional.pad(y, plane_padding([-side for side in sides]))

    return run


@operator("Gemm", weights=(0, 1, 2))
def gemm(operation: Operation) -> Function:
    """Gemm: alpha·A·B + beta·C."""
    alpha, beta = operation.get("alpha", 1.0), operation.get("beta", 1.0)
    trans_a, trans_b = operation.get("transA", 0), operation.get("transB", 0)
    plain = alpha == 1 and beta == 1 and not trans_a and trans_b

    def run(a: Tensor, b: Tensor, c: Tensor = None) -> Tensor:
        if plain and (c is None or c.dim() == 1):
            return functional.linear(a, b, c)
        y = torch.matmul(a.t() if trans_a else a, b.t() if trans_b else b)
        y = y if alpha == 1 else alpha * y
        return y if c is None else y + (c if beta == 1 else beta * c)

    return run


@operator("MatMul", weights=(0, 1))
def matmul(_operation: Operation) -> Function:
    """MatMul."""
    return torch.matmul  # type: ignore[no-any-return] # torch is not typed here


@operator("com.microsoft:FusedMatMul", weights=(0, 1))
def fused_matmul(operation: Operation) -> Function:
    """ONNX Runtime's product of transposed operands with a factor."""
    operation.refuse(transBatchA=(0,), transBatchB=(0,))
    alpha, trans_a, trans_b = (
        operation.get(name, value) for name, value in (("alpha", 1.0), ("transA", 0), ("transB", 0))
    )

    def run(a: Tensor, b: Tensor) -> Tensor:
        return alpha * torch.matmul(a.transpose(-1, -2) if trans_a else a, b.transpose(-1, -2) if trans_b else b)

    return run


@operator("Einsum", weights=(0, 1, 2, 3))
def einsum(operation: Operation) -> Function:
    """Einsum."""
    equation = operation.get("equation").replace(" ", "")
    return lambda *operands: torch.einsum(equation, *operands)


@operator("Attention")
def attention(operation: Operation) -> Function:
    """Attention of the standard domain, without a cache of past keys."""
    operation.refuse(qk_matmul_output_mode=(0,))
    operation.only_output()
    scale, softcap, causal = operation.get("scale"), operation.get("softcap", 0.0), operation.get("is_causal", 0)
    heads = operation.get("q_num_heads"), operation.get("kv_num_heads")
    if operation.operands > 4:
        raise UnsupportedOperatorError("Attention with past keys")

    def split(x: Tensor, count: int | None) -> Tensor:
        return x if x.dim() == 4 else x.unflatten(-1, (count, -1)).transpose(1, 2)

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor = None) -> Tensor:
        joined = q.dim() == 3
        q, k, v = split(q, heads[0]), split(k, heads[1]), split(v, heads[1])
        repeats = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (k, v))
        factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        scores = torch.matmul(q * factor, k.transpose(-1, -2))
        if causal:
            ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(ahead, -math.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        y = torch.matmul(torch.softmax(scores, -1), v)
        return y.transpose(1, 2).flatten(2) if joined else y

    return run


@operator("RotaryEmbedding")
def rotary_embedding(operation: Operation) -> Function:
    """RotaryEmbedding of the standard domain."""
    interleaved, count = operation.get("interleaved", 0), operation.get("num_heads", 0)
    width = operation.get("rotary_embedding_dim", 0)

    def run(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor = None) -> Tensor:
        joined = x.dim() == 3
        heads = x.unflatten(-1, (count, -1)) if joined else x.transpose(1, 2)
        turned = width or heads.shape[-1]
        if positions is not None:
            cos, sin = cos[positions], sin[positions]
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        front, rest = heads[..., :turned], heads[..., turned:]
        a, b = (front[..., ::2], front[..., 1::2]) if interleaved else front.chunk(2, -1)
        real, imaginary = cos * a - sin * b, sin * a + cos * b
        front = torch.stack((real, imaginary), -1).flatten(-2) if interleaved else torch.cat((real, imaginary), -1)
        y = torch.cat((front, rest), -1)
        return y.flatten(2) if joined else y.transpose(1, 2)

    return run


def windows(x: Any, kernel: int) -> Any:
    """Return the sums of `kernel` neighbours along axis 1 of a padded tensor."""
    return x.unfold(1, kernel, 1).sum(-1)
