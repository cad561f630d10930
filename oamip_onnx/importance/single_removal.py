"""Single removal: the loss that the masked model takes on when a unit goes alone."""

import numpy as np

from oamip_onnx.importance.measuring import IMAGES, Responses, select_samples
from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.scores import Scores


@criterion("removal")
def single_removal(context: ImportanceContext) -> Scores:
    """Return the loss of the model without each unit, towards the original: one forward pass a unit.

    What OAMIP's response form is without its program: units do not interact.
    """
    responses = Responses(context, select_samples(context, context.oamip.images or IMAGES))
    values = np.zeros(context.analysis.unit_count)
    every = np.ones(len(values), dtype=np.bool_)
    for unit, without in enumerate(responses.around(every, np.arange(len(values)))):
        values[unit] = responses.loss(without)
        context.report("single removals", unit + 1, len(values))
    return Scores(values, "removal")
