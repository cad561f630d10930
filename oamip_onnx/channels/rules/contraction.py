"""Contraction rules: the contracted axis ends here, joined with the weight's; the output axis starts at the weight.

A grouped convolution sees its weight as (groups, out per group, in per group, …): every block keeps equally many. A
depthwise one passes its channels through.
"""

import numpy as np
import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import FIXED, NOTHING, IntArray, Labels
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, along, node_label
from oamip_onnx.model import int_attribute


def _pin_other_axes(trace: Trace, name: str, keep: set[int], where: str) -> None:
    axes = [a for a in range(len(trace.shape(name))) if a not in keep]
    trace.pin_tensor(name, PinCode.FIXED_AXIS, f"{where} slides over this axis.", axes=axes)


@rule(["Conv", "ConvTranspose"], Family.CONTRACTION)
def convolution(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Conv has the weight (out, in / group, …), ConvTranspose (in, out / group, …)."""
    data, weight, out = node.input[0], node.input[1], node.output[0]
    where = node_label(trace, index, node)
    _pin_other_axes(trace, data, {1}, where)
    channels = trace.single_axis(data, 1)
    if not trace.model.is_constant(weight):
        trace.pin_tensor(data, PinCode.UNSUPPORTED_CASE, f"{where} takes its weight from the graph.")
        trace.pin_tensor(weight, PinCode.UNSUPPORTED_CASE, f"It is the computed weight of {where}.")
        trace.set(out, [])
        return
    group = int_attribute(node, "group", 1)
    transposed = node.op_type == "ConvTranspose"
    trace.contracted.append(out)
    if group == 1:
        produced = _dense(trace, index, node, channels, where, transposed=transposed)
    elif _is_depthwise(trace.shape(weight), group, transposed=transposed):
        produced = _depthwise(trace, weight, data, channels, where)
    else:
        produced = _grouped(trace, index, node, channels, group, where, transposed=transposed)
    if produced is not None:
        if len(node.input) > 2 and node.input[2]:
            bias = trace.of(node.input[2]).factor_over(0)
            pin = Pin(out, PinCode.FIXED_AXIS, f"The bias of {where} cannot be narrowed.")
            trace.join(NOTHING if bias is None else bias, produced, pin)
        trace.set(out, [along(produced, 1, len(trace.shape(out)))])
    else:
        trace.set(out, [])


def _is_depthwise(shape: tuple[int, ...], group: int, *, transposed: bool) -> bool:
    return shape[0] == group if transposed else shape[1] == 1


def _weight_axis(trace: Trace, weight: str, axis: int) -> IntArray | None:
    """Return the labels along an axis of a weight; None where its size is 1."""
    factor = trace.of(weight).factor_over(axis)
    if factor is None:
        return None
    if sum(size > 1 for size in factor.shape) > 1:  # the weight is shared with a grouped convolution
        first = np.take(factor, [0], axis=1 - axis)
        trace.join(factor, first, Pin(weight, PinCode.UNSUPPORTED_CASE, f"The weight {weight!r} is shared."))
        return first.ravel()
    return factor.ravel()


def _dense(
    trace: Trace, index: int, node: onnx.NodeProto, channels: IntArray | None, where: str, *, transposed: bool
) -> IntArray | None:
    data, weight = node.input[0], node.input[1]
    entering, leaving = (0, 1) if transposed else (1, 0)
    consumed = _weight_axis(trace, weight, entering)
    pin = Pin(data, PinCode.FIXED_AXIS, f"{where} shares its weight with a consumer of fixed channels.")
    if consumed is not None:
        trace.join(NOTHING if channels is None else channels, consumed, pin)
    if channels is not None:
        trace.contract(index, 0, along(channels, 1, len(trace.shape(data))), 1)
    return _weight_axis(trace, weight, leaving)


def _depthwise(trace: Trace, weight: str, data: str, channels: IntArray | None, where: str) -> IntArray | None:
    shape = trace.shape(weight)
    produced = trace.of(weight).factor_over(0)
    if shape[0] == 1 or produced is None:
        return None
    # Conv: (in × multiplier, 1, …); ConvTranspose: (in, multiplier, …), its output laid out channel by channel.
    pin = Pin(data, PinCode.FIXED_AXIS, f"{where} runs over channels of which some cannot be removed.")
    labels = produced.ravel()
    if channels is None:
        trace.pin(labels, pin)
        return labels
    multiplier = len(labels) // len(channels) or 1
    if multiplier * len(channels) == len(labels) and shape[1] == 1:
        trace.join(labels.reshape(len(channels), multiplier), channels[:, None], pin)
        return labels
    trace.join(labels, channels, pin)
    return np.repeat(labels, shape[1])


def _grouped(
    trace: Trace,
    index: int,
    node: onnx.NodeProto,
    channels: IntArray | None,
    group: int,
    where: str,
    *,
    transposed: bool,
) -> IntArray | None:
    data, weight, out = node.input[0], node.input[1], node.output[0]
    shape = trace.shape(weight)
    if transposed:
        reason = f"{where} is a grouped transposed convolution."
        trace.pin_tensor(data, PinCode.UNSUPPORTED_CASE, reason, axes=[1])
        trace.pin_tensor(weight, PinCode.UNSUPPORTED_CASE, reason)
        return None
    pin = Pin(data, PinCode.FIXED_AXIS, f"{where} shares its weight with a consumer of fixed channels.")
    per_block = shape[1]
    block = np.arange(shape[0]) // (shape[0] // group)
    if channels is None:
        consumed = np.full((shape[0], per_block), FIXED, dtype=np.int64)
    else:
        consumed = channels.reshape(group, per_block)[block]
        trace.require_grid(channels.reshape(group, per_block), data)
        trace.contract(index, 0, along(channels, 1, len(trace.shape(data))), 1)
    cells = consumed.reshape(shape[:2] + (1,) * (len(shape) - 2))
    if weight in trace.labels:
        for factor in trace.labels[weight].factors:
            if factor.shape[1] > 1:
                trace.join(factor, cells, pin)
    else:
        produced = trace.fresh([shape[0]] + [1] * (len(shape) - 1))
        trace.labels[weight] = Labels(shape, (produced, cells) if channels is not None else (produced,))
    factor_out = next(f for f in trace.labels[weight].factors if f.shape[0] > 1 and f.shape[1] == 1)
    trace.require_grid(factor_out.reshape(group, -1), out)
    return factor_out.ravel()


@rule("Gemm", Family.CONTRACTION)
def gemm(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """A′B′ + C with either operand transposed."""
    left = "ki" if int_attribute(node, "transA", 0) else "ik"
    right = "jk" if int_attribute(node, "transB", 0) else "kj"
    factors = contract_operands(trace, index, node, left, right, "ij")
    if len(node.input) > 2 and node.input[2]:
        out = node.output[0]
        bias = trace.of(node.input[2])
        where = node_label(trace, index, node)
        for factor in bias.factors:
            aligned = factor.reshape((1,) * (2 - factor.ndim) + factor.shape)
            axis = next(a for a, size in enumerate(aligned.shape) if size > 1)
            known = next((f for f in factors if f.shape[axis] > 1), NOTHING)
            trace.join(aligned, known, Pin(out, PinCode.FIXED_AXIS, f"Bias of {where}."))
        for axis in (0, 1):
            offset = 2 - len(bias.shape)
            full = axis >= offset and bias.shape[axis - offset] > 1
            if full and bias.factor_over(axis - offset) is None:
                for factor in factors:
                    if factor.shape[axis] > 1:
                        trace.pin(factor.ravel(), Pin(out, PinCode.FIXED_AXIS, f"The bias of {where} cannot shrink."))
    trace.set(node.output[0], factors)


@rule("MatMul", Family.CONTRACTION)
def matmul(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Matrix product over the last two axes, the others broadcast."""
    left_rank, right_rank = (len(trace.shape(name)) for name in node.input)
    batch = "abcdefgh"[: max(left_rank, right_rank) - 2] if max(left_rank, right_rank) > 2 else ""
    left = "k" if left_rank == 1 else batch[len(batch) - (left_rank - 2) :] + "ik"
    right = "k" if right_rank == 1 else batch[len(batch) - (right_rank - 2) :] + "kj"
    out = batch + ("i" if left_rank > 1 else "") + ("j" if right_rank > 1 else "")
    trace.set(node.output[0], contract_operands(trace, index, node, left, right, out))


def contract_operands(
    trace: Trace, index: int, node: onnx.NodeProto, left: str, right: str, out: str
) -> list[IntArray]:
    """Join labels through a product whose operands' and output's axes are named by letters, as in Einsum.

    1. A factor on letters of the output passes on, joined with the other operand's on the same letters.
    2. A factor on contracted letters is joined with the other operand's and ends.
    3. A factor on both (heads × width) goes by whole rows: the output keeps the row's label.
    """
    where = node_label(trace, index, node)
    names = list(node.input[:2])
    letters = {letter: i for i, letter in enumerate(dict.fromkeys(left + right + out))}
    sizes = [1] * len(letters)
    operands: list[list[IntArray]] = []
    constant = [trace.model.is_constant(name) for name in names]
    for name, axes in zip(names, (left, right), strict=True):
        operands.append([_on_letters(f, axes, letters) for f in trace.of(name).factors])
        for axis, size in zip(axes, trace.shape(name), strict=True):
            sizes[letters[axis]] = max(sizes[letters[axis]], size)
    contracted = {letters[c] for c in left + right if c not in out}
    shared = {letters[c] for c in left if c in right}
    for mine, other in ((0, 1), (1, 0)):
        full = {letters[c] for c, s in zip((left, right)[other], trace.shape(names[other]), strict=True) if s > 1}
        uncovered = full & shared - {a for f in operands[other] for a in range(f.ndim) if f.shape[a] > 1}
        for factor in operands[mine]:
            if uncovered & _letter_axes(factor):
                reason = f"{where} multiplies these channels with {names[other]!r}, which cannot be narrowed."
                trace.pin(factor.ravel(), Pin(names[mine], PinCode.FIXED_AXIS, reason))
    pin = Pin(node.output[0], PinCode.FIXED_AXIS, f"{where} multiplies these channels with fixed ones.")
    for factor in operands[0]:
        for other_factor in operands[1]:
            if _letter_axes(factor) & _letter_axes(other_factor) & shared:
                trace.join(factor, other_factor, pin)
    _record_ends(trace, index, operands, (left, right), letters, contracted, constant)
    if any(constant):
        trace.contracted.append(node.output[0])
    return _result_factors(trace, operands, out, letters, contracted, pin)


def _letter_axes(factor: IntArray) -> set[int]:
    return {a for a, size in enumerate(factor.shape) if size > 1}


def _on_letters(factor: IntArray, axes: str, letters: dict[str, int]) -> IntArray:
    """Return a factor with one dimension per letter of the product."""
    order = sorted(range(len(axes)), key=lambda a: letters[axes[a]])
    shape = [1] * len(letters)
    for axis, letter in enumerate(axes):
        shape[letters[letter]] = factor.shape[axis]
    return np.transpose(factor, order).reshape(shape)


def _from_letters(factor: IntArray, axes: str, letters: dict[str, int]) -> IntArray:
    """Return the factor of a tensor whose axes are these letters; letters that it lacks have size 1."""
    present = [letters[c] for c in axes]
    rest = [a for a in range(factor.ndim) if a not in present]
    moved = np.transpose(factor, present + rest)
    return moved.reshape(moved.shape[: len(present)])


def _record_ends(
    trace: Trace,
    index: int,
    operands: list[list[IntArray]],
    axes: tuple[str, str],
    letters: dict[str, int],
    contracted: set[int],
    constant: list[bool],
) -> None:
    """Record where labels end: at the activation operand; at the first one where both are activations."""
    for position in (0, 1):
        if constant[position]:
            continue
        ends = [f for f in operands[position] if _letter_axes(f) & contracted]
        for factor in ends:
            weight = 1 - position if constant[1 - position] else None
            trace.contract(index, position, _from_letters(factor, axes[position], letters), weight)
        if ends:
            return


def _result_factors(
    trace: Trace,
    operands: list[list[IntArray]],
    out: str,
    letters: dict[str, int],
    contracted: set[int],
    pin: Pin,
) -> list[IntArray]:
    result: list[IntArray] = []
    for factor in [*operands[0], *operands[1]]:
        row = factor
        if _letter_axes(factor) & contracted:
            row = factor[tuple(slice(0, 1) if a in contracted else slice(None) for a in range(factor.ndim))]
            if _letter_axes(row):
                trace.join(factor, row, pin)
        if not _letter_axes(row):
            continue
        known = next((f for f in result if _letter_axes(f) & _letter_axes(row)), None)
        if known is None:
            result.append(row)
        else:
            trace.join(known, row, pin)
            if len(_letter_axes(row)) > len(_letter_axes(known)):
                result = [row if f is known else f for f in result]
    return [_from_letters(f, out, letters) for f in result]
