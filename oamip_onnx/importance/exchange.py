"""Exchanges: at the planned widths, units come back and others go in their place, as far as the measured loss falls."""

import numpy as np

from oamip_onnx.channels import BoolArray
from oamip_onnx.importance.measuring import Measured, Responses, measure
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.importance.solving import scored
from oamip_onnx.solvers import SolverResult

# The first exchange may move this share of the units that are alive or gone, whichever are fewer; in both directions.
_FIRST_RADIUS = 0.25

# A swap moves two units.
_SWAP = 2.0

# Swaps that are tried one by one behind the best prefix of those that a program proposes.
_SINGLE_SWAPS = 24


def exchanges(
    context: ImportanceContext, responses: Responses, alive: BoolArray, solves: list[SolverResult]
) -> tuple[BoolArray, int, Measured | None]:
    """Exchange units as long as the measured loss falls.

    Returns
    -------
    alive
        The subset of the same widths, shape (units,).
    exchanged
        How many exchanges there were.
    measured
        The responses around that subset, where the last exchange has measured them in vain.
    """
    movable = 2 * min(int(alive.sum()), int((~alive).sum()))
    if not movable:
        return alive, 0, None
    widths = context.planned("response")
    radius = max(_FIRST_RADIUS * movable, _SWAP)
    every = np.arange(context.analysis.unit_count)
    for number in range(context.oamip.exchanges):
        task = f"response exchange {number + 1}/{context.oamip.exchanges}"
        measured = measure(context, responses, alive, every, task)
        better = alive
        while radius >= _SWAP and better is alive:
            s, _ = scored(context, responses, measured, widths, task, solves, exchange=radius)
            better = _accepted(responses, alive, _swaps(context, alive, s), int(radius / _SWAP))
            radius = radius / 2 if better is alive else radius
        if better is alive:
            return alive, number, measured
        alive = better
    return alive, context.oamip.exchanges, None


def _swaps(context: ImportanceContext, alive: BoolArray, s: FloatArray) -> list[tuple[int, int]]:
    """Return pairs of (a removed unit, one that is alive), of one block each, the most wanted first.

    In every block the removed unit with the highest score meets the one alive with the lowest, and so on; pairs are
    ranked by what they gain in score.
    """
    pairs = []
    for group in context.analysis.groups:
        for members in group.members():
            units = members + group.first_unit
            gone, kept = units[~alive[units]], units[alive[units]]
            best = gone[np.argsort(-s[gone], kind="stable")]
            worst = kept[np.argsort(s[kept], kind="stable")]
            pairs += [(float(s[i] - s[o]), int(i), int(o)) for i, o in zip(best, worst, strict=False)]
    pairs.sort(key=lambda pair: -pair[0])
    return [(i, o) for _, i, o in pairs]


def _accepted(responses: Responses, alive: BoolArray, swaps: list[tuple[int, int]], most: int) -> BoolArray:
    """Return the subset after the swaps that lower the measured loss: the best prefix, then single ones behind it."""
    best, lowest, taken = alive, responses.loss(responses(alive)), 0
    size = min(most, len(swaps))
    while size:
        candidate = _swapped(alive, swaps[:size])
        loss = responses.loss(responses(candidate))
        if loss < lowest:
            best, lowest, taken = candidate, loss, size
        size //= 2
    for swap in swaps[taken : taken + _SINGLE_SWAPS]:
        candidate = _swapped(best, [swap])
        loss = responses.loss(responses(candidate))
        if loss < lowest:
            best, lowest = candidate, loss
    return best


def _swapped(alive: BoolArray, swaps: list[tuple[int, int]]) -> BoolArray:
    result = alive.copy()
    for back, out in swaps:
        result[back], result[out] = True, False
    return result
