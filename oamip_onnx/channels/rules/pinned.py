"""Operators whose channels stay, each with the reason: what enters and what leaves them is pinned."""

import onnx

from oamip_onnx.channels.groups import PinCode
from oamip_onnx.channels.rules.registry import Family, Propagate, rule
from oamip_onnx.channels.trace import Trace, node_label


def pin_all(trace: Trace, node: onnx.NodeProto, code: PinCode, reason: str) -> None:
    """Pin all that enters a node; what leaves it carries no labels."""
    for name in node.input:
        if name:
            trace.pin_tensor(name, code, reason)
    for name in node.output:
        if name in trace.types:
            trace.set(name, [])


def _pinned(op_types: str, reason: str, code: PinCode = PinCode.PINNED_OPERATOR) -> None:
    """Register rows; the reason completes a sentence that starts with the node."""

    def propagate(trace: Trace, index: int, node: onnx.NodeProto) -> None:
        pin_all(trace, node, code, f"{node_label(trace, index, node)} {reason}.")

    register: Propagate = propagate
    rule(op_types.split(), Family.PINNED, reason=reason)(register)


_pinned("If Loop Scan SequenceMap", "runs bodies that use this tensor", PinCode.CONTROL_FLOW)
_pinned(
    "ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
    "SplitToSequence Optional OptionalGetElement OptionalHasElement",
    "handles sequences or optional values",
    PinCode.NO_TENSOR,
)
_pinned(
    "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer ImageDecoder",
    "works on strings or encoded files",
    PinCode.NO_TENSOR,
)
_pinned("Size", "counts all elements of the tensor", PinCode.SHAPE_VALUE)
_pinned(
    "Bernoulli EyeLike Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
    "draws or makes values cell by cell, which change with the tensor's shape",
)
_pinned("Compress NonMaxSuppression NonZero OneHot Unique", "has an output whose size depends on the data")
_pinned(
    "GatherElements GatherND Scatter ScatterElements ScatterND TensorScatter MaxUnpool",
    "addresses cells by position in the whole tensor",
)
_pinned("AffineGrid Col2Im DFT STFT Det MelWeightMatrix", "mixes the cells of an axis with fixed coefficients")
_pinned("BlackmanWindow HammingWindow HannWindow", "makes a window of a given size")
_pinned("BitCast", "reads the bytes of the cells as another type")
_pinned("DeformConv CausalConvWithState", "has offsets or states beside its weight that no rule follows yet")
_pinned("LinearAttention SwiGLU", "has inner axes that no rule follows yet")
_pinned(
    "DynamicQuantizeLinear",
    "takes its scale from the extremes of all channels",
    PinCode.NORMALISATION,
)
_pinned(
    "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "takes a loss over the classes",
    PinCode.NORMALISATION,
)
