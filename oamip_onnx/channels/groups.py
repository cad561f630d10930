"""What the analysis of a graph hands to the other stages: groups, contractions, pins."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from oamip_onnx.channels.labels import IntArray, Labels
from oamip_onnx.model import TensorType


class PinCode(StrEnum):
    """Why channels must stay."""

    GRAPH_OUTPUT = "graph-output"
    FIXED_AXIS = "fixed-axis"
    UNKNOWN_OPERATOR = "unknown-operator"
    PINNED_OPERATOR = "pinned-operator"
    NO_TENSOR = "no-tensor"
    UNSUPPORTED_CASE = "unsupported-case"
    NORMALISATION = "normalisation"
    CONTROL_FLOW = "control-flow"
    MOVEMENT = "movement"
    SHAPE_VALUE = "shape-value"
    CONFLICTING_GRID = "conflicting-grid"
    IGNORED = "ignored"
    TOO_NARROW = "too-narrow"


@dataclass(frozen=True)
class Pin:
    """A tensor whose channels must stay: where, a code for machines, and a sentence for people."""

    tensor: str
    code: PinCode
    reason: str


@dataclass(frozen=True)
class ChannelGroup:
    """Units on the same set of axes: the thing that has a width and an importance vector.

    Attributes
    ----------
    name
        The first activation tensor in graph order whose channels the group holds; where several groups share one, they
        are numbered behind a ``#``.
    tensors
        The activation tensors that contractions produce with these channels, in graph order.
    first_unit
        Number of the group's first unit; its units are `first_unit` … `first_unit + width - 1`.
    width
        Number of units.
    blocks
        Block number of each unit, from 0, where every block must keep equally many units (grouped convolution,
        split axes); None where units are free. Shape (width,).
    exact
        Whether removal equals zeroing exactly; False for channels under a normalisation, opened on request.
    minimum_width
        Fewest units that must stay; 0 where the branch may vanish as a whole.
    """

    name: str
    tensors: tuple[str, ...]
    first_unit: int
    width: int
    blocks: IntArray | None = None
    exact: bool = True
    minimum_width: int = 1

    @property
    def units(self) -> slice:
        """Where the group's units stand in a vector over all units."""
        return slice(self.first_unit, self.first_unit + self.width)

    @property
    def block_count(self) -> int:
        """Number of blocks; 1 where units are free."""
        return 1 if self.blocks is None else int(self.blocks.max()) + 1

    def members(self) -> list[IntArray]:
        """Return the positions of each block's units within the group; all of them where units are free."""
        if self.blocks is None:
            return [np.arange(self.width, dtype=np.int64)]
        return [np.flatnonzero(self.blocks == block).astype(np.int64) for block in range(self.block_count)]


@dataclass(frozen=True)
class Contraction:
    """A place where channels end: a data operand of a Conv, Gemm, MatMul, … whose contracted axes carry units.

    Removal means that the unit's value is zero here.

    Attributes
    ----------
    node
        Position of the node in the graph.
    operand
        Position of the data operand in the node.
    tensor
        Name of the data operand.
    units
        Unit of each contracted cell, FIXED where none; broadcasts to the data operand's shape.
    weight
        Position of the operand with constant weights, or None where both operands are activations.
    """

    node: int
    operand: int
    tensor: str
    units: IntArray
    weight: int | None


@dataclass(frozen=True)
class Normalisation:
    """A place where a statistic is taken over channels that may go on request: the removal there is inexact.

    The narrower model takes the statistic over the kept channels; the masked model has to do the same.

    Attributes
    ----------
    node
        Position of the node in the graph.
    units
        Unit of each cell of the first operand, FIXED where none; broadcasts to its shape.
    axes
        The axes that the statistic is taken over.
    """

    node: int
    units: IntArray
    axes: tuple[int, ...]


@dataclass(frozen=True)
class TargetElement:
    """An element of a computed shape operand that no longer holds when channels go.

    Attributes
    ----------
    node, operand
        Position of the node in the graph, and of the operand in the node.
    element
        Position in the operand.
    axis
        The output's axis that the element names.
    inferred
        Whether the element becomes -1 (its size depends on a dynamic dimension) instead of the axis's new size.
    counts
        Whether the element counts channels of another axis, so that it is wrong even where its own axis stays.
    """

    node: int
    operand: int
    element: int
    axis: int
    inferred: bool
    counts: bool = False


@dataclass(frozen=True)
class ChannelAnalysis:
    """The channels of a whole model.

    Attributes
    ----------
    groups
        The groups that can be narrowed, in graph order.
    pinned
        The contraction outputs whose channels must stay, with the reason.
    labels
        Unit labels of every tensor of the main graph, initializers included.
    contractions
        Where channels end, in graph order.
    types
        Concrete type of every tensor, as traced.
    normalisations
        Where statistics are taken over channels that may go on request.
    targets
        Elements of computed shape operands that surgery has to replace.
    """

    groups: tuple[ChannelGroup, ...]
    pinned: tuple[Pin, ...]
    labels: Mapping[str, Labels]
    contractions: tuple[Contraction, ...]
    types: Mapping[str, TensorType]
    normalisations: tuple[Normalisation, ...] = ()
    targets: tuple[TargetElement, ...] = ()

    @property
    def unit_count(self) -> int:
        """Number of removable units in the model."""
        return sum(g.width for g in self.groups)

    def group_of_unit(self) -> IntArray:
        """Return the index of each unit's group, shape (units,)."""
        return np.repeat(np.arange(len(self.groups)), [g.width for g in self.groups]).astype(np.int64)
