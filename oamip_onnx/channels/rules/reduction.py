"""Reductions and normalisations.

1. A sum, or a norm, over channels reads zeros like a contraction: labels end there.
2. Any other statistic changes when channels go. Where a statistic runs over the width of split channels (heads ×
   width, groups × channels), whole rows go.
3. Otherwise the labels are pinned, or, on request, stay and are marked inexact: the narrower model takes the statistic
   over the channels that are kept.
"""

from collections.abc import Iterable

import onnx

from oamip_onnx.channels.groups import Normalisation, Pin, PinCode
from oamip_onnx.channels.labels import IntArray, axes_of
from oamip_onnx.channels.rules.broadcast import join_parameters_along
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, node_label
from oamip_onnx.model import int_attribute, ints_attribute

# Zeros do not count in these.
SUMS = ["ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"]

OTHER_STATISTICS = ["ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd"]


def _reduced_axes(trace: Trace, node: onnx.NodeProto) -> set[int]:
    """Return the axes given as an attribute or, in newer opsets, as a constant operand."""
    rank = len(trace.shape(node.input[0]))
    axes = ints_attribute(node, "axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        values = trace.constant(node.input[1])
        axes = list(range(rank)) if values is None else [int(v) for v in values.ravel()]
    if not axes:
        axes = [] if int_attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return {a % rank for a in axes}


def _set_reduced(trace: Trace, node: onnx.NodeProto, factors: list[IntArray], reduced: set[int]) -> None:
    """Set the labels of a reduction's output; factors have size 1 along the reduced axes."""
    if not int_attribute(node, "keepdims", 1):
        rank = len(trace.shape(node.input[0]))
        rest = [a for a in range(rank) if a not in reduced]
        factors = [f.reshape([f.shape[a] for a in rest]) for f in factors]
    trace.set(node.output[0], factors)


@rule(SUMS, Family.REDUCTION)
def sum_over(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """End the labels on reduced axes; a factor that depends on others as well goes by rows."""
    data = node.input[0]
    reduced = _reduced_axes(trace, node)
    where = node_label(trace, index, node)
    passing = [f for f in trace.of(data).factors if not axes_of(f) & reduced]
    if trace.is_parameter(data):
        reason = f"{where} sums over this axis of a parameter."
        trace.pin_tensor(data, PinCode.NORMALISATION, reason, axes=reduced)
        _set_reduced(trace, node, passing, reduced)
        return
    for factor in trace.of(data).factors:
        if not axes_of(factor) & reduced:
            continue
        if trace.shrinking(factor) <= reduced:
            trace.contract(index, 0, factor, None)
        else:
            pin = Pin(data, PinCode.FIXED_AXIS, f"{where} sums over a part of these channels.")
            passing.append(trace.tie(factor, reduced, pin))
    _set_reduced(trace, node, passing, reduced)


@rule("ReduceMean", Family.REDUCTION)
def mean(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Take the mean over channels that stay, over rows, or, on request, over those that are kept."""
    reduced = _reduced_axes(trace, node)
    factors = statistic(trace, index, node, reduced, can_open=True)
    passing = [f for f in factors if not axes_of(f) & reduced]
    _set_reduced(trace, node, passing, reduced)


@rule(OTHER_STATISTICS, Family.REDUCTION)
def reduce(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Reduce over channels that stay, or over whole rows."""
    reduced = _reduced_axes(trace, node)
    factors = statistic(trace, index, node, reduced, can_open=False)
    _set_reduced(trace, node, [f for f in factors if not axes_of(f) & reduced], reduced)


@rule(["ArgMax", "ArgMin"], Family.REDUCTION)
def position_of_extremum(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Return positions along one axis, which must stay."""
    rank = len(trace.shape(node.input[0]))
    axis = int_attribute(node, "axis", 0) % rank
    factors = statistic(trace, index, node, {axis}, can_open=False)
    _set_reduced(trace, node, [f for f in factors if f.shape[axis] == 1], {axis})


@rule(["Softmax", "LogSoftmax", "Hardmax"], Family.REDUCTION, since=13)
def softmax(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise over one axis."""
    rank = len(trace.shape(node.input[0]))
    axes = {int_attribute(node, "axis", -1) % rank}
    trace.set(node.output[0], statistic(trace, index, node, axes, can_open=node.op_type == "Softmax"))


@rule(["Softmax", "LogSoftmax", "Hardmax"], Family.REDUCTION, until=12)
def flattened_softmax(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise over all axes from the given one on, as before opset 13."""
    rank = len(trace.shape(node.input[0]))
    axes = set(range(int_attribute(node, "axis", 1) % rank, rank))
    trace.set(node.output[0], statistic(trace, index, node, axes, can_open=False))


@rule("LpNormalization", Family.REDUCTION)
def lp_normalisation(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Divide by a norm along one axis: zeros do not count, the labels end there and pass as well."""
    data = node.input[0]
    axis = int_attribute(node, "axis", -1) % len(trace.shape(data))
    if trace.is_parameter(data):
        reason = f"{node_label(trace, index, node)} normalises a parameter."
        trace.pin_tensor(data, PinCode.NORMALISATION, reason, axes=[axis])
    else:
        for factor in trace.of(data).factors:
            if factor.shape[axis] > 1:
                trace.contract(index, 0, factor, None)
    trace.set(node.output[0], trace.of(data).factors)


@rule(["LayerNormalization", "RMSNormalization"], Family.REDUCTION)
def layer_normalisation(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise over all axes from the given one on; scale and bias are aligned with the last axes."""
    data, out = node.input[0], node.output[0]
    shape = trace.shape(data)
    axes = set(range(int_attribute(node, "axis", -1) % len(shape), len(shape)))
    factors = statistic(trace, index, node, axes, can_open=all(trace.is_parameter(n) for n in node.input[1:] if n))
    where = node_label(trace, index, node)
    trace.set(out, _join_parameters(trace, data, factors, node.input[1:3], where))
    for extra in node.output[1:]:
        trace.set(extra, [f for f in factors if not axes_of(f) & axes])


@rule("MeanVarianceNormalization", Family.REDUCTION)
def mean_variance(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise over the given axes; by default batch and plane, each channel by itself."""
    axes = ints_attribute(node, "axes")
    chosen = {0, 2, 3} if axes is None else {a % len(trace.shape(node.input[0])) for a in axes}
    trace.set(node.output[0], statistic(trace, index, node, chosen, can_open=False))


@rule("InstanceNormalization", Family.REDUCTION)
def instance_normalisation(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise each channel over its plane; scale and bias belong to axis 1."""
    data, out = node.input[0], node.output[0]
    rank = len(trace.shape(data))
    factors = statistic(trace, index, node, set(range(2, rank)), can_open=True)
    where = node_label(trace, index, node)
    pin = Pin(data, PinCode.FIXED_AXIS, f"{where} has parameters that cannot be narrowed.")
    join_parameters_along(trace, factors, node.input[1:3], 1, pin)
    trace.set(out, factors)


@rule("GroupNormalization", Family.REDUCTION, since=21)
def group_normalisation(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise blocks of channels: whole blocks go; with one block in all, none."""
    data, out = node.input[0], node.output[0]
    shape = trace.shape(data)
    where = node_label(trace, index, node)
    plane = range(2, len(shape))
    trace.pin_tensor(data, PinCode.FIXED_AXIS, f"{where} normalises over this axis.", axes=plane)
    factors = [f for f in trace.of(data).factors if not axes_of(f) & set(plane)]
    blocks = int_attribute(node, "num_groups", 1)
    channels = trace.single_axis(data, 1)
    if channels is not None and blocks < shape[1]:
        pin = Pin(data, PinCode.NORMALISATION, f"{where} normalises blocks of these channels.")
        rows = channels.reshape(blocks, -1)
        if blocks == 1:
            trace.pin(channels, pin)
        else:
            trace.join(rows, rows[:, :1], pin)
    pin = Pin(data, PinCode.FIXED_AXIS, f"{where} has parameters that cannot be narrowed.")
    join_parameters_along(trace, factors, node.input[1:3], 1, pin)
    trace.set(out, factors)


@rule("GroupNormalization", Family.REDUCTION, until=20)
@rule("LRN", Family.REDUCTION)
def across_channels(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Normalise over neighbouring channels, or with a scale for each block of them: the channels stay."""
    data = node.input[0]
    where = node_label(trace, index, node)
    trace.pin_tensor(data, PinCode.NORMALISATION, f"{where} normalises over neighbouring channels.", axes=[1])
    trace.set(node.output[0], [f for f in trace.of(data).factors if f.shape[1] == 1])


def statistic(trace: Trace, index: int, node: onnx.NodeProto, axes: set[int], *, can_open: bool) -> list[IntArray]:
    """Return the factors behind a statistic over some axes of the first operand, in that operand's shape.

    Rows are tied, plain channels pinned or opened on request (`Normalisation`), as the module's text says.
    """
    data = node.input[0]
    where = node_label(trace, index, node)
    passing = []
    for factor in trace.of(data).factors:
        over = axes_of(factor) & axes
        pin = Pin(data, PinCode.NORMALISATION, f"{where} takes a statistic over these channels.")
        if not over:
            passing.append(factor)
        elif trace.allow_inexact and can_open and axes_of(factor) <= axes and not trace.is_parameter(data):
            trace.normalisations.append(Normalisation(index, factor, tuple(sorted(axes))))
            passing.append(factor)
        elif axes_of(factor) - axes and trace.heads == "whole":
            passing.append(trace.tie(factor, axes, pin))
        else:
            trace.pin(factor.ravel(), pin)
    return passing


def _join_parameters(
    trace: Trace, data: str, factors: list[IntArray], names: Iterable[str], where: str
) -> list[IntArray]:
    """Join scale and bias, aligned with the last axes, with the labels there; pin what has no partner."""
    rank = len(trace.shape(data))
    pin = Pin(data, PinCode.FIXED_AXIS, f"{where} has parameters that cannot be narrowed.")
    for name in filter(None, names):
        offset = rank - len(trace.shape(name))
        for own in trace.of(name).factors:
            aligned = own.reshape((1,) * offset + own.shape)
            partners = [f for f in factors if axes_of(f) & axes_of(aligned)]
            for partner in partners:
                trace.join(aligned, partner, pin)
            if not partners:
                trace.pin(own.ravel(), Pin(name, PinCode.NORMALISATION, f"It is a parameter of {where}."))
        covered = {a + offset for f in trace.of(name).factors for a in axes_of(f)}
        full = {a + offset for a, size in enumerate(trace.shape(name)) if size > 1}
        for factor in factors:
            if axes_of(factor) & full - covered:
                trace.pin(factor.ravel(), pin)
    return factors
