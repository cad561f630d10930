"""What the model would cost with some units gone, counted without cutting it."""

from oamip_onnx.channels import BoolArray, ChannelAnalysis, kept_shape
from oamip_onnx.model import Costs, Model, TensorType, count_costs


def costs_of(model: Model, analysis: ChannelAnalysis, kept: BoolArray) -> Costs:
    """Return MACs and parameters of the model with only the kept units.

    Parameters
    ----------
    model, analysis
        The original and its channels.
    kept
        Whether each unit stays, shape (units,).
    """
    types = dict(analysis.types)
    for name, labels in analysis.labels.items():
        if labels.factors:
            types[name] = TensorType(kept_shape(labels, kept), types[name].element_type)
    return count_costs(model, types)
