"""Comparing models segment by segment, for networks whose outputs magnify rounding.

In the cut model every contraction's output is cut open: what the contraction computes becomes an output, and what the
nodes behind it read becomes an input, fed with the kept cells of what the masked model computed there. Every segment
between two contractions is then computed from equal inputs, and an error cannot grow from one to the next.
"""

import numpy as np
import onnx

from oamip_onnx.calibration import Samples
from oamip_onnx.channels import BoolArray, ChannelAnalysis, Labels, slice_array
from oamip_onnx.masking import MaskedSession
from oamip_onnx.model import CONTRACTIONS, Array, Model
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.verify.difference import difference

_SUFFIX = ".oamip_recomputed"


def segment_errors(
    model: Model,
    analysis: ChannelAnalysis,
    kept: BoolArray,
    cut: onnx.ModelProto,
    samples: Samples,
    options: RuntimeOptions,
) -> tuple[float, float]:
    """Return the largest absolute and relative difference over all segments and outputs.

    Raises
    ------
    VerificationError
        If a tensor differs in shape or dtype.
    """
    outputs = set(model.output_names)
    computed = {name for node in cut.graph.node for name in node.output}  # less what vanished
    opened = [
        name
        for node in model.graph.node
        if node.op_type in CONTRACTIONS
        for name in node.output
        if name in computed and name not in outputs
    ]
    masked = MaskedSession(model, analysis, options, [*opened, *model.output_names])
    session = Session(_cut_open(cut, opened, analysis), options)
    absolute = relative = 0.0
    for feeds in samples.batches(samples.count):
        expected = masked.run(feeds, kept)
        narrow = {name: _kept_cells(expected[name], analysis, name, kept) for name in opened}
        got = session.run({**feeds, **narrow})
        pairs = [(name, narrow[name], got[name + _SUFFIX]) for name in opened]
        pairs += [(name, expected[name], got[name]) for name in model.output_names]
        for name, wanted, found in pairs:
            errors = difference(name, wanted, found)
            absolute, relative = max(absolute, errors[0]), max(relative, errors[1])
    return absolute, relative


def _cut_open(cut: onnx.ModelProto, opened: list[str], analysis: ChannelAnalysis) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(cut)
    names = set(opened)
    for node in proto.graph.node:
        for position, name in enumerate(node.output):
            if name in names:
                node.output[position] = name + _SUFFIX
    for name in opened:
        kind = analysis.types[name]
        shape = [None] * len(kind.shape)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind.element_type, shape))
        proto.graph.output.append(onnx.ValueInfoProto(name=name + _SUFFIX))
    return proto


def _kept_cells(values: Array, analysis: ChannelAnalysis, name: str, kept: BoolArray) -> Array:
    labels = analysis.labels.get(name)
    if labels is None:
        return values
    # The labels were traced with one sample; the batch axis carries none.
    return np.ascontiguousarray(slice_array(values, Labels(values.shape, labels.factors), kept))
