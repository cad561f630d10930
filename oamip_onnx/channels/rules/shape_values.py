"""Shape values: which element of a computed shape counts which channels, and whether a target holds after removal.

The elements of a Shape output carry the axis that they measure, as long as they only move until they reach the target
of a Reshape or the like. Sizes that do not depend on a dynamic dimension are constants by now (`model/sizes.py`).
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from oamip_onnx.channels.groups import Pin, PinCode, TargetElement
from oamip_onnx.channels.labels import FIXED, IntArray
from oamip_onnx.channels.trace import Sizes, Trace, along, node_label
from oamip_onnx.model import Array, int_attribute


def check_target(trace: Trace, index: int, node: onnx.NodeProto, operand: int) -> None:
    """See that a computed operand that names the output's sizes holds after removal: replace elements, or pin.

    1. An element that counts the very channels on its axis is computed anew by the narrower model.
    2. An element that is the same whatever the dynamic dimensions are is replaced by the new size.
    3. One other element of a Reshape may become -1.
    4. What is left pins.
    """
    target, out = node.input[operand], node.output[0]
    if trace.model.is_constant(target):
        return
    labels = trace.of(out)
    rank = len(labels.shape)
    known, sizes = trace.known.get(target), trace.sizes.get(target)
    where = node_label(trace, index, node)
    length = trace.shape(target)[0]
    fixed = np.zeros(length, dtype=np.bool_) if known is None else known.known
    values = np.zeros(length, dtype=np.int64) if known is None else np.where(fixed, known.values, 0)
    infers = node.op_type == "Reshape" and not bool((values[fixed] == -1).any())
    for element in range(length):
        axis = element + rank - length
        there = labels.factor_over(axis)
        number = FIXED if sizes is None else int(sizes.measured.ravel()[element])
        if number == FIXED and (there is None or (fixed[element] and _holds(node, int(values[element])))):
            continue
        counted = None if sizes is None or number == FIXED else sizes.factors[number]
        if counted is not None and there is not None and np.array_equal(there.ravel(), counted.ravel()):
            continue
        if fixed[element]:
            trace.targets.append(TargetElement(index, operand, element, axis, False, number != FIXED))
        elif infers:
            infers = False
            trace.targets.append(TargetElement(index, operand, element, axis, True, number != FIXED))
        else:
            pin = Pin(out, PinCode.SHAPE_VALUE, f"{where} computes its sizes from these channels or from the data.")
            for held in (there, counted):
                if held is not None:
                    trace.pin(held.ravel(), pin)


def _holds(node: onnx.NodeProto, value: int) -> bool:
    """Return whether an element adapts by itself: -1 is inferred, and 1 expands nothing."""
    return value == -1 or (node.op_type == "Expand" and value == 1)


def copies(trace: Trace, target: str, shape: tuple[int, ...], long: Sequence[int] = ()) -> list[IntArray]:
    """Return labels for axes whose cells are copies of each other: fresh ones, or those that the target counts."""
    values = trace.constant(target)
    known, sizes = trace.known.get(target), trace.sizes.get(target)
    factors = []
    offset = len(shape) - trace.shape(target)[0]
    for axis, size in enumerate(shape):
        if size == 1 or axis < offset or axis in long:
            continue
        element = axis - offset
        number = FIXED if sizes is None else int(sizes.measured.ravel()[element])
        if sizes is not None and number != FIXED:
            if sizes.factors[number].size == size:
                factors.append(along(sizes.factors[number].ravel(), axis, len(shape)))
        elif values is not None or (known is not None and known.known.ravel()[element]):
            factors.append(along(trace.fresh((size,)), axis, len(shape)))
    return factors


def moves_sizes(trace: Trace, node: onnx.NodeProto, move: Callable[[IntArray], Array] | None) -> bool:
    """Carry measured sizes through a movement; return whether the operand holds any."""
    data = node.input[0]
    if data not in trace.sizes:
        return False
    sizes = trace.sizes[data]
    if len(node.output) > 1 or move is None:
        for factor in sizes.factors:
            trace.pin(factor.ravel(), Pin(data, PinCode.SHAPE_VALUE, "The number of channels is split from a shape."))
        for name in node.output:
            trace.set(name, [])
        return True
    (out,) = node.output
    # Shifted by one, as labels are, so that padding comes back as FIXED.
    trace.sizes[out] = Sizes(np.asarray(move(sizes.measured + 1), dtype=np.int64) - 1, sizes.factors)
    trace.set(out, [])
    return True


def concat_sizes(trace: Trace, node: onnx.NodeProto) -> bool:
    """Lay measured sizes beside others, which measure nothing."""
    if not any(name in trace.sizes for name in node.input):
        return False
    measured = []
    factors: tuple[IntArray, ...] = ()
    for name in node.input:
        sizes = trace.sizes.get(name)
        if sizes is None:
            sizes = Sizes(np.full(trace.shape(name), FIXED, dtype=np.int64), ())
        measured.append(np.where(sizes.measured == FIXED, FIXED, sizes.measured + len(factors)))
        factors += sizes.factors
    out, axis = node.output[0], int_attribute(node, "axis", 0)
    trace.sizes[out] = Sizes(np.concatenate(measured, axis=axis), factors)
    trace.set(out, [])
    return True


def select_sizes(trace: Trace, node: onnx.NodeProto) -> bool:
    """Follow measured sizes through a Where that replaces some of them by constants; return whether it did."""
    if node.op_type != "Where" or node.domain or node.input[2] not in trace.sizes:
        return False
    condition, chosen = trace.constant(node.input[0]), trace.constant(node.input[1])
    if condition is None or chosen is None:
        return False
    sizes = trace.sizes[node.input[2]]
    trace.sizes[node.output[0]] = Sizes(np.where(condition, FIXED, sizes.measured), sizes.factors)
    trace.set(node.output[0], [])
    return True
