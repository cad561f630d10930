"""The default: OAMIP and the reconstruction, whichever the repair makes most of."""

from dataclasses import replace

from oamip_onnx.importance.choosing import choose
from oamip_onnx.importance.oamip import oamip
from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.reconstruction import reconstruction
from oamip_onnx.importance.scores import Scores


@criterion("auto")
def automatic(context: ImportanceContext) -> Scores:
    """Return OAMIP's scores or those of the reconstruction, by the loss on held-out samples after the repair.

    Without a repair, with a form that is named, or without planned widths, they are OAMIP's: the reconstruction asks
    what a refit makes of units, and for how many.

    Raises
    ------
    UsageError, UnsupportedOperatorError, SolverError
        As OAMIP does.
    """
    scores = oamip(context)
    if context.judge is None or context.widths is None or context.oamip.form != "auto":
        return scores
    candidates = {f"OAMIP in its {scores.form} form": scores, "the reconstruction": reconstruction(context)}
    # The programs were solved, whichever is taken.
    return replace(choose(context, candidates, "criteria"), solver=scores.solver)
