"""The fused Attention operator: whole heads go, of queries, keys and values together."""

import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import FIXED, IntArray, axes_of
from oamip_onnx.channels.rules.pinned import pin_all
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, along, node_label
from oamip_onnx.model import int_attribute

_QUERY, _KEY, _VALUE = 0, 1, 2


@rule("Attention", Family.CONTRACTION, since=23)
def attention(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pass heads of (batch, heads, sequence, width) or (batch, sequence, heads · width) operands.

    Each head works by itself, so that heads pass like channels. Where several query heads share one of keys and values
    they go together. Masks with a head axis, caches, and the width of a head stay.
    """
    where = node_label(trace, index, node)
    rank = len(trace.shape(node.input[_QUERY]))
    heads = _head_counts(trace, node, rank)
    if trace.heads != "whole" or [n for n in node.input[4:6] if n] or [n for n in node.output[1:] if n]:
        pin_all(trace, node, PinCode.UNSUPPORTED_CASE, f"{where} has a cache, or its heads are pruned by dimension.")
        return
    pin = Pin(node.input[_QUERY], PinCode.FIXED_AXIS, f"{where} has heads of which some cannot be removed.")
    rows = [_head_labels(trace, node.input[i], heads[i], where) for i in (_QUERY, _KEY, _VALUE)]
    if any(row is None for row in rows):
        for row in rows:
            if row is not None:
                trace.pin(row, pin)
        trace.set(node.output[0], [])
        return
    query, key, value = (row for row in rows if row is not None)
    trace.join(key, value, pin)
    trace.join(query.reshape(len(key), -1), key[:, None], pin)
    mask = node.input[3] if len(node.input) > 3 else ""
    if mask:
        for factor in trace.of(mask).factors:
            if len(trace.shape(mask)) == 4 and axes_of(factor) == {1}:
                trace.join(factor.ravel(), query, pin)
            else:
                trace.pin(factor.ravel(), Pin(mask, PinCode.FIXED_AXIS, f"It is the mask of {where}."))
        if len(trace.shape(mask)) == 4 and trace.shape(mask)[1] > 1 and trace.of(mask).factor_over(1) is None:
            trace.pin(query, pin)
    out = trace.shape(node.output[0])
    width = 1 if rank == 4 else out[2] // len(query)
    labels = along(query, 1, 4) if rank == 4 else along(query.repeat(width), 2, 3)
    trace.set(node.output[0], [labels])


def _head_counts(trace: Trace, node: onnx.NodeProto, rank: int) -> tuple[int, int, int]:
    if rank == 4:
        query, key, value = (trace.shape(node.input[i])[1] for i in (_QUERY, _KEY, _VALUE))
        return query, key, value
    shared = int_attribute(node, "kv_num_heads", 1)
    return int_attribute(node, "q_num_heads", 1), shared, shared


def _head_labels(trace: Trace, name: str, heads: int, where: str) -> IntArray | None:
    """Return one label a head, the cells of a head tied; None where nothing can go."""
    rank = len(trace.shape(name))
    axis = 1 if rank == 4 else 2
    pin = Pin(name, PinCode.FIXED_AXIS, f"{where} works along this axis.")
    found = None
    for factor in trace.of(name).factors:
        if factor.shape[axis] == 1:
            trace.pin(factor.ravel(), pin)
            continue
        factor = trace.tie(factor, axes_of(factor) - {axis}, pin)  # noqa: PLW2901 - the tied one takes its place
        cells = factor.ravel().reshape(heads, -1)
        trace.join(cells, cells[:, :1], pin)
        found = cells[:, 0]
    return None if found is None or bool((found == FIXED).all()) else found
