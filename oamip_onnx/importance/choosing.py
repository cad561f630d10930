"""Choosing between scores by what becomes of the units that they keep, on samples that no program has seen."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from oamip_onnx.calibration import Samples
from oamip_onnx.channels import select_units
from oamip_onnx.importance.measuring import IMAGES, Responses, select_samples
from oamip_onnx.importance.protocol import ImportanceContext, Judge
from oamip_onnx.importance.scores import Scores

# Held-out samples on which candidates are compared.
_COMPARED_SAMPLES = 200


def choose(context: ImportanceContext, candidates: Mapping[str, Scores], kind: str) -> Scores:
    """Return the scores whose units lose least: after the repair where one follows, with masks alone elsewhere.

    Parameters
    ----------
    context
        What the scores are of; with planned widths.
    candidates
        Scores by their name in a sentence, such as ``the response form``.
    kind
        What they are: ``forms`` or ``criteria``.
    """
    judge, how = _judge(context)
    widths = context.planned("automatic")
    losses = {n: judge(select_units(context.analysis, widths, c.values)) for n, c in candidates.items()}
    best = min(losses, key=lambda name: losses[name])
    others = ", ".join(f"that of {name} {loss:.4f}" for name, loss in losses.items() if name != best)
    return with_note(
        candidates[best], f"Of the {kind}, {best} gave the scores: {how} its loss is {losses[best]:.4f}, {others}."
    )


def with_note(scores: Scores, reason: str) -> Scores:
    """Return the scores with one more sentence for the report."""
    return replace(scores, notes=(*scores.notes, reason))


def _judge(context: ImportanceContext) -> tuple[Judge, str]:
    """Return what the forms are compared by, and how a sentence says it: after the repair, or with masks alone."""
    if context.judge is not None:
        return context.judge, "after the repair"
    held_out = _held_out(context)
    measured = Responses(context, held_out)
    return (lambda kept: measured.loss(measured(kept))), f"with masks alone on {held_out.count} samples"


def _held_out(context: ImportanceContext) -> Samples:
    """Return samples that no program has seen, or, where all have entered, the same."""
    samples = context.samples
    if (context.oamip.images or IMAGES) >= samples.count:
        return samples
    used = select_samples(context, context.oamip.images or IMAGES)
    name = next(iter(samples.feeds))
    seen = {row.tobytes() for row in used.feeds[name]}
    rows = np.array([i for i, row in enumerate(samples.feeds[name]) if row.tobytes() not in seen], dtype=np.int64)
    return samples.take(rows[:_COMPARED_SAMPLES]) if len(rows) >= (samples.run_size or 1) else samples
