"""Operators that work on each channel's plane: channels pass, labels on the plane's axes are pinned."""

import onnx

from oamip_onnx.channels.groups import PinCode
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.rules.shape_values import check_target
from oamip_onnx.channels.trace import Trace, node_label

# The operand of Resize that names the output's sizes.
_SIZES = 3


@rule(
    ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"],
    Family.REDUCTION,
)
def pooling(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pool over axes 2 and up."""
    data = node.input[0]
    where = node_label(trace, index, node)
    plane = range(2, len(trace.shape(data)))
    trace.pin_tensor(data, PinCode.FIXED_AXIS, f"{where} pools over this axis.", axes=plane)
    factors = [f for f in trace.of(data).factors if all(f.shape[a] == 1 for a in plane)]
    trace.set(node.output[0], factors)
    if len(node.output) > 1 and node.output[1] in trace.model.uses:
        reason = f"{where} also returns positions in the whole tensor, which removal would shift."
        trace.pin_tensor(data, PinCode.UNSUPPORTED_CASE, reason)


@rule(["Resize", "Upsample"], Family.MOVEMENT)
def resize(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pass the axes whose size stays; surgery rewrites their entries in `sizes`."""
    data, out = node.input[0], node.output[0]
    before, after = trace.shape(data), trace.shape(out)
    where = node_label(trace, index, node)
    changed = [a for a, (b, c) in enumerate(zip(before, after, strict=True)) if b != c]
    trace.pin_tensor(data, PinCode.FIXED_AXIS, f"{where} interpolates along this axis.", axes=changed)
    trace.set(out, [f for f in trace.of(data).factors if all(f.shape[a] == 1 for a in changed)])
    # Computed scales hold for whatever number of channels: what they change is pinned above.
    if len(node.input) > _SIZES and node.input[_SIZES] and 0 not in trace.shape(node.input[_SIZES]):
        check_target(trace, index, node, _SIZES)
