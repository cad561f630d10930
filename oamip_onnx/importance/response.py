"""OAMIP in response form: the network's own responses in place of encoded layers.

Measure once, by forward passes, the change Δ_{g,i} of sample i's logits when unit g alone is removed. With the
original's probabilities p_i as soft labels and q⁰_i the logits now, solve

    min 1/n Σ_i [log Σ_c exp q_ic − p_iᵀ q_i],    q_i = q⁰_i + Σ_g (1 − s_g) Δ_{g,i},
    0 ≤ s ≤ 1,    Σ_{g∈l} s_g = k_l.

This is OAMIP's objective under simultaneous removal: convex, joint over all layers, for any graph, without an operator
to encode. It is exact for one unit; units interact through the loss and through rounds: in round t of T each group
keeps n_l(t) = round(width · (planned/width)^(t/T)) units, the responses are measured around what is left, and what is
gone stays gone. Models that do not classify take the squared error to the original's outputs instead.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.calibration import BATCH_SIZE, Samples
from oamip_onnx.channels import BoolArray, ChannelGroup, select_units
from oamip_onnx.errors import SolverError
from oamip_onnx.formulation.objective import add_group_widths, add_logits, add_marginal_softmax
from oamip_onnx.formulation.program import Program, ProgramBuilder
from oamip_onnx.importance.logits import Loss, balanced_rows, loss_of
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.masking import MaskedSession
from oamip_onnx.solvers import ConicSolver, SolverResult

ROUNDS = 4

# Differences of scores below this are the solver's tolerance.
_TIE = 1e-3

# Responses beyond this number need more memory and time than CLARABEL is worth.
_LARGEST_PROGRAM = 20_000_000


class Responses:
    """The masked model on the samples of the program."""

    def __init__(self, context: ImportanceContext, samples: Samples) -> None:
        self._session = MaskedSession(context.model, context.analysis, context.options, [context.logits])
        self._logits = context.logits
        self._samples = samples
        original = self._raw(np.ones(context.analysis.unit_count, dtype=np.bool_))
        self.loss: Loss = loss_of(original.shape, original)

    def _raw(self, alive: BoolArray) -> npt.NDArray[np.generic]:
        parts = [self._session.run(feeds, alive)[self._logits] for feeds in self._samples.batches(2 * BATCH_SIZE)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __call__(self, alive: BoolArray) -> FloatArray:
        """Return the logits or pooled outputs with some units removed, shape (samples, numbers)."""
        return self.loss.read(self._raw(alive))


def select_samples(context: ImportanceContext, count: int) -> Samples:
    """Return the samples of a program, balanced by the class that the original predicts."""
    samples = context.samples
    if count >= samples.count:
        return samples
    values = context.outputs
    classes = values.argmax(axis=1) if values.ndim == 2 else np.zeros(len(values), dtype=np.int64)
    return samples.take(balanced_rows(classes.astype(np.int64), count, context.seed))


def response_scores(context: ImportanceContext, rounds: int = ROUNDS) -> Scores:
    """Return (rounds survived + s) / T for every unit: what stays to the end ranks above what went before.

    More rounds follow the interaction of units more closely: twice as many keep more accuracy with masks alone, and
    hardly more after a least-squares repair, at twice the cost.

    Raises
    ------
    SolverError
        If a round's program has no solution, or would be too large.
    """
    planned = list(zip(context.analysis.groups, context.widths, strict=True))
    samples = select_samples(context, context.images)
    responses = Responses(context, samples)
    coefficients = context.analysis.unit_count * responses.loss.targets.size
    if coefficients > _LARGEST_PROGRAM:
        raise SolverError(
            f"The response form needs {coefficients:,} responses of {context.analysis.unit_count:,} units, "
            f"more than the solver takes ({_LARGEST_PROGRAM:,}); use fewer --images, or --form layerwise."
        )
    alive = np.ones(context.analysis.unit_count, dtype=np.bool_)
    values = np.zeros(context.analysis.unit_count)
    solves: list[SolverResult] = []
    for number in range(1, rounds + 1):
        widths = [_round_width(group, width, number / rounds) for group, width in planned]
        s, result = _round(context, responses, alive, widths, (number, rounds))
        solves.append(result)
        values[alive] = (number - 1 + s[alive]) / rounds
        # Among equal scores, those still alive go first.
        alive &= select_units(context.analysis, widths, s + 1e-6 * alive)
    loss = responses.loss(responses(alive))
    kind = "cross-entropy" if responses.loss.classifies else "relative squared error"
    size = f"{samples.count} samples, {rounds} rounds"
    note = f"Response form: {size}; on these samples the masked model's {kind} to the original is {loss:.4f}."
    return Scores(values, "oamip", "response", tuple(solves), (note,))


def _round_width(group: ChannelGroup, planned: int, progress: float) -> int:
    """Return how many units a group keeps when this share of the rounds is done, the same share a round."""
    width = group.width * (planned / group.width) ** progress
    step = group.block_count
    return int(min(max(round(width / step) * step, planned), group.width))


def _round(
    context: ImportanceContext, responses: Responses, alive: BoolArray, widths: Sequence[int], number: tuple[int, int]
) -> tuple[FloatArray, SolverResult]:
    """Measure the responses around what is alive and solve; return a score for every unit, 0 for what is gone."""
    base = responses(alive)
    units = np.flatnonzero(alive)
    changes = np.empty((len(units), base.size))
    for position, unit in enumerate(units):
        without = alive.copy()
        without[unit] = False
        changes[position] = (responses(without) - base).ravel()
        context.report(f"response round {number[0]}/{number[1]}", (position + 1) / len(units))
    owner = context.analysis.group_of_unit()[units]
    task = f"response round {number[0]}"
    solution = ConicSolver().solve(response_program(task, base, changes, responses.loss, owner, widths))
    found = np.clip(solution.x[: len(units)], 0.0, 1.0)
    q = (base.ravel() + (1 - found) @ changes).reshape(base.shape)
    s = np.zeros(len(alive))
    s[units] = _ties_broken(found, changes @ responses.loss.slope(q).ravel(), owner)
    return s, solution.result


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


def response_program(
    task: str,
    base: FloatArray,
    changes: FloatArray,
    loss: Loss,
    group_of_unit: npt.NDArray[np.int64],
    widths: Sequence[int],
) -> Program:
    """Return the program of one round; its first variables are the scores.

    Parameters
    ----------
    task
        Name for reports.
    base
        q⁰, shape (samples, classes).
    changes
        Δ, shape (units, samples · classes).
    loss
        The original's probabilities, or its outputs for the squared error.
    group_of_unit
        Group of each unit, shape (units,).
    widths
        Units that each group keeps.
    """
    builder = ProgramBuilder(task)
    scores = builder.variables("scores", len(changes), 0.0, 1.0)
    add_group_widths(builder, scores, group_of_unit, widths)
    # q = q⁰ + Σ (1 − s) Δ = (q⁰ + Σ Δ) − Δᵀ s
    matrix = sparse.csr_array(-changes.T)
    constant = base.ravel() + changes.sum(axis=0)
    if loss.classifies:
        logits = add_logits(builder, matrix, constant)
        add_marginal_softmax(builder, logits, loss.targets, 1.0)
    else:
        scale = 1 / np.sqrt(max(float(loss.targets.var()), np.finfo(np.float64).tiny) * base.size)
        builder.squares(sparse.csr_array(matrix * scale), scale * (loss.targets.ravel() - constant))
    return builder.build()
