"""Attention, with heads of its own or fused."""

import numpy as np
import onnx

from graphs.builder import Builder, graph


@graph
def attention_heads() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])

    def heads(order: list[int]) -> str:
        x = b.add("Add", b.add("MatMul", "x", b.weight(10, 12)), b.weight(12))
        return b.add("Transpose", b.add("Reshape", x, b.constant(np.array([0, -1, 4, 3]))), perm=order)

    scores = b.add("MatMul", heads([0, 2, 1, 3]), heads([0, 2, 3, 1]))
    mixed = b.add("MatMul", b.add("Softmax", scores, axis=-1), heads([0, 2, 1, 3]))
    joined = b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant(np.array([0, 0, 12])))
    return b.finish(b.add("MatMul", joined, b.weight(12, 6)))


def _softmax_attention(b: Builder, q: str, k: str, v: str) -> str:
    """Return the mixed values of (batch, heads, tokens, width) operands, in the same layout."""
    scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 1, 3, 2]))
    return b.add("MatMul", b.add("Softmax", b.add("Mul", scores, b.constant(np.float32(0.5))), axis=-1), v)


@graph
def attention_fused_qkv() -> onnx.ModelProto:
    """One matrix makes queries, keys and values; a bias for every pair of tokens differs from head to head."""
    b = Builder(["N", 7, 10])
    x = b.add("Add", b.add("MatMul", "x", b.weight(10, 36)), b.weight(36))
    x = b.add("Reshape", x, b.constant(np.array([0, 7, 3, 4, 3])))
    x = b.add("Transpose", x, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.add("Gather", x, b.constant(np.array(i)), axis=0) for i in range(3))
    scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = b.add("Add", scores, b.weight(4, 7, 7, scale=0.5))
    mixed = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
    joined = b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant(np.array([0, 0, 12])))
    return b.finish(b.add("MatMul", joined, b.weight(12, 6)))


@graph
def attention_batch_beside_heads() -> onnx.ModelProto:
    """As the fused attention of training frameworks is exported: batch · heads on one axis, computed."""
    b = Builder([7, "N", 12])
    batch = b.add("Gather", b.add("Shape", "x"), b.constant(np.array(1)), axis=0)
    rows = b.add("Unsqueeze", b.add("Mul", batch, b.constant(np.array(4))), b.constant(np.array([0])))
    target = b.add("Concat", b.constant(np.array([7])), rows, b.constant(np.array([3])), axis=0)

    def heads() -> str:
        x = b.add("Add", b.add("MatMul", "x", b.weight(12, 12)), b.weight(12))
        return b.add("Transpose", b.add("Reshape", x, target), perm=[1, 0, 2])

    scores = b.add("MatMul", heads(), b.add("Transpose", heads(), perm=[0, 2, 1]))
    mixed = b.add("MatMul", b.add("Softmax", scores, axis=-1), heads())
    shape = b.add(
        "Concat",
        b.constant(np.array([7])),
        b.add("Unsqueeze", batch, b.constant(np.array([0]))),
        b.constant(np.array([12])),
        axis=0,
    )
    joined = b.add("Reshape", b.add("Transpose", mixed, perm=[1, 0, 2]), shape)
    return b.finish(b.add("MatMul", joined, b.weight(12, 6)))


@graph
def attention_normalised_heads() -> onnx.ModelProto:
    """Queries and keys are normalised within each head: whole heads go all the same."""
    b = Builder(["N", 7, 10])

    def heads(*, normalised: bool) -> str:
        x = b.add("MatMul", "x", b.weight(10, 12))
        x = b.add("Transpose", b.add("Reshape", x, b.constant(np.array([0, 7, 4, 3]))), perm=[0, 2, 1, 3])
        return b.add("LayerNormalization", x, b.positive(3), b.weight(3), axis=-1) if normalised else x

    mixed = _softmax_attention(b, heads(normalised=True), heads(normalised=True), heads(normalised=False))
    joined = b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant(np.array([0, 0, 12])))
    return b.finish(b.add("MatMul", joined, b.weight(12, 6)))


@graph
def attention_operator() -> onnx.ModelProto:
    b = Builder(["N", 7, 10], opset=23)
    q, k, v = (b.add("MatMul", "x", b.weight(10, 12)) for _ in range(3))
    return b.finish(b.add("MatMul", b.add("Attention", q, k, v, q_num_heads=4, kv_num_heads=4), b.weight(12, 6)))


@graph
def attention_operator_shared_keys() -> onnx.ModelProto:
    b = Builder(["N", 7, 10], opset=23)
    q = b.add("MatMul", "x", b.weight(10, 24))
    k, v = (b.add("MatMul", "x", b.weight(10, 12)) for _ in range(2))
    return b.finish(b.add("MatMul", b.add("Attention", q, k, v, q_num_heads=8, kv_num_heads=4), b.weight(24, 6)))


@graph
def attention_operator_split_heads() -> onnx.ModelProto:
    b = Builder(["N", 7, 10], opset=23)

    def heads() -> str:
        x = b.add("Reshape", b.add("MatMul", "x", b.weight(10, 12)), b.constant(np.array([0, 7, 4, 3])))
        return b.add("Transpose", x, perm=[0, 2, 1, 3])

    q, k = (heads() for _ in range(2))
    mixed = b.add("Attention", q, k, heads())
    joined = b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant(np.array([0, 0, 12])))
    return b.finish(b.add("MatMul", joined, b.weight(12, 6)))


@graph
def feed_forward_with_residual() -> onnx.ModelProto:
    b = Builder(["N", 7, 10])
    x = b.add("LayerNormalization", "x", b.positive(10), b.weight(10), axis=-1)
    x = b.add("Add", b.add("MatMul", x, b.weight(10, 16)), b.weight(16))
    x = b.add("Mul", x, b.add("Sigmoid", x))
    return b.finish(b.add("Add", "x", b.add("MatMul", x, b.weight(16, 10))))
