"""The forward pass over a graph on labels: what the rules read and write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from oamip_onnx.channels.groups import Contraction, Pin, PinCode
from oamip_onnx.channels.labels import FIXED, IntArray, Labels, collapse, merge_factors
from oamip_onnx.model import Array, Model, TensorType


@dataclass(frozen=True)
class Grid:
    """Cells of which every row must keep equally many.

    Attributes
    ----------
    cells
        Labels, shape (rows, cells per row).
    tensor
        Where the split happens, for the reason given if it cannot be kept.
    """

    cells: IntArray
    tensor: str


@dataclass(frozen=True)
class Sizes:
    """A tensor of sizes that come from Shape.

    Attributes
    ----------
    values
        The sizes as traced.
    measured
        For each element, which of the factors it counts, FIXED where it counts nothing that can shrink.
    factors
        The labels counted.
    """

    values: IntArray
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
    """

    def __init__(self, model: Model, types: Mapping[str, TensorType]) -> None:
        self.model = model
        self.types = types
        self.labels: dict[str, Labels] = {}
        self.sizes: dict[str, Sizes] = {}
        self.joins: list[IntArray] = []
        self.pins: list[tuple[IntArray, Pin]] = []
        self.grids: list[Grid] = []
        self.contractions: list[Contraction] = []
        self.contracted: list[str] = []
        self.atom_count = 0

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
                        factors.append(self.fresh([size if a == axis else 1 for a in range(len(shape))]))
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
        axes = [a for a, size in enumerate(factor.shape) if size > 1]
        if len(axes) > 1:
            self.grids.append(Grid(factor.reshape(-1, factor.shape[axes[-1]]), name))

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

    def pin_tensor(self, name: str, code: PinCode, reason: str, *, axes: Iterable[int] | None = None) -> None:
        """Pin every label of a tensor, or those of the factors that depend on the given axes."""
        chosen = None if axes is None else set(axes)
        for factor in self.of(name).factors:
            if chosen is None or chosen.intersection(a for a, s in enumerate(factor.shape) if s > 1):
                self.pin(factor.ravel(), Pin(name, code, reason))

    def single_axis(self, name: str, axis: int) -> IntArray | None:
        """Return the labels along one axis, shape (size,); None if nothing along it can go.

        A factor that depends on other axes as well does not fit where one axis is wanted: it is pinned.
        """
        factor = self.of(name).factor_over(axis)
        if factor is None:
            return None
        if sum(size > 1 for size in factor.shape) > 1:
            self.pin(
                factor.ravel(),
                Pin(name, PinCode.UNSUPPORTED_CASE, f"The channels of {name!r} are spread over several axes here."),
            )
            return None
        return factor.ravel()

    def contract(self, node: int, operand: int, units: IntArray, weight: int | None) -> None:
        """Record that labels end at a data operand of a contraction."""
        tensor = self.model.graph.node[node].input[operand]
        self.contractions.append(Contraction(node, operand, tensor, units, weight))


def along(atoms: IntArray, axis: int, rank: int) -> IntArray:
    """Return labels of shape (size,) as a factor along `axis` of a tensor of the given rank."""
    return atoms.reshape([-1 if a == axis else 1 for a in range(rank)])


def node_label(trace: Trace, index: int, node: onnx.NodeProto) -> str:
    """Return how a reason names a node: operator and name."""
    return f"{node.op_type} {trace.model.node_name(index)!r}"
