"""Which units stay, given how many and how important each is."""

from collections.abc import Sequence

import numpy as np

from oamip_onnx.channels.groups import ChannelAnalysis
from oamip_onnx.channels.labels import BoolArray


def select_units(
    analysis: ChannelAnalysis, widths: Sequence[int], scores: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> BoolArray:
    """Return which units stay: in each group the highest scores, equally many a block; ties go to the lower number.

    Parameters
    ----------
    analysis
        The groups.
    widths
        Kept units per group.
    scores
        Importance per unit, shape (units,), finite.
    """
    if scores.shape != (analysis.unit_count,) or not bool(np.isfinite(scores).all()):
        raise ValueError(f"The scores must be {analysis.unit_count} finite numbers.")
    kept = np.zeros(analysis.unit_count, dtype=np.bool_)
    for group, width in zip(analysis.groups, widths, strict=True):
        own = np.zeros(group.width, dtype=np.bool_)
        values = scores[group.units]
        for members in group.members():
            order = np.argsort(-values[members], kind="stable")
            own[members[order[: width // group.block_count]]] = True
        kept[group.units] = own
    return kept
