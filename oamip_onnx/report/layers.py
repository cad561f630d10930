"""The layers of a model as a reader sees them: how wide each was and is, what it reads, what it costs."""

import numpy as np

from oamip_onnx.budget import costs_of
from oamip_onnx.channels import FIXED, BoolArray, ChannelAnalysis, living_nodes, lookup, vanished_consumers
from oamip_onnx.model import CONTRACTIONS, Model
from oamip_onnx.report.schema import LayerRecord

# What these return is a size, which no data flow through.
_SIZES = frozenset({"Shape", "Size"})
_CHANNELS_SECOND = frozenset({"Conv", "ConvInteger", "ConvTranspose", "FusedConv", "QLinearConv"})


def layer_records(model: Model, analysis: ChannelAnalysis, kept: BoolArray) -> list[LayerRecord]:
    """Return one record for each node that data flow through, in graph order.

    Parameters
    ----------
    model, analysis
        The original and its channels.
    kept
        Whether each unit stays, shape (units,).
    """
    before = costs_of(model, analysis, np.ones_like(kept)).macs_by_node
    after = costs_of(model, analysis, kept).macs_by_node
    consumers = vanished_consumers(analysis, kept)
    alive = living_nodes(model, consumers) if consumers else set(range(len(model.graph.node)))
    owners = analysis.group_of_unit()
    positions: dict[str, int] = {}
    flowing = set(model.input_names)
    records: list[LayerRecord] = []
    for index, node in enumerate(model.graph.node):
        read = [name for name in node.input if name in flowing]
        if not read or node.op_type in _SIZES:
            continue
        output = next((name for name in node.output if name), "")
        original, pruned, units = _widths(analysis, kept, node.op_type, output)
        records.append(
            LayerRecord(
                name=node.name or output,
                operator=node.op_type,
                output=output,
                inputs=list(dict.fromkeys(positions[name] for name in read if name in positions)),
                groups=[analysis.groups[number].name for number in np.unique(owners[units])],
                width_before=original,
                width_after=0 if index not in alive and pruned is not None else pruned,
                macs_before=before.get(index, 0),
                macs_after=after.get(index, 0),
            )
        )
        flowing.update(name for name in node.output if name)
        positions |= {name: len(records) - 1 for name in node.output if name}
    return records


def _widths(
    analysis: ChannelAnalysis, kept: BoolArray, operator: str, tensor: str
) -> tuple[int | None, int | None, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return a tensor's channels before and after, and its units; None where it has no axis of channels."""
    labels = analysis.labels.get(tensor)
    if labels is not None and labels.factors:
        factor = labels.factors[0]
        units = np.unique(np.concatenate([f.ravel() for f in labels.factors]))
        return factor.size, int(lookup(kept, factor).sum()), units[units != FIXED]
    nothing = np.empty(0, dtype=np.int64)
    if operator not in CONTRACTIONS or labels is None or len(labels.shape) < 2:
        return None, None, nothing
    width = labels.shape[1 if operator in _CHANNELS_SECOND else -1]
    return width, width, nothing
