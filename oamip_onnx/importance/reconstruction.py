"""Group optimal brain surgery: units whose layers behind them can best be refit without them.

A unit's cost is what the error of the layers that read it rises by (`surgeon.py`, equation 1), each relative to the
energy of the layer's output about its mean. Units go one after the other, the cheapest first, until the planned width
is reached; then pairs are exchanged while that lowers the sum of errors.
"""

import numpy as np

from oamip_onnx.importance.elimination import Elimination
from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.readers import LARGEST_READER, ReaderStates, find_readers
from oamip_onnx.importance.scores import Scores


@criterion("reconstruction")
def reconstruction(context: ImportanceContext) -> Scores:
    """Return the order in which units go when each time the one goes whose readers are best refit without it.

    Units that stay at the planned width score between ½ and 1, by what their removal would cost; those that go score
    below ½, the later the higher.
    """
    widths = context.planned("reconstruction")
    readers, skipped = find_readers(context)
    states = ReaderStates(context, readers)
    values = np.zeros(context.analysis.unit_count)
    # Backwards: a layer that reads several groups is in memory until the first of them is done.
    for number in reversed(range(len(widths))):
        group, own = context.analysis.groups[number], states.of(number)
        values[group.units] = Elimination(group, own).ranking(widths[number])
        context.report("reconstruction", context.analysis.unit_count - group.first_unit, context.analysis.unit_count)
    notes = []
    if skipped:
        notes.append(
            f"{len(skipped)} layers have no closed form or more than {LARGEST_READER:,} features and do not count in "
            f"the reconstruction error, {skipped[0]!r} among them."
        )
    return Scores(values, "reconstruction", notes=tuple(notes))
