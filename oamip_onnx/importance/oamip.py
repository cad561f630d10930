"""OAMIP: which form of the program a model gets.

The response form measures the network itself and chooses best, but needs a forward pass per unit and round, and its
program grows with units × samples × classes. The layer-wise form needs neither. ``auto`` estimates the response form's
cost from one measured pass; where it is affordable, both are run and the one with the smaller loss on held-out samples
is taken, after the repair where one follows: units that do well together under masks are not always those that a refit
makes most of. Elsewhere the layer-wise form is taken.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from oamip_onnx.errors import UnsupportedOperatorError, UsageError, closest
from oamip_onnx.importance.choosing import choose, with_note
from oamip_onnx.importance.joint import joint_scores
from oamip_onnx.importance.layerwise import layerwise_scores
from oamip_onnx.importance.measuring import IMAGES, Responses, select_samples
from oamip_onnx.importance.protocol import Criterion, ImportanceContext, criterion
from oamip_onnx.importance.response import penalised_scores, response_scores, response_stages
from oamip_onnx.importance.scores import Scores

FORMS: dict[str, Criterion] = {
    "response": response_scores,
    "layerwise": layerwise_scores,
    "shift": joint_scores,
    "gate": joint_scores,
}

_ESTIMATED_PASSES = 3

# What the response form may cost before `auto` leaves it: seconds in all, and coefficients of one program.
_AFFORDABLE_SECONDS = 180.0
_LARGEST_PROGRAM = 5_000_000

# Solve time of CLARABEL per coefficient of the response form's program, measured on networks of 200 to 400 units.
_SECONDS_PER_COEFFICIENT = 1e-5


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
    if context.widths is None:
        return next(without_widths(context, [context.oamip.loss_weight]))
    _check_settings(context)
    return _choose(context) if context.oamip.form == "auto" else FORMS[context.oamip.form](context)


def without_widths(context: ImportanceContext, loss_weights: Sequence[float]) -> Iterator[Scores]:
    """Yield the scores at each weight λ of the loss, with the sparsity term in place of planned widths.

    ``auto`` chooses the form once, by its cost alone.

    Raises
    ------
    UsageError
        If there is no such form, or it does not read a setting.
    UnsupportedOperatorError, SolverError
        As the form does.
    """
    context = replace(context, widths=None)
    _check_settings(context)
    form: str = context.oamip.form
    notes: tuple[str, ...] = ()
    if form == "auto":
        form = "response" if _is_affordable(*_estimate(context)) else "layerwise"
        notes = ("The form was chosen by its cost alone, since a threshold plans no widths.",)
    if form == "response":
        found: Iterator[Scores] = penalised_scores(context, loss_weights)
    else:
        weighted = (replace(context, oamip=replace(context.oamip, loss_weight=w)) for w in loss_weights)
        found = (FORMS[form](each) for each in weighted)
    for scores in found:
        yield replace(scores, notes=(*scores.notes, *notes))


def _check_settings(context: ImportanceContext) -> None:
    """Raise if there is no such form, or a setting is given that it does not read."""
    settings, form = context.oamip, context.oamip.form
    if form != "auto" and form not in FORMS:
        raise UsageError(f"OAMIP has no form {form!r}{closest(form, FORMS)}; known: auto, {', '.join(FORMS)}.")
    joint = form in {"shift", "gate"}
    # Planned widths and the authors' sum of layer means leave no term to weight.
    weighted = (form == "shift" and not settings.paper) or (form == "gate" and context.widths is None)
    reads = {
        "anchor": joint or settings.anchor is None,
        "binary_scores": joint or not settings.binary_scores,
        "reweightings": weighted or not settings.reweightings,
        "tighten_seconds": form == "gate" or not settings.tighten_seconds,
        "certificates": form in {"auto", "response"} or not settings.certificates,
    }
    for name, is_read in reads.items():
        if not is_read:
            raise UsageError(
                f"The setting {name!r} has no effect on the form {form!r} with this target and preset; leave it out, "
                "or see the page on the method for the forms that read it."
            )


def _choose(context: ImportanceContext) -> Scores:
    seconds, coefficients = _estimate(context)
    try:
        layerwise = layerwise_scores(context)
    except UnsupportedOperatorError as error:
        return with_note(response_scores(context), f"The response form gave the scores. {error}")
    if not _is_affordable(seconds, coefficients):
        reason = (
            f"The layer-wise form gave the scores: the response form would take about {seconds:.0f} s with "
            f"{coefficients:.1e} coefficients."
        )
        return with_note(layerwise, reason)
    *earlier, response = response_stages(context)
    candidates = {"the response form": response, "the layer-wise form": layerwise}
    if context.judge is not None and earlier:
        candidates = {"the response form without exchanges": earlier[0], **candidates}
    return choose(context, candidates, "forms")


def _is_affordable(seconds: float, coefficients: int) -> bool:
    return seconds <= _AFFORDABLE_SECONDS and coefficients <= _LARGEST_PROGRAM


def _estimate(context: ImportanceContext) -> tuple[float, int]:
    """Return the seconds that the response form would take, and the coefficients of its first program."""
    samples = select_samples(context, context.oamip.images or IMAGES)
    responses = Responses(context, samples)
    alive = np.ones(context.analysis.unit_count, dtype=np.bool_)
    seconds = []
    for _ in range(_ESTIMATED_PASSES):
        began = time.perf_counter()
        numbers = responses(alive).size
        seconds.append(time.perf_counter() - began)
    # The fastest: the first pass sets up, and a moment's load must not change the form.
    one_pass = min(seconds)
    # The passes and coefficients of later rounds are at most those of the first.
    units = context.analysis.unit_count
    steps = context.oamip.rounds + context.oamip.exchanges + 1  # and the certificate
    return steps * units * (one_pass + numbers * _SECONDS_PER_COEFFICIENT), units * numbers
