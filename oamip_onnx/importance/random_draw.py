"""Random scores: the baseline that every criterion must beat."""

import numpy as np

from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.scores import Scores


@criterion("random")
def random_draw(context: ImportanceContext) -> Scores:
    """Return uniform draws from [0, 1)."""
    values = np.random.default_rng(context.seed).random(context.analysis.unit_count)
    return Scores(values, "random")
