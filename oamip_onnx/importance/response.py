"""OAMIP in response form, in rounds and exchanges; the program is stated in `oamip_onnx.formulation.response`.

Rounds: in round t of T each group keeps n_l(t) = round(width · (planned/width)^(t/T)) units, the responses are
measured around what is left, and what is gone stays gone. Exchanges then make good what the rounds could not know: at
the planned widths, the responses of all units are measured around the subset that is left (a removed unit's when it
comes back), and the program may move units in both directions within a radius. Of the swaps that it proposes, the best
prefix is kept and single ones behind it, as far as the measured loss falls; so it only falls.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from oamip_onnx.channels import BoolArray, ChannelGroup, select_units
from oamip_onnx.importance.certificates import (
    LARGEST_QUADRATIC,
    Certificate,
    certificate,
    quadratic_program,
    quadratic_value,
)
from oamip_onnx.importance.exchange import exchanges
from oamip_onnx.importance.measuring import IMAGES, Measured, Responses, check_size, measure, select_samples
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.importance.solving import scored
from oamip_onnx.solvers import SolverResult


def response_scores(context: ImportanceContext) -> Scores:
    """Return one score a unit in [0, 1]: units that stay are at 2/3 or above, and those that went earlier rank lower.

    Raises
    ------
    SolverError
        If a program has no solution, or would be too large.
    """
    return response_stages(context)[-1]


def response_stages(context: ImportanceContext) -> list[Scores]:
    """Return the scores after the rounds and after the exchanges; one entry where there are no exchanges.

    Raises
    ------
    SolverError
        If a program has no solution, or would be too large.
    """
    if context.widths is None:
        return list(penalised_scores(context, [context.oamip.loss_weight]))
    responses = _responses(context)
    solves: list[SolverResult] = []
    alive, values = _rounds(context, responses, solves)
    first = replace(_scores(context, responses, alive, values, 0), solver=tuple(solves))
    if not context.oamip.exchanges:
        certificates = _certificates(context, responses, alive, None, solves)
        return [replace(first, solver=tuple(solves), certificates=certificates)]
    alive, exchanged, measured = exchanges(context, responses, alive, solves)
    certificates = _certificates(context, responses, alive, measured, solves)
    second = _scores(context, responses, alive, values, exchanged)
    return [first, replace(second, solver=tuple(solves), certificates=certificates)]


def _scores(
    context: ImportanceContext, responses: Responses, alive: BoolArray, values: FloatArray, exchanged: int
) -> Scores:
    kind = "cross-entropy" if responses.loss.classifies else "relative squared error"
    size = f"{len(responses.loss.targets)} samples, {context.oamip.rounds} rounds, {exchanged} exchanges"
    loss = responses.loss(responses(alive))
    note = f"Response form: {size}; on these samples the masked model's {kind} to the original is {loss:.4f}."
    return Scores((2 * alive + values) / 3, "oamip", "response", notes=(note,))


def _certificates(
    context: ImportanceContext,
    responses: Responses,
    alive: BoolArray,
    measured: Measured | None,
    solves: list[SolverResult],
) -> tuple[Certificate, ...]:
    """Return what the program proves about the chosen subset, and, where asked for, the quadratic certificates."""
    found: list[Certificate] = []
    if context.oamip.exchanges and context.oamip.by_class == "none":
        if measured is None:
            every = np.arange(context.analysis.unit_count)
            measured = measure(context, responses, alive, every, "response certificate")
        scored(context, responses, measured, context.planned("response"), "response certificate", solves)
        statement = (
            "With the responses measured around the chosen subset, no subset of these widths has a loss below the "
            "bound in the program's model of the network, which adds responses up."
        )
        offset = responses.loss.entropy if responses.loss.classifies else 0.0
        value = responses.loss(measured.base)
        found.append(certificate("chosen subset", statement, value, solves[-1], offset))
    if context.oamip.certificates and responses.loss.classifies:
        found += _quadratic(context, responses, alive, solves)
    return tuple(found)


def _quadratic(
    context: ImportanceContext, responses: Responses, alive: BoolArray, solves: list[SolverResult]
) -> list[Certificate]:
    """Return the quadratic certificate of each group of at most 64 units that loses some, by SCIP."""
    groups = [g for g in context.analysis.groups if g.width <= LARGEST_QUADRATIC and not alive[g.units].all()]
    full = np.ones(context.analysis.unit_count, dtype=np.bool_)
    units = np.flatnonzero(
        np.isin(context.analysis.group_of_unit(), [context.analysis.groups.index(g) for g in groups])
    )
    measured = measure(context, responses, full, units, "quadratic certificates")
    targets = responses.loss.targets
    changes = {g.name: measured.changes[np.isin(units, np.arange(g.units.start, g.units.stop))] for g in groups}
    shaped = {name: values.reshape(len(values), *targets.shape) for name, values in changes.items()}
    programs = [
        quadratic_program(f"quadratic {g.name}", shaped[g.name], targets, int((~alive[g.units]).sum())) for g in groups
    ]
    found = []
    for group, solution in zip(groups, context.solve(programs), strict=True):
        solves.append(solution.result)
        value = quadratic_value(shaped[group.name], targets, ~alive[group.units])
        statement = (
            "In the quadratic model of the loss around the original, which adds responses up, and with the other "
            "groups untouched, no choice of as many units of this group costs less than the bound."
        )
        found.append(certificate(group.name, statement, value, solution.result))
    return found


def penalised_scores(context: ImportanceContext, loss_weights: Sequence[float]) -> Iterator[Scores]:
    """Yield the scores of one program around the original for each λ, with the sparsity term in place of widths.

    The responses are measured once: they do not depend on λ.

    Raises
    ------
    SolverError
        If a program has no solution, or would be too large.
    """
    responses = _responses(context)
    alive = np.ones(context.analysis.unit_count, dtype=np.bool_)
    measured = measure(context, responses, alive, np.flatnonzero(alive), "responses")
    for weight in loss_weights:
        weighted = replace(context, widths=None, oamip=replace(context.oamip, loss_weight=weight))
        solves: list[SolverResult] = []
        values, expected = scored(weighted, responses, measured, None, "response form", solves)
        note = f"Response form: {len(measured.base)} samples, one program with λ = {weight:g}."
        yield Scores(values, "oamip", "response", tuple(solves), (note,), expected_loss=expected)


def _responses(context: ImportanceContext) -> Responses:
    responses = Responses(context, select_samples(context, context.oamip.images or IMAGES))
    check_size(context, responses)
    return responses


def _rounds(
    context: ImportanceContext, responses: Responses, solves: list[SolverResult]
) -> tuple[BoolArray, FloatArray]:
    """Return what is left after the rounds, and (rounds survived + s) / T of every unit."""
    rounds = context.oamip.rounds
    planned = list(zip(context.analysis.groups, context.planned("response"), strict=True))
    alive = np.ones(context.analysis.unit_count, dtype=np.bool_)
    values = np.zeros(context.analysis.unit_count)
    for number in range(1, rounds + 1):
        widths = [_round_width(group, width, number / rounds) for group, width in planned]
        task = f"response round {number}/{rounds}"
        if not alive.any():
            break
        measured = measure(context, responses, alive, np.flatnonzero(alive), task)
        s, _ = scored(context, responses, measured, widths, task, solves)
        values[alive] = (number - 1 + s[alive]) / rounds
        # Among equal scores, those still alive go first.
        alive &= select_units(context.analysis, widths, s + 1e-6 * alive)
    return alive, values


def _round_width(group: ChannelGroup, planned: int, progress: float) -> int:
    """Return how many units a group keeps when this share of the rounds is done.

    The same share of what is left goes in every round; of a group that vanishes, the same number of units.
    """
    share = (planned / group.width) ** progress if planned else 1.0 - progress
    width = group.width * share
    step = group.block_count
    return int(min(max(round(width / step) * step, planned), group.width))
