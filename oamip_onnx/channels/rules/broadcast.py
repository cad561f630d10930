"""Broadcast rules: axes are aligned, labels joined index by index, size 1 passes.

Residual sums, gates, biases and batch norm need nothing else.
"""

import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import NOTHING, IntArray
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, along, node_label

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()

BINARY = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor"
).split()


@rule(UNARY, Family.BROADCAST)
def pointwise(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pass the labels of the first operand on; further operands (the bounds of Clip) are scalars."""
    del index
    labels = trace.of(node.input[0])
    for name in node.output:
        trace.set(name, labels.factors)


@rule(BINARY, Family.BROADCAST)
def broadcast(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Join the operands of a broadcast operator."""
    out = node.output[0]
    factors = join_operands(trace, list(node.input), trace.shape(out), node_label(trace, index, node))
    trace.set(out, factors)


def join_operands(trace: Trace, names: list[str], shape: tuple[int, ...], where: str) -> list[IntArray]:
    """Join the labels of operands that broadcast to `shape`; return the factors of the result."""
    rank = len(shape)
    # Activations first, so that a parameter meets labels that are already split over axes.
    names = sorted(names, key=trace.model.is_constant)
    result: list[IntArray] = []
    full_axes: set[int] = set()
    for position, name in enumerate(names):
        labels = trace.of(name)
        factors = [f.reshape((1,) * (rank - f.ndim) + f.shape) for f in labels.factors]
        own_full = {a + rank - len(labels.shape) for a, size in enumerate(labels.shape) if size > 1}
        covered = {a for f in factors for a in _axes(f)}
        fixed_here = own_full - covered
        _pin_over(trace, result, fixed_here, names[0], name, where)
        if position:
            _pin_over(trace, factors, full_axes - {a for f in result for a in _axes(f)}, name, names[0], where)
        for factor in factors:
            result = _merge(trace, result, factor, name, where, is_parameter=trace.model.is_constant(name))
        full_axes |= own_full
    return result


def _axes(factor: IntArray) -> set[int]:
    return {a for a, size in enumerate(factor.shape) if size > 1}


def _pin_over(trace: Trace, factors: list[IntArray], axes: set[int], name: str, other: str, where: str) -> None:
    """Pin factors that depend on an axis along which the other operand is full and cannot shrink."""
    for factor in factors:
        if _axes(factor) & axes:
            reason = f"{where} combines these channels with {other!r}, which cannot be narrowed along that axis."
            trace.pin(factor.ravel(), Pin(name, PinCode.FIXED_AXIS, reason))


def _merge(
    trace: Trace, result: list[IntArray], factor: IntArray, name: str, where: str, *, is_parameter: bool
) -> list[IntArray]:
    """Add one operand's factor to those of the operands before it."""
    axes = _axes(factor)
    merged = []
    absorbed = False
    for known in result:
        shared = _axes(known) & axes
        pin = Pin(name, PinCode.FIXED_AXIS, f"{where} combines these channels with some that cannot be removed.")
        if not shared:
            merged.append(known)
        elif is_parameter and axes < _axes(known):
            # A parameter along one axis of a split (heads × width) is shared by all rows: it stays whole, rows go.
            trace.pin(factor.ravel(), pin)
            row = known[tuple(slice(0, 1) if a in axes else slice(None) for a in range(known.ndim))]
            trace.join(known, row, pin)
            merged.append(row)
            absorbed = True
        else:
            trace.join(known, factor, pin)
            merged.append(known if len(_axes(known)) >= len(axes) else factor)
            absorbed = True
    return merged if absorbed else [*merged, factor]


@rule("BatchNormalization", Family.BROADCAST)
def batch_normalisation(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Join scale, bias, mean and variance with axis 1 of the data."""
    data, out = node.input[0], node.output[0]
    rank = len(trace.shape(data))
    where = node_label(trace, index, node)
    factors = list(trace.of(data).factors)
    channels = trace.of(data).factor_over(1) if rank > 1 else None
    for name in node.input[1:5]:
        parameter = trace.of(name)
        for factor in parameter.factors:
            pin = Pin(data, PinCode.FIXED_AXIS, f"{where} normalises channels of which some cannot be removed.")
            trace.join(along(factor.ravel(), 1, rank), NOTHING if channels is None else channels, pin)
        if not trace.model.is_constant(name) and channels is not None:
            trace.pin_tensor(data, PinCode.UNSUPPORTED_CASE, f"{where} takes its parameter {name!r} from the graph.")
    trace.set(out, factors)
    for extra in node.output[1:]:
        if extra and extra in trace.model.uses:
            trace.pin_tensor(data, PinCode.UNSUPPORTED_CASE, f"{where} is in training mode.")
