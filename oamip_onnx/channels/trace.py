"""The forward pass over a graph on labels: what the rules read and write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx

from oamip_onnx.channels.groups import Contraction, Normalisation, Pin, PinCode, TargetElement
from oamip_onnx.channels.labels import FIXED, IntArray, Labels, axes_of, collapse, merge_factors
from oamip_onnx.errors import OamipError
from oamip_onnx.model import Array, KnownSizes, Model, Partial, TensorType, captured_names, infer_shapes, known_sizes

Heads = Literal["whole", "dimension"]
"""How sets of channels that are split into rows go: by whole rows (attention heads), or equally many of every row."""


@dataclass(frozen=True)
class Grid:
    """Cells of which every row must keep equally many.

    Attributes
    ----------
    cells
        Labels, shape (rows, cells per row).
    tensor
        Where the split happens, for the reason given if it cannot be kept.
    rigid
        Whether the rows themselves must stay, since the rules have followed the cells within them alone.
    """

    cells: IntArray
    tensor: str
    rigid: bool = False


@dataclass(frozen=True)
class Blocks:
    """The two sides of a grouped convolution, block by block.

    Attributes
    ----------
    entering, leaving
        Labels, shape (blocks, channels per block).
    tensor
        Where the blocks are, for the reason given if they cannot be kept.
    """

    entering: IntArray
    leaving: IntArray
    tensor: str


@dataclass(frozen=True)
class Sizes:
    """A tensor of sizes that come from Shape.

    Attributes
    ----------
    measured
        For each element, which of the factors it counts, FIXED where it counts nothing that can shrink.
    factors
        The labels counted.
    """

    measured: IntArray
    factors: tuple[IntArray, ...]


class Trace:
    """State of one pass over a graph: labels so far, joins, pins, grids, contractions.

    Parameters
    ----------
    model
        The canonical model.
    types
        Concrete types of its tensors.
    allow_inexact
        Whether channels under a normalisation over them may go.
    heads
        Whether attention goes by whole heads or by head dimension.
    """

    def __init__(
        self,
        model: Model,
        types: Mapping[str, TensorType],
        *,
        allow_inexact: bool = False,
        heads: Heads = "whole",
    ) -> None:
        self.model = model
        self.types = types
        self.allow_inexact = allow_inexact
        self.heads = heads
        self.labels: dict[str, Labels] = {}
        self.sizes: dict[str, Sizes] = {}
        self.joins: list[IntArray] = []
        self.pins: list[tuple[IntArray, Pin]] = []
        self.grids: list[Grid] = []
        self.blocks: list[Blocks] = []
        self.contractions: list[Contraction] = []
        self.contracted: list[str] = []
        self.normalisations: list[Normalisation] = []
        self.targets: list[TargetElement] = []
        self.unseen: list[Pin] = []
        self.atom_count = 0
        self._computed_parameters = _parameters(model)

    @cached_property
    def sizes_known(self) -> KnownSizes:
        """What holds of computed sizes and of dimensions whatever the dynamic ones are."""
        return known_sizes(self.model.proto)

    @property
    def known(self) -> Mapping[str, Partial]:
        """What is known of small computed tensors, element by element."""
        return self.sizes_known.elements

    def is_dynamic(self, name: str, axis: int) -> bool:
        """Return whether the size of a tensor's axis depends on a dynamic dimension of an input."""
        dimensions = self.sizes_known.dimensions.get(name)
        if self.is_parameter(name) or (dimensions is not None and dimensions[axis] is not None):
            return False
        return name not in self._doubled or self._doubled[name].shape[axis] != self.shape(name)[axis]

    @cached_property
    def _doubled(self) -> Mapping[str, TensorType]:
        """Types with every dynamic dimension of the inputs twice as large; none where the model does not take them."""
        shapes = {
            value.name: [
                dimension.dim_value or 2 * bound
                for dimension, bound in zip(value.type.tensor_type.shape.dim, self.shape(value.name), strict=True)
            ]
            for value in self.model.graph.input
        }
        try:
            return infer_shapes(self.model, shapes)
        except OamipError:
            return {}

    def is_parameter(self, name: str) -> bool:
        """Return whether a tensor is an initializer, or computed from initializers alone."""
        return self.model.is_constant(name) or name in self._computed_parameters

    def fresh(self, shape: Sequence[int]) -> IntArray:
        """Return new atoms, one a cell."""
        size = int(np.prod(shape, dtype=np.int64))
        atoms = np.arange(self.atom_count, self.atom_count + size, dtype=np.int64).reshape(shape)
        self.atom_count += size
        return atoms

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the concrete shape of a tensor."""
        return self.types[name].shape

    def of(self, name: str) -> Labels:
        """Return the labels of a tensor; an initializer gets atoms on each of its axes when it is first asked for."""
        if name not in self.labels:
            shape = self.shape(name)
            factors = []
            if self.model.is_constant(name):
                for axis, size in enumerate(shape):
                    if size > 1:
                        factors.append(along(self.fresh((size,)), axis, len(shape)))
            self.labels[name] = Labels(shape, tuple(factors))
        return self.labels[name]

    def constant(self, name: str) -> Array | None:
        """Return the values of an initializer, or None for an activation or an absent operand."""
        return self.model.array(name) if name and self.model.is_constant(name) else None

    def set(self, name: str, factors: Iterable[IntArray]) -> None:
        """Set the labels of a node's output; factors without a removable cell are dropped, constant axes collapsed."""
        if name:
            shape = self.shape(name)
            self.labels[name] = merge_factors(shape, (collapse(f) for f in factors))
            for factor in self.labels[name].factors:
                self._grid_of(factor, name)

    def _grid_of(self, factor: IntArray, name: str) -> None:
        axes = axes_of(factor)
        if len(axes) > 1:
            self.grids.append(Grid(factor.reshape(-1, factor.shape[max(axes)]), name, self.heads == "dimension"))

    def require_grid(self, cells: IntArray, tensor: str) -> None:
        """Ask that every row of a two-dimensional array of labels keeps equally many cells."""
        if bool((cells != FIXED).any()):
            self.grids.append(Grid(cells, tensor))

    def join(self, left: IntArray, right: IntArray, pin: Pin) -> None:
        """Tie labels cell by cell, broadcasting; what meets a fixed cell is pinned for the given reason."""
        left, right = np.broadcast_arrays(left, right)
        left_fixed, right_fixed = left == FIXED, right == FIXED
        self.pin(left[right_fixed & ~left_fixed], pin)
        self.pin(right[left_fixed & ~right_fixed], pin)
        both = ~left_fixed & ~right_fixed & (left != right)
        if bool(both.any()):
            self.joins.append(np.stack([left[both], right[both]]))

    def pin(self, atoms: IntArray, pin: Pin) -> None:
        """Say that these atoms never go."""
        atoms = atoms[atoms != FIXED]
        if atoms.size:
            self.pins.append((np.unique(atoms), pin))

    def shrinking(self, factor: IntArray) -> frozenset[int]:
        """Return the axes along which a tensor gets shorter when cells of this factor go.

        Where heads are pruned by dimension, rows (all axes but the last) stay and lose equally many cells each.
        """
        axes = axes_of(factor)
        return frozenset({max(axes)} if self.heads == "dimension" and axes else axes)

    def tie(self, factor: IntArray, axes: Iterable[int], pin: Pin) -> IntArray:
        """Tie the cells along some axes, so that whole rows go; return the rows' labels, with size 1 there."""
        chosen = set(axes)
        row = factor[tuple(slice(0, 1) if a in chosen else slice(None) for a in range(factor.ndim))]
        self.join(factor, row, pin)
        return row

    def pin_tensor(self, name: str, code: PinCode, reason: str, *, axes: Iterable[int] | None = None) -> None:
        """Pin every label of a tensor, or those of the factors that depend on the given axes."""
        if name not in self.types:
            return  # a sequence or an optional value carries no labels
        chosen = None if axes is None else set(axes)
        for factor in self.of(name).factors:
            if chosen is None or chosen & axes_of(factor):
                self.pin(factor.ravel(), Pin(name, code, reason))

    def single_axis(self, name: str, axis: int) -> IntArray | None:
        """Return the labels along one axis, shape (size,); None if nothing along it can go.

        A factor that depends on other axes as well does not fit where one axis is wanted: it is pinned.
        """
        factor = self.of(name).factor_over(axis)
        if factor is None:
            return None
        if len(axes_of(factor)) > 1:
            self.pin(
                factor.ravel(),
                Pin(name, PinCode.UNSUPPORTED_CASE, f"The channels of {name!r} are spread over several axes here."),
            )
            return None
        return factor.ravel()

    def contract(self, node: int, operand: int, units: IntArray, weight: int | None) -> None:
        """Record that labels end at a data operand of a contraction.

        Where they lie on an axis whose size depends on a dynamic dimension (batch · heads), no mask fits: they are
        pinned.
        """
        tensor = self.model.graph.node[node].input[operand]
        if any(self.is_dynamic(tensor, axis) for axis in axes_of(units)):
            where = node_label(self, node, self.model.graph.node[node])
            reason = f"{where} contracts them on an axis whose size depends on a dynamic dimension."
            self.pin(units.ravel(), Pin(tensor, PinCode.SHAPE_VALUE, reason))
            return
        self.contractions.append(Contraction(node, operand, tensor, units, weight))


def _parameters(model: Model) -> frozenset[str]:
    """Return the tensors that nodes compute from initializers alone."""
    found: set[str] = set()
    for node in model.graph.node:
        names = [name for name in node.input if name]
        if (
            names
            and not captured_names(node)
            and not node.op_type.startswith("Random")
            and all(model.is_constant(name) or name in found for name in names)
        ):
            found.update(name for name in node.output if name)
    return frozenset(found)


def along(atoms: IntArray, axis: int, rank: int) -> IntArray:
    """Return labels of shape (size,) as a factor along `axis` of a tensor of the given rank."""
    return atoms.reshape([-1 if a == axis else 1 for a in range(rank)])


def node_label(trace: Trace, index: int, node: onnx.NodeProto) -> str:
    """Return how a reason names a node: operator and name."""
    return f"{node.op_type} {trace.model.node_name(index)!r}"
