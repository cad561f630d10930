"""The tensor that tells how well a narrowed model does: one that both models have, in the same shape."""

from collections.abc import Iterator

import numpy as np

from oamip_onnx.channels.groups import ChannelAnalysis
from oamip_onnx.errors import ModelError
from oamip_onnx.model import CONTRACTIONS, Model

# What these return changes its shape with the data, so that two models can't be compared there.
_DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})


def comparable_tensor(model: Model, analysis: ChannelAnalysis) -> str:
    """Return the first floating-point output whose shape does not depend on the data, else the last layer's output.

    Detectors end in a selection of boxes; what enters it says more than which ones were selected.

    Raises
    ------
    ModelError
        If there is neither.
    """
    for name in model.output_names:
        if _is_float(analysis, name) and not _depends_on_data(model, name):
            return name
    for node in reversed(model.graph.node):
        name = node.output[0]
        if node.op_type in CONTRACTIONS and _is_float(analysis, name) and not analysis.labels[name].factors:
            return name
    raise ModelError("The model has no floating-point output of a fixed shape, so that nothing could be compared.")


def _is_float(analysis: ChannelAnalysis, name: str) -> bool:
    kind = analysis.types.get(name)
    return kind is not None and (np.issubdtype(kind.dtype, np.floating) or kind.dtype.kind == "V")


def _depends_on_data(model: Model, name: str) -> bool:
    return any(
        model.graph.node[index].op_type in _DATA_DEPENDENT for index in _nodes_behind_the_last_layers(model, name)
    )


def _nodes_behind_the_last_layers(model: Model, name: str) -> Iterator[int]:
    """Yield the nodes on the way from the last contractions to a tensor."""
    waiting, seen = [name], set()
    while waiting:
        index = model.producers.get(waiting.pop())
        if index is None or index in seen or model.graph.node[index].op_type in CONTRACTIONS:
            continue
        seen.add(index)
        yield index
        waiting.extend(n for n in model.graph.node[index].input if n)
