"""Refitting the consumers of removed channels in closed form, in network order.

For one contraction let X be the features that now reach it, with a column of ones behind them, and Y what the original
model computed there. The refit is

    W = argmin ‖X·W − Y‖² + ρ·m·‖W − W₀‖²  =  (XᵀX + ρ·m·D)⁻¹ (XᵀY + ρ·m·D·W₀),

with W₀ the weights as cut, m the mean diagonal of XᵀX, and D the identity without the ones column, which is not
pulled. ρ is the one with the smallest error on held-out samples; W is then solved on all of them. The bias repair
changes the last row alone, b += mean(Y − X·W₀), the least-squares optimal bias.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from oamip_onnx.calibration import BATCH_SIZE, ActivationStream, Gram, Samples, accumulate_gram, draw_rows
from oamip_onnx.model import Array
from oamip_onnx.repair.context import (
    HELD_OUT_SHARE,
    POSITIONS_PER_SAMPLE,
    Consumer,
    RepairContext,
    Repaired,
    RepairStep,
    find_consumers,
    initializer_array,
    kept_outputs,
    with_initializers,
)

FloatArray = npt.NDArray[np.float64]

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def repair_least_squares(context: RepairContext) -> Repaired:
    """Return the model with every consumer's weights and bias refit to what the original computed there."""
    return _repair(context, RIDGES)


def repair_bias(context: RepairContext) -> Repaired:
    """Return the model with every consumer's bias shifted by the mean of what it lost."""
    return _repair(context, ())


def _repair(context: RepairContext, ridges: Sequence[float]) -> Repaired:
    consumers, steps = find_consumers(context)
    fit, held_out = context.samples.split(HELD_OUT_SHARE)
    updates: dict[str, Array] = {}
    proto = context.cut
    for consumer in consumers:
        grams = [_gram(context, consumer, proto, part) for part in (fit, held_out)]
        step, changed = _refit(context, consumer, proto, grams, ridges)
        steps.append(step)
        if changed:
            updates |= changed
            proto = with_initializers(proto, changed)
    return Repaired(proto, updates, tuple(steps))


def _gram(context: RepairContext, consumer: Consumer, proto: onnx.ModelProto, samples: Samples) -> Gram:
    now = ActivationStream(proto, [consumer.data], context.options)
    original = ActivationStream(context.model.proto, [consumer.out], context.options)

    limit = (samples.run_size or min(BATCH_SIZE, samples.count)) * POSITIONS_PER_SAMPLE
    generator = np.random.default_rng(context.seed)

    def pairs() -> Iterator[tuple[Array, Array]]:
        for new, old in zip(now.batches(samples), original.batches(samples), strict=True):
            targets = consumer.layout.targets(kept_outputs(context, consumer, old[consumer.out]))
            chosen = draw_rows(len(targets), limit, generator)
            yield consumer.layout.rows(new[consumer.data], chosen), targets[chosen]

    return accumulate_gram(pairs())


def _refit(
    context: RepairContext, consumer: Consumer, proto: onnx.ModelProto, grams: Sequence[Gram], ridges: Sequence[float]
) -> tuple[RepairStep, dict[str, Array]]:
    """Return the best of the candidates on held-out samples, the old weights among them."""
    fit, held_out = grams
    weight = initializer_array(proto, consumer.weight)
    bias = None if consumer.bias is None else initializer_array(proto, consumer.bias)
    old = np.zeros_like(fit.cross)
    old[:-1] = consumer.layout.matrix(weight.astype(np.float64))
    if bias is not None:
        old[-1] = bias
    candidates: list[tuple[float | None, FloatArray]] = [(None, old)]
    if bias is not None:
        candidates.append((None, _shifted(fit, old)))
    for candidate in ridges:
        solved = _candidate(fit, old, candidate, with_bias=bias is not None)
        if solved is not None:
            candidates.append((candidate, solved))
    errors = [held_out.error(matrix) for _, matrix in candidates]
    best = int(np.argmin(errors))
    scale = max(float(held_out.energy.sum()) / max(held_out.rows, 1), np.finfo(np.float64).tiny)
    name = context.model.node_name(consumer.index)
    if best == 0:
        reason = "Left as it is: no refit was better on held-out samples."
        return RepairStep(name, errors[0] / scale, errors[0] / scale, None, reason), {}
    ridge = candidates[best][0]
    # The choice is made; the solution itself may use all samples.
    matrix = _candidate(fit + held_out, old, ridge, with_bias=bias is not None)
    if matrix is None:
        matrix = candidates[best][1]
    changed: dict[str, Array] = {}
    if ridge is not None:
        changed[consumer.weight] = consumer.layout.weight(matrix[:-1], weight)
    if bias is not None and consumer.bias is not None:
        changed[consumer.bias] = matrix[-1].astype(bias.dtype)
    return RepairStep(name, errors[0] / scale, errors[best] / scale, ridge), changed


def _candidate(gram: Gram, old: FloatArray, ridge: float | None, *, with_bias: bool) -> FloatArray | None:
    """Return the refit with a ridge, or the shifted bias without one; None where there is no solution."""
    return _shifted(gram, old) if ridge is None else _solve(gram, old, ridge, with_bias=with_bias)


def _shifted(gram: Gram, old: FloatArray) -> FloatArray:
    # The last row of XᵀX and XᵀY holds sums over rows: their difference under the old weights is the lost mean.
    shifted = old.copy()
    shifted[-1] += (gram.cross[-1] - gram.features[-1] @ old) / max(gram.rows, 1)
    return shifted


def _solve(gram: Gram, old: FloatArray, ridge: float, *, with_bias: bool) -> FloatArray | None:
    """Return the ridge solution, or None where the normal equations are singular."""
    size = len(old) if with_bias else len(old) - 1
    diagonal = np.diag(gram.features)[:-1]
    pull = np.zeros(size)
    pull[: len(old) - 1] = ridge * max(float(diagonal.mean()), np.finfo(np.float64).tiny)
    matrix = gram.features[:size, :size] + np.diag(pull)
    right = gram.cross[:size] + pull[:, None] * old[:size]
    try:
        solution = cho_solve(cho_factor(matrix), right)
    except LinAlgError:
        return None
    result = old.copy()
    result[:size] = solution
    return result if bool(np.isfinite(result).all()) else None
