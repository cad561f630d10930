"""OAMIP: which form of the program a model gets.

The response form measures the network itself and chooses best, but needs a forward pass per unit and round, and its
program grows with units × samples × classes. The layer-wise form needs neither. ``auto`` estimates the response form's
cost from one measured pass; where it is affordable, both are run and the one with the smaller loss on held-out samples
is taken; elsewhere the layer-wise form is.
"""

import time

import numpy as np

from oamip_onnx.calibration import Samples
from oamip_onnx.channels import select_units
from oamip_onnx.errors import UnsupportedOperatorError, UsageError, closest
from oamip_onnx.importance.layerwise import layerwise_scores
from oamip_onnx.importance.protocol import Criterion, ImportanceContext, criterion
from oamip_onnx.importance.response import ROUNDS, Responses, response_scores, select_samples
from oamip_onnx.importance.scores import Scores
from oamip_onnx.importance.shift import shift_scores

FORMS: dict[str, Criterion] = {"response": response_scores, "shift": shift_scores, "layerwise": layerwise_scores}

# What the response form may cost before `auto` leaves it: seconds in all, and coefficients of one program.
_AFFORDABLE_SECONDS = 180.0
_LARGEST_PROGRAM = 5_000_000

# Solve time of CLARABEL per coefficient of the response form's program, measured on networks of 200 to 400 units.
_SECONDS_PER_COEFFICIENT = 1e-5

# Held-out samples on which the forms are compared.
_COMPARED_SAMPLES = 200


@criterion("oamip")
def oamip(context: ImportanceContext) -> Scores:
    """Return the scores of the form that the context names, or of the one that `auto` chooses.

    Raises
    ------
    UsageError
        If there is no such form.
    UnsupportedOperatorError, SolverError
        As the form does.
    """
    if context.form == "auto":
        return _choose(context)
    if context.form not in FORMS:
        raise UsageError(
            f"OAMIP has no form {context.form!r}{closest(context.form, FORMS)}; known: auto, {', '.join(FORMS)}."
        )
    return FORMS[context.form](context)


def _choose(context: ImportanceContext) -> Scores:
    seconds, coefficients = _estimate(context)
    try:
        layerwise = layerwise_scores(context)
    except UnsupportedOperatorError as error:
        return _with_notes(response_scores(context), f"The response form was chosen. {error}")
    if seconds > _AFFORDABLE_SECONDS or coefficients > _LARGEST_PROGRAM:
        reason = (
            f"The layer-wise form was chosen: the response form would take about {seconds:.0f} s with "
            f"{coefficients:.1e} coefficients."
        )
        return _with_notes(layerwise, reason)
    response = response_scores(context)
    held_out = _held_out(context)
    measured = Responses(context, held_out)
    losses = []
    for candidate in (response, layerwise):
        kept = select_units(context.analysis, context.widths, candidate.values)
        losses.append(measured.loss(measured(kept)))
    chosen, other = (response, layerwise) if losses[0] <= losses[1] else (layerwise, response)
    reason = (
        f"The {chosen.form} form was chosen: with masks alone its loss on {held_out.count} samples is "
        f"{min(losses):.4f}, that of the {other.form} form {max(losses):.4f}."
    )
    return _with_notes(chosen, reason)


def _with_notes(scores: Scores, reason: str) -> Scores:
    return Scores(scores.values, scores.criterion, scores.form, scores.solver, (*scores.notes, reason))


def _estimate(context: ImportanceContext) -> tuple[float, int]:
    """Return the seconds that the response form would take, and the coefficients of its first program."""
    samples = select_samples(context, context.images)
    responses = Responses(context, samples)
    alive = np.ones(context.analysis.unit_count, dtype=np.bool_)
    began = time.perf_counter()
    numbers = responses(alive).size
    one_pass = time.perf_counter() - began
    # The passes and coefficients of later rounds are at most those of the first.
    units = context.analysis.unit_count
    return ROUNDS * units * (one_pass + numbers * _SECONDS_PER_COEFFICIENT), units * numbers


def _held_out(context: ImportanceContext) -> Samples:
    """Return samples that no program has seen, or, where all have entered, the same."""
    samples = context.samples
    if context.images >= samples.count:
        return samples
    used = select_samples(context, context.images)
    name = next(iter(samples.feeds))
    seen = {row.tobytes() for row in used.feeds[name]}
    rows = np.array([i for i, row in enumerate(samples.feeds[name]) if row.tobytes() not in seen], dtype=np.int64)
    return samples.take(rows[:_COMPARED_SAMPLES]) if len(rows) >= (samples.run_size or 1) else samples
