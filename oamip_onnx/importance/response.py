"""OAMIP in response form, in rounds and exchanges; the program is stated in `oamip_onnx.formulation.response`.

Rounds: in round t of T each group keeps n_l(t) = round(width · (planned/width)^(t/T)) units, the responses are
measured around what is left, and what is gone stays gone. Exchanges then make good what the rounds could not know: at
the planned widths, the responses of all units are measured around the subset that is left (a removed unit's when it
comes back), and the program may move units in both directions within a radius. Of the swaps that it proposes, the best
prefix is kept and single ones behind it, as far as the measured loss falls; so it only falls.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import BATCH_SIZE, Samples
from oamip_onnx.channels import BoolArray, ChannelGroup, select_units
from oamip_onnx.errors import SolverError
from oamip_onnx.formulation import Program, response_program
from oamip_onnx.importance.certificates import (
    LARGEST_QUADRATIC,
    Certificate,
    certificate,
    quadratic_program,
    quadratic_value,
)
from oamip_onnx.importance.decoupling import by_class, combined
from oamip_onnx.importance.logits import Loss, balanced_rows, loss_of
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.masking import MaskedSuffixes
from oamip_onnx.model import Array
from oamip_onnx.solvers import SolverResult

# Images of a program.
IMAGES = 200

# Differences of scores below this are the solver's tolerance.
_TIE = 1e-3

# Responses beyond this number need more memory and time than CLARABEL is worth.
_LARGEST_PROGRAM = 20_000_000

# The first exchange may move this share of the units that are alive or gone, whichever are fewer; in both directions.
_FIRST_RADIUS = 0.25

# Swaps that are tried one by one behind the best prefix of those that a program proposes.
_SINGLE_SWAPS = 24


class Responses:
    """The masked model on the samples of the program."""

    def __init__(self, context: ImportanceContext, samples: Samples) -> None:
        self._masked = MaskedSuffixes(context.model, context.analysis, context.options, context.logits)
        self._samples = samples
        self._group_of_unit = context.analysis.group_of_unit()
        every = np.ones(context.analysis.unit_count, dtype=np.bool_)
        original = self._outputs(every)
        self.loss: Loss = loss_of(original.shape, original)

    def __call__(self, alive: BoolArray) -> FloatArray:
        """Return the logits or pooled outputs with some units removed, shape (samples, numbers)."""
        return self.loss.read(self._outputs(alive))

    def around(self, alive: BoolArray, units: npt.NDArray[np.intp]) -> Iterator[FloatArray]:
        """Yield for each unit the outputs with that unit on the other side, removed or back, as `__call__` does."""
        prefixes = [self._masked.prefix(feeds, alive) for feeds in self._samples.batches(2 * BATCH_SIZE)]
        for unit in units:
            other = alive.copy()
            other[unit] = not alive[unit]
            group = int(self._group_of_unit[unit])
            yield self.loss.read(_joined([self._masked.run(group, prefix, other) for prefix in prefixes]))

    def _outputs(self, alive: BoolArray) -> Array:
        return _joined([self._masked.whole(feeds, alive) for feeds in self._samples.batches(2 * BATCH_SIZE)])


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class _Measured:
    """What a program of the response form is made of.

    Attributes
    ----------
    units
        The units that it scores, shape (scored,).
    base, changes
        q⁰, shape (samples, classes), and Δ, shape (scored, samples · classes).
    gone
        Which of the units are removed already, shape (scored,).
    owner
        Group of each, shape (scored,).
    """

    units: npt.NDArray[np.intp]
    base: FloatArray
    changes: FloatArray
    gone: BoolArray
    owner: npt.NDArray[np.int64]


def select_samples(context: ImportanceContext, count: int) -> Samples:
    """Return the samples of a program, balanced by the class that the original predicts."""
    samples = context.samples
    if count >= samples.count:
        return samples
    values = context.outputs
    classes = values.argmax(axis=1) if values.ndim == 2 else np.zeros(len(values), dtype=np.int64)
    return samples.take(balanced_rows(classes.astype(np.int64), count, context.seed))


def response_scores(context: ImportanceContext) -> Scores:
    """Return one score a unit in [0, 1]: units that stay are above 1/2, and those that went earlier rank lower.

    Raises
    ------
    SolverError
        If a program has no solution, or would be too large.
    """
    samples = select_samples(context, context.oamip.images or IMAGES)
    responses = Responses(context, samples)
    check_size(context, responses)
    if context.widths is None:
        return _penalised(context, responses)
    solves: list[SolverResult] = []
    alive, values = _rounds(context, responses, solves)
    loss = responses.loss(responses(alive))
    alive, exchanged = _exchanges(context, responses, alive, solves)
    certificates = _certificates(context, responses, alive, solves)
    kind = "cross-entropy" if responses.loss.classifies else "relative squared error"
    size = f"{samples.count} samples, {context.oamip.rounds} rounds, {exchanged} exchanges"
    note = (
        f"Response form: {size}; on these samples the masked model's {kind} to the original is "
        f"{responses.loss(responses(alive)):.4f}, after the rounds alone {loss:.4f}."
    )
    return Scores((alive + values) / 2, "oamip", "response", tuple(solves), (note,), certificates)


def _certificates(
    context: ImportanceContext, responses: Responses, alive: BoolArray, solves: list[SolverResult]
) -> tuple[Certificate, ...]:
    """Return what the program proves about the chosen subset, and, where asked for, the quadratic certificates."""
    found: list[Certificate] = []
    if context.oamip.exchanges and context.oamip.by_class == "none":
        every = np.arange(context.analysis.unit_count)
        measured = _measure(context, responses, alive, every, "response certificate")
        _scored(context, responses, measured, context.planned("response"), "response certificate", solves)
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
    measured = _measure(context, responses, full, units, "quadratic certificates")
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
            "To second order around the original, and with the other groups untouched, no choice of as many units of "
            "this group costs less than the bound."
        )
        found.append(certificate(group.name, statement, value, solution.result))
    return found


def _penalised(context: ImportanceContext, responses: Responses) -> Scores:
    """Return the scores of one program around the original, with the sparsity term in place of widths."""
    solves: list[SolverResult] = []
    alive = np.ones(context.analysis.unit_count, dtype=np.bool_)
    measured = _measure(context, responses, alive, np.flatnonzero(alive), "responses")
    values = _scored(context, responses, measured, None, "response form", solves)
    note = f"Response form: {len(measured.base)} samples, one program with λ = {context.oamip.loss_weight:g}."
    return Scores(values, "oamip", "response", tuple(solves), (note,))


def check_size(context: ImportanceContext, responses: Responses) -> None:
    """Raise if the program of the first round would be too large.

    Raises
    ------
    SolverError
        Above `_LARGEST_PROGRAM` responses.
    """
    coefficients = context.analysis.unit_count * responses.loss.targets.size
    if coefficients > _LARGEST_PROGRAM:
        raise SolverError(
            f"The response form needs {coefficients:,} responses of {context.analysis.unit_count:,} units, "
            f"more than the solver takes ({_LARGEST_PROGRAM:,}); use fewer --images, or --form layerwise."
        )


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
        measured = _measure(context, responses, alive, np.flatnonzero(alive), task)
        s = _scored(context, responses, measured, widths, task, solves)
        values[alive] = (number - 1 + s[alive]) / rounds
        # Among equal scores, those still alive go first.
        alive &= select_units(context.analysis, widths, s + 1e-6 * alive)
    return alive, values


def _exchanges(
    context: ImportanceContext, responses: Responses, alive: BoolArray, solves: list[SolverResult]
) -> tuple[BoolArray, int]:
    """Return the subset of the same widths after exchanges that lower the measured loss, and how many there were."""
    movable = 2 * min(int(alive.sum()), int((~alive).sum()))
    if not movable:
        return alive, 0
    widths = context.planned("response")
    radius = max(_FIRST_RADIUS * movable, 2.0)
    every = np.arange(context.analysis.unit_count)
    for number in range(context.oamip.exchanges):
        task = f"response exchange {number + 1}/{context.oamip.exchanges}"
        measured = _measure(context, responses, alive, every, task)
        better = alive
        while radius >= 1 and better is alive:
            # A swap moves two units.
            s = _scored(context, responses, measured, widths, task, solves, exchange=max(radius, 2.0))
            better = _accepted(responses, alive, _swaps(context, alive, s), max(int(radius / 2), 1))
            radius = radius / 2 if better is alive else radius
        if better is alive:
            return alive, number
        alive = better
    return alive, context.oamip.exchanges


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


def _round_width(group: ChannelGroup, planned: int, progress: float) -> int:
    """Return how many units a group keeps when this share of the rounds is done, the same share a round."""
    width = group.width * (planned / group.width) ** progress
    step = group.block_count
    return int(min(max(round(width / step) * step, planned), group.width))


def _measure(
    context: ImportanceContext, responses: Responses, alive: BoolArray, units: npt.NDArray[np.intp], task: str
) -> _Measured:
    """Measure around a subset what removing a unit changes, or bringing it back where it is gone."""
    base = responses(alive)
    changes = np.empty((len(units), base.size))
    for position, values in enumerate(responses.around(alive, units)):
        changes[position] = (values - base).ravel()
        context.report(task, (position + 1) / len(units))
    return _Measured(units, base, changes, ~alive[units], context.analysis.group_of_unit()[units])


def _scored(
    context: ImportanceContext,
    responses: Responses,
    measured: _Measured,
    widths: Sequence[int] | None,
    task: str,
    solves: list[SolverResult],
    exchange: float | None = None,
) -> FloatArray:
    """Solve, by class where asked for; return a score for every unit of the model, 0 for those not measured."""
    loss = responses.loss
    classes = loss.targets.argmax(axis=1) if loss.classifies else np.zeros(len(loss.targets), np.int64)
    parts = by_class(classes, context.oamip.by_class)
    weight = 1.0 if widths is not None else context.oamip.loss_weight
    programs = [_program(task, measured, loss, rows, widths, exchange, weight) for rows in parts]
    found = []
    for rows, solution in zip(parts, context.solve(programs), strict=True):
        solves.append(solution.result)
        found.append(_read(measured, loss, rows, np.clip(solution.x[: len(measured.units)], 0.0, 1.0)))
    scores = np.zeros(context.analysis.unit_count)
    scores[measured.units] = combined(found, context.oamip.by_class)
    return scores


def _program(
    task: str,
    measured: _Measured,
    loss: Loss,
    rows: npt.NDArray[np.intp],
    widths: Sequence[int] | None,
    exchange: float | None,
    loss_weight: float,
) -> Program:
    return response_program(
        task,
        measured.base[rows],
        _of_rows(measured, rows),
        loss.targets[rows],
        measured.owner,
        classifies=loss.classifies,
        widths=widths,
        gone=measured.gone,
        exchange=exchange,
        loss_weight=loss_weight,
    )


def _of_rows(measured: _Measured, rows: npt.NDArray[np.intp]) -> FloatArray:
    """Return the changes of some samples, shape (units, rows · classes)."""
    changes = measured.changes.reshape(len(measured.units), *measured.base.shape)[:, rows]
    return changes.reshape(len(measured.units), -1)


def _read(measured: _Measured, loss: Loss, rows: npt.NDArray[np.intp], s: FloatArray) -> FloatArray:
    """Return a program's scores with ties broken by what a unit is worth at the optimum."""
    changes = _of_rows(measured, rows)
    moved = np.where(measured.gone, s, 1.0 - s)
    q = (measured.base[rows].ravel() + moved @ changes).reshape(len(rows), -1)
    slope = loss.slope_of(q, loss.targets[rows]).ravel()
    # −∂loss/∂s: a unit that is alive adds −Δ as its score rises, one that is gone adds Δ.
    benefit = np.where(measured.gone, -1.0, 1.0) * (changes @ slope)
    return _ties_broken(s, benefit, measured.owner)


def _ties_broken(s: FloatArray, benefit: FloatArray, group_of_unit: npt.NDArray[np.int64]) -> FloatArray:
    """Return scores in [0, 1] that agree with s up to `_TIE`, and among equal ones rank by what a unit is worth.

    `benefit` is −∂loss/∂s_g at the optimum, shape (units,). It is what all units between 0 and 1 of a group share;
    units at 1 are worth more and units at 0 less.
    """
    low, high = np.full(group_of_unit.max() + 1, np.inf), np.full(group_of_unit.max() + 1, -np.inf)
    np.minimum.at(low, group_of_unit, benefit)
    np.maximum.at(high, group_of_unit, benefit)
    spread = np.maximum(high - low, np.finfo(np.float64).tiny)[group_of_unit]
    return np.asarray((s + _TIE * (benefit - low[group_of_unit]) / spread) / (1 + _TIE))
