"""Broadcast rules: axes are aligned, labels joined index by index, size 1 passes.

Residual sums, gates, biases and batch norm need nothing else.
"""

import math
from collections.abc import Iterable

import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import NOTHING, IntArray, axes_of
from oamip_onnx.channels.rules.pinned import pin_all
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, along, node_label
from oamip_onnx.model import int_attribute

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor "
    "Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()

BINARY = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual "
    "Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor"
).split()


# ONNX Runtime's own names for activations, written by its optimiser and its exporters.
UNARY_MICROSOFT = ["FastGelu", "Gelu", "QuickGelu"]


@rule(UNARY, Family.BROADCAST)
@rule(UNARY_MICROSOFT, Family.BROADCAST, domain="com.microsoft")
def pointwise(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pass the labels of the first operand on; further operands (the bounds of Clip) are scalars."""
    del index
    labels = trace.of(node.input[0])
    for name in node.output:
        trace.set(name, labels.factors)


@rule(BINARY, Family.BROADCAST)
@rule("BiasGelu", Family.BROADCAST, domain="com.microsoft")
def broadcast(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Join the operands of a broadcast operator."""
    out = node.output[0]
    factors = join_operands(trace, list(node.input), trace.shape(out), node_label(trace, index, node))
    trace.set(out, factors)


def join_operands(trace: Trace, names: list[str], shape: tuple[int, ...], where: str) -> list[IntArray]:
    """Join the labels of operands that broadcast to `shape`; return the factors of the result."""
    rank = len(shape)
    # Activations first, so that a parameter meets labels that are already split over axes.
    names = sorted(names, key=trace.is_parameter)
    result: list[IntArray] = []
    full_axes: set[int] = set()
    for position, name in enumerate(names):
        labels = trace.of(name)
        factors = [f.reshape((1,) * (rank - f.ndim) + f.shape) for f in labels.factors]
        own_full = {a + rank - len(labels.shape) for a, size in enumerate(labels.shape) if size > 1}
        covered = {a for f in factors for a in axes_of(f)}
        known_axes = {a for f in result for a in axes_of(f)}
        result = _free_of(trace, result, own_full - covered, names[0], name, where)
        if position:
            factors = _free_of(trace, factors, full_axes - known_axes, name, names[0], where)
        for factor in factors:
            result = _merge(trace, result, factor, name, where, is_parameter=trace.is_parameter(name))
        full_axes |= own_full
    return result


def _free_of(
    trace: Trace, factors: list[IntArray], axes: set[int], name: str, other: str, where: str
) -> list[IntArray]:
    """Pin factors that depend on an axis along which the other operand is full and cannot shrink; return the rest.

    A factor over other axes as well goes by whole rows instead.
    """
    free = []
    for factor in factors:
        held = trace.shrinking(factor) & axes
        reason = f"{where} combines these channels with {other!r}, which cannot be narrowed along that axis."
        pin = Pin(name, PinCode.FIXED_AXIS, reason)
        if not held:
            free.append(factor)
        elif axes_of(factor) - held and trace.heads == "whole":
            free.append(trace.tie(factor, held, pin))
        else:
            trace.pin(factor.ravel(), pin)
    return free


def _merge(
    trace: Trace, result: list[IntArray], factor: IntArray, name: str, where: str, *, is_parameter: bool
) -> list[IntArray]:
    """Add one operand's factor to those of the operands before it."""
    axes = axes_of(factor)
    merged = []
    absorbed = False
    for known in result:
        shared = axes_of(known) & axes
        pin = Pin(name, PinCode.FIXED_AXIS, f"{where} combines these channels with some that cannot be removed.")
        if not shared or not (trace.shrinking(known) | trace.shrinking(factor)) & shared:
            merged.append(known)
        elif is_parameter and axes < axes_of(known) and trace.heads == "whole":
            if max(axes_of(known)) in axes:
                # A parameter along the width of a split (heads × width) is shared by all rows: it stays, rows go.
                trace.pin(factor.ravel(), pin)
                merged.append(trace.tie(known, axes, pin))
            else:
                row = trace.tie(known, axes_of(known) - axes, pin)
                trace.join(row, factor, pin)
                merged.append(row)
            absorbed = True
        else:
            trace.join(known, factor, pin)
            merged.append(known if len(axes_of(known)) >= len(axes) else factor)
            absorbed = True
    return merged if absorbed else [*merged, factor]


@rule(["QuantizeLinear", "DequantizeLinear"], Family.BROADCAST)
def quantise(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Join scales and zero points, one a channel or one in all, with the data's axis."""
    data, scale, out = node.input[0], node.input[1], node.output[0]
    rank = len(trace.shape(data))
    where = node_label(trace, index, node)
    if int_attribute(node, "block_size", 0) or len(trace.shape(scale)) > 1:
        pin_all(trace, node, PinCode.UNSUPPORTED_CASE, f"{where} quantises in blocks.")
        return
    factors = trace.of(data).factors
    if math.prod(trace.shape(scale)) > 1:
        axis = int_attribute(node, "axis", 1) % rank
        pin = Pin(data, PinCode.FIXED_AXIS, f"{where} has scales that cannot be narrowed.")
        join_parameters_along(trace, factors, node.input[1:3], axis, pin)
    trace.set(out, factors)


def join_parameters_along(trace: Trace, factors: Iterable[IntArray], names: Iterable[str], axis: int, pin: Pin) -> None:
    """Join vectors with one value a cell of an axis with the labels there; a side without labels pins the other."""
    partner = next((f for f in factors if f.shape[axis] > 1), NOTHING)
    for name in filter(None, names):
        own = trace.of(name).factor_over(0)
        if own is not None:
            trace.join(along(own.ravel(), axis, max(partner.ndim, axis + 1)), partner, pin)
        elif math.prod(trace.shape(name)) > 1:
            trace.pin(partner.ravel(), pin)


@rule("BatchNormalization", Family.BROADCAST)
def batch_normalisation(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Join scale, bias, mean and variance with axis 1 of the data."""
    data, out = node.input[0], node.output[0]
    rank = len(trace.shape(data))
    where = node_label(trace, index, node)
    factors = trace.of(data).factors
    if rank > 1:
        pin = Pin(data, PinCode.FIXED_AXIS, f"{where} normalises channels of which some cannot be removed.")
        join_parameters_along(trace, factors, node.input[1:5], 1, pin)
    computed = [name for name in node.input[1:5] if not trace.is_parameter(name)]
    if computed and rank > 1 and trace.of(data).factor_over(1) is not None:
        trace.pin_tensor(data, PinCode.UNSUPPORTED_CASE, f"{where} takes its parameter {computed[0]!r} from the graph.")
    trace.set(out, factors)
    for extra in node.output[1:]:
        if extra and extra in trace.model.uses:
            trace.pin_tensor(data, PinCode.UNSUPPORTED_CASE, f"{where} is in training mode.")
