"""The default: the reconstruction where weights are refit after it, and OAMIP elsewhere."""

from dataclasses import replace

from oamip_onnx.importance.choosing import choose
from oamip_onnx.importance.oamip import oamip
from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.readers import find_readers
from oamip_onnx.importance.reconstruction import reconstruction
from oamip_onnx.importance.scores import Scores


@criterion("auto")
def automatic(context: ImportanceContext) -> Scores:
    """Return the scores of the reconstruction where it sees every group and weights are refit, else OAMIP's.

    Where some groups are read by no layer that has a closed form, or the repair does not refit, both are made, and the
    one that loses less after the repair is taken. Without a repair, with a form that is named, or without planned
    widths, the scores are OAMIP's: the reconstruction asks what a refit makes of units, and for how many.

    Raises
    ------
    UsageError, UnsupportedOperatorError, SolverError
        As OAMIP does.
    """
    if context.judge is None or context.widths is None or context.oamip.form != "auto":
        return oamip(context)
    if context.refits and _sees_every_group(context):
        return reconstruction(context)
    scores = oamip(context)
    candidates = {f"OAMIP in its {scores.form} form": scores, "the reconstruction": reconstruction(context)}
    # The programs were solved, whichever is taken.
    return replace(choose(context, candidates, "criteria"), solver=scores.solver)


def _sees_every_group(context: ImportanceContext) -> bool:
    """Return whether every group is read by a layer that is refit in closed form."""
    readers, _ = find_readers(context)
    owners = context.analysis.group_of_unit()
    seen = {int(owners[unit]) for reader in readers for unit in reader.unit_of if unit >= 0}
    return len(seen) == len(context.analysis.groups)
