"""What each reason to stay means, and what would have to change: one table by pin code, one by constraint."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from oamip_onnx.channels.groups import PinCode


@dataclass(frozen=True)
class Remedy:
    """A reason in general words.

    Attributes
    ----------
    meaning
        What holds the channels, as a sentence.
    change
        What the user can change so that they can go, or go further, as a sentence.
    """

    meaning: str
    change: str


class Constraint(StrEnum):
    """What binds the units of a group that can be cut."""

    BLOCKS = "blocks"
    TIED = "tied"
    AT_LEAST_ONE = "at-least-one"
    MAY_VANISH = "may-vanish"
    INEXACT = "inexact"


REMEDIES: Mapping[PinCode, Remedy] = {
    PinCode.GRAPH_OUTPUT: Remedy(
        "The channels are part of an output of the graph, whose shape stays.",
        "If nothing needs this output, export the model without it (onnx.utils.extract_model); if it is needed, a "
        "layer with weights behind these channels, such as a 1×1 convolution that makes the output, would free them.",
    ),
    PinCode.FIXED_AXIS: Remedy(
        "Cell by cell the channels meet something that cannot be narrowed: an input of the graph, an axis that the "
        "operator works along (samples, plane, time, positions), or a weight or bias shared with such.",
        "Free the partner that the reason names: give each layer a weight of its own where two share one, or put a "
        "layer with weights, such as a 1×1 convolution, between these channels and the partner.",
    ),
    PinCode.UNKNOWN_OPERATOR: Remedy(
        "The operator has no rule (it is of another domain, or newer than the rules): nothing is assumed about it.",
        "Export the node as operators of the standard ONNX domain, or register a rule for it "
        "(oamip_onnx.channels.rules.registry.rule).",
    ),
    PinCode.PINNED_OPERATOR: Remedy(
        "The operator depends on the position or the number of all cells, or computes with integers (docs/operators.md "
        "has the reason of each).",
        "Put a layer with weights, such as a 1×1 convolution, between these channels and the node, or replace the "
        "node; integer layers can be narrowed when the model is quantised in QDQ format.",
    ),
    PinCode.NO_TENSOR: Remedy(
        "The node handles sequences, optional values or strings, which have no channels to follow.",
        "Export without them: Split in place of SplitToSequence with SequenceAt, Concat in place of "
        "ConcatFromSequence.",
    ),
    PinCode.UNSUPPORTED_CASE: Remedy(
        "The operator has a rule, but not for this use of it.",
        "Export the node in its plain form: weights as constants, each layer's its own, inference mode, scales per "
        "tensor or per channel, no diagonal, no positions out of MaxPool, no cache in Attention, whose heads need "
        "heads=whole.",
    ),
    PinCode.NORMALISATION: Remedy(
        "A statistic, an order or a running sum is taken over these channels, so that each depends on all.",
        "--allow-inexact opens channels under LayerNormalization, RMSNormalization, Softmax and ReduceMean: the "
        "narrower model normalises over those that it keeps. Under any other (LRN, extrema, sorting, running sums, one "
        "block of GroupNormalization) no option does; normalise each channel by itself instead, as BatchNormalization "
        "does.",
    ),
    PinCode.CONTROL_FLOW: Remedy(
        "The body of an If, Loop or Scan uses the tensor or holds the layer, and bodies are left as they are.",
        "Export with the condition fixed or the loop unrolled, so that the body's layers stand in the main graph.",
    ),
    PinCode.MOVEMENT: Remedy(
        "Cells are moved in a way that depends on how many there are: mirrored, strided, reversed, spread over several "
        "axes, or mixed within a head.",
        "Take channels by contiguous slices or by constant indices along one axis, pad them with a constant, and keep "
        "heads=whole for heads that are rotated.",
    ),
    PinCode.SHAPE_VALUE: Remedy(
        "The number of these channels, or a dynamic dimension beside them, enters the computation of a size that "
        "nothing can replace.",
        "Fix every dynamic dimension but the batch in the file (python -m onnxruntime.tools.make_dynamic_shape_fixed), "
        "or export with constant sizes and -1 for the batch in Reshape.",
    ),
    PinCode.CONFLICTING_GRID: Remedy(
        "The channels are split into rows that must keep equally many, and what they meet makes that impossible.",
        "Split at equal widths that agree everywhere, or free the channels beside them that stay; the other value of "
        "the setting heads (whole, dimension) asks for other rows.",
    ),
    PinCode.IGNORED: Remedy(
        "A pattern of --ignore names the channels, or none of those in the setting only does.",
        "Drop or narrow the pattern of --ignore, or add one to the setting only.",
    ),
    PinCode.TOO_NARROW: Remedy(
        "A single unit is left, and without it the layer would be gone.",
        "Nothing can go from one unit; where it is one head or one block of tied channels, heads=dimension may split "
        "it.",
    ),
}
"""What each pin code means, and what would change it."""

CONSTRAINTS: Mapping[Constraint, Remedy] = {
    Constraint.BLOCKS: Remedy(
        "The units form blocks of equal width, and every block keeps equally many.",
        "Widths go in steps of one unit a block; finer steps need a convolution with fewer groups, or the other value "
        "of the setting heads where heads make the blocks.",
    ),
    Constraint.TIED: Remedy(
        "Several channels make one unit and go together: a head, a block of a grouped layer or of a normalisation.",
        "Attention heads go dimension by dimension with heads=dimension; blocks of a grouped layer or a "
        "normalisation need another layer in the model.",
    ),
    Constraint.AT_LEAST_ONE: Remedy(
        "At least one unit a block must stay.",
        "Only a branch beside a sum or a gate of the full width can vanish as a whole.",
    ),
    Constraint.MAY_VANISH: Remedy(
        "All units may go: the branch is then replaced by its bias.",
        "Nothing but the target binds them.",
    ),
    Constraint.INEXACT: Remedy(
        "The channels are under a normalisation: the narrower model normalises over those that it keeps.",
        "Nothing has to change; leave out --allow-inexact to keep them.",
    ),
}
"""What each constraint on a group means, and what would loosen it."""
