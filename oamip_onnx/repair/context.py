"""What every repair reads and returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from oamip_onnx.calibration import Samples
from oamip_onnx.channels import BoolArray, ChannelAnalysis
from oamip_onnx.model import Array, Model
from oamip_onnx.runtime import RuntimeOptions

# Share of the calibration samples on which a refit must prove itself.
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class RepairContext:
    """What a repair works on.

    Attributes
    ----------
    model, analysis, kept
        The original, its channels, and which units stay.
    cut
        The narrower model; not modified.
    samples
        Calibration samples; labels are not used.
    options
        Provider and threads.
    seed
        Seed of the subsampling of positions.
    memory_bytes
        What the rows of one refit, and the original's responses beside them, may take each.
    """

    model: Model
    analysis: ChannelAnalysis
    kept: BoolArray
    cut: onnx.ModelProto
    samples: Samples
    options: RuntimeOptions
    seed: int = 0
    memory_bytes: int = 1 << 30


@dataclass(frozen=True)
class RepairStep:
    """What was done at one contraction, or at several whose outputs are added.

    Attributes
    ----------
    node
        Name of the node, or of the last one.
    error_before, error_after
        Squared error per output position on held-out samples, behind the activation that follows, relative to the
        energy there; None if not measured.
    ridge
        Weight of the pull towards the old weights, relative to the mean feature energy; None where nothing was refit.
    skipped
        Why the node was left as it is; empty if it was repaired.
    """

    node: str
    error_before: float | None = None
    error_after: float | None = None
    ridge: float | None = None
    skipped: str = ""


@dataclass(frozen=True)
class Repaired:
    """A repaired model.

    Attributes
    ----------
    proto
        The narrower model with new weights.
    updates
        The changed initializers by name, in the narrower shapes.
    steps
        What was done, in network order.
    notes
        Sentences for the report.
    """

    proto: onnx.ModelProto
    updates: Mapping[str, Array] = field(default_factory=dict)
    steps: tuple[RepairStep, ...] = ()
    notes: tuple[str, ...] = ()


def initializer_array(proto: onnx.ModelProto, name: str) -> Array:
    """Return the values of an initializer of a model."""
    return onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name))
