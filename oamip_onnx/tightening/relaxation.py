"""The largest or smallest value of one cell over a box of inputs, as a linear or an integer program.

Only the cells that the one in question depends on have variables. With L ≤ a ≤ U proven before, an open ReLU h of a is
encoded by the triangle of Ehlers (2017),

    h ≥ 0,   h ≥ a,   h ≤ U (a - L) / (U - L),

or exactly, with a binary z, as Tjeng, Xiao, Tedrake (2019) do:

    h ≥ 0,   h ≥ a,   h ≤ U z,   h ≤ a - L (1 - z).

Where any score in [0, 1] may multiply an activation, ``h ≥ a`` goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from oamip_onnx.channels import FIXED
from oamip_onnx.formulation.bounds import Bounds, bias_interval
from oamip_onnx.formulation.network import Affine, BoolArray, MaxPool, Network, Relu, Shift
from oamip_onnx.formulation.program import FloatArray, IntArray, Program, ProgramBuilder, SparseMatrix, VariableBlock


@dataclass(frozen=True)
class Relaxation:
    """A program whose minimum bounds a cell.

    Attributes
    ----------
    program
        Minimises ``sign`` times the cell.
    inputs
        Column of each input cell in the program, -1 where it has none; shape (cells,) by input.
    """

    program: Program
    inputs: Mapping[str, IntArray]

    def point(self, x: FloatArray, bounds: Bounds, box: int) -> dict[str, FloatArray]:
        """Return the network's input in a solution; cells without a column take their lower bound."""
        return {
            name: np.where(columns >= 0, x[columns], bounds.lower[name][box]) for name, columns in self.inputs.items()
        }


def relax(
    network: Network, bounds: Bounds, box: int, tensor: str, cell: int, *, sign: int, integer: bool, scored: bool
) -> Relaxation:
    """Return the program that minimises ``sign`` times a cell over one box.

    Parameters
    ----------
    network, bounds
        The network and bounds of every tensor, shape (boxes, cells), that hold for what is asked.
    box, tensor, cell
        The box and the cell.
    sign
        1 for the smallest value of the cell, -1 for the largest.
    integer
        Whether ReLUs and max-pools are exact, with binaries.
    scored
        Whether the scores may take any value in [0, 1].
    """
    assembly = _Assembly(network, bounds, box, tensor, cell, integer=integer, scored=scored)
    return assembly.relaxation(tensor, cell, sign)


class _Assembly:
    def __init__(
        self, network: Network, bounds: Bounds, box: int, tensor: str, cell: int, *, integer: bool, scored: bool
    ) -> None:
        self.network, self.integer, self.scored = network, integer, scored
        self.low = {name: values[box] for name, values in bounds.lower.items()}
        self.high = {name: values[box] for name, values in bounds.upper.items()}
        self.needed = self._needed(tensor, cell)
        self.columns: dict[str, IntArray] = {}
        self.builder = ProgramBuilder(f"{tensor}[{cell}]")

    def relaxation(self, tensor: str, cell: int, sign: int) -> Relaxation:
        for name in self.network.inputs:
            self._variables(name)
        for layer in self.network.layers:
            if layer.output not in self.needed:
                continue
            self._variables(layer.output)
            if isinstance(layer, Affine):
                self._affine(layer)
            elif isinstance(layer, MaxPool):
                self._max_pool(layer)
            else:
                self._activation(layer)
        self.builder.cost(self.columns[tensor][cell], sign)
        return Relaxation(self.builder.build(), {name: self.columns[name] for name in self.network.inputs})

    def _needed(self, tensor: str, cell: int) -> dict[str, BoolArray]:
        """Return the cells that need a variable: on a way to the one in question, and not constant."""
        needed = {name: np.zeros(size, np.bool_) for name, size in self.network.inputs.items()}
        needed[tensor] = np.zeros(self.low[tensor].size, np.bool_)
        needed[tensor][cell] = True

        def mark(name: str, cells: IntArray) -> None:
            moving = cells[self.low[name][cells] < self.high[name][cells]]
            if moving.size:
                needed.setdefault(name, np.zeros(self.low[name].size, np.bool_))[moving] = True

        for layer in reversed(self.network.layers):
            if layer.output not in needed:
                continue
            cells = np.flatnonzero(needed[layer.output])
            if isinstance(layer, Affine):
                for name, matrix in zip(layer.inputs, layer.matrices, strict=True):
                    mark(name, np.unique(matrix[cells].indices))
            elif isinstance(layer, MaxPool):
                windows = layer.windows[cells]
                mark(layer.input, np.unique(windows[windows >= 0]))
            else:
                mark(layer.input, cells)
        return needed

    def _variables(self, name: str) -> None:
        cells = np.flatnonzero(self.needed[name])
        block = self.builder.variables(name, cells.size, self.low[name][cells], self.high[name][cells])
        self.columns[name] = np.full(self.low[name].size, -1, np.int64)
        self.columns[name][cells] = np.arange(block.start, block.start + block.size)

    def _column(self, name: str) -> IntArray:
        """Return the column of each cell, -1 where it is constant."""
        return self.columns[name] if name in self.columns else np.full(self.low[name].size, -1, np.int64)

    def _rows(self, family: str, terms: list[tuple[IntArray, FloatArray]], lower: object, upper: object) -> None:
        """Add one row for each entry of the terms' columns; a term is (columns, coefficients)."""
        count = terms[0][0].size
        if count == 0:
            return
        rows = np.tile(np.arange(count), len(terms))
        values = np.concatenate([np.broadcast_to(c, (count,)) for _, c in terms])
        matrix = _matrix(rows, np.concatenate([c for c, _ in terms]), values, (count, self.builder.width))
        self.builder.rows(family, matrix, np.asarray(lower), np.asarray(upper))

    def _affine(self, layer: Affine) -> None:
        """Add ``Σ W · input - a = -bias``, with what is constant on the right."""
        cells = np.flatnonzero(self.needed[layer.output])
        least, most = (bias[cells].copy() for bias in bias_interval(layer, scored=self.scored))
        rows, columns, values = (
            [np.arange(cells.size)],
            [self.columns[layer.output][cells]],
            [np.full(cells.size, -1.0)],
        )
        for name, matrix in zip(layer.inputs, layer.matrices, strict=True):
            part, column = matrix[cells], self._column(name)
            constant = np.asarray(part @ np.where(column >= 0, 0.0, self.low[name]))
            least, most = least + constant, most + constant
            entries = np.repeat(np.arange(cells.size), np.diff(part.indptr))
            moving = column[part.indices] >= 0
            rows.append(entries[moving])
            columns.append(column[part.indices[moving]])
            values.append(part.data[moving])
        shape = (cells.size, self.builder.width)
        whole = _matrix(np.concatenate(rows), np.concatenate(columns), np.concatenate(values), shape)
        self.builder.rows("affine", whole, -most, -least)

    def _activation(self, layer: Relu | Shift) -> None:
        """Add the rows between a pre-activation a and its activation h."""
        before = self._column(layer.input)
        cells = np.flatnonzero(self.needed[layer.output] & (before >= 0))
        low, high = self.low[layer.input], self.high[layer.input]
        scored = (layer.units[cells] != FIXED) & self.scored
        mixed = (low[cells] < 0) & (high[cells] > 0)
        linear = (low[cells] >= 0) if isinstance(layer, Relu) else np.ones(cells.size, np.bool_)
        same = cells[linear & ~scored]
        self._rows("h = a", [(self.columns[layer.output][same], _ONE), (before[same], -_ONE)], 0.0, 0.0)
        if isinstance(layer, Relu):
            self._open_relu(layer, cells[mixed & ~scored], lifted=True)
            self._open_relu(layer, cells[mixed & scored], lifted=False)
        else:
            both = cells[mixed & scored]
            self._chord(layer, both)
            # The mirror image below zero: h ≥ L (U - a) / (U - L).
            slope = -low[both] / (high[both] - low[both])
            terms = [(self.columns[layer.output][both], _ONE), (before[both], -slope)]
            self._rows("h above the lower chord", terms, -slope * high[both], np.inf)
        rising, falling = cells[scored & (low[cells] >= 0)], cells[scored & (high[cells] <= 0)]
        self._rows("h ≤ a", [(self.columns[layer.output][rising], _ONE), (before[rising], -_ONE)], -np.inf, 0.0)
        if isinstance(layer, Shift):
            self._rows("h ≥ a", [(self.columns[layer.output][falling], _ONE), (before[falling], -_ONE)], 0.0, np.inf)

    def _chord(self, layer: Relu | Shift, cells: IntArray) -> None:
        low, high = self.low[layer.input][cells], self.high[layer.input][cells]
        slope = high / (high - low)
        terms = [(self.columns[layer.output][cells], _ONE), (self._column(layer.input)[cells], -slope)]
        self._rows("h below the chord", terms, -np.inf, -slope * low)

    def _open_relu(self, layer: Relu, cells: IntArray, *, lifted: bool) -> None:
        """Add the rows of undecided ReLUs; `lifted` says that h is at least a."""
        after, before = self.columns[layer.output][cells], self._column(layer.input)[cells]
        if lifted:
            self._rows("h ≥ a", [(after, _ONE), (before, -_ONE)], 0.0, np.inf)
        if not self.integer:
            self._chord(layer, cells)
            return
        low, high = self.low[layer.input][cells], self.high[layer.input][cells]
        state = _numbers(self.builder.variables("state", cells.size, 0.0, 1.0, binary=True))
        self._rows("h ≤ U z", [(after, _ONE), (state, -high)], -np.inf, 0.0)
        self._rows("h ≤ a - L (1 - z)", [(after, _ONE), (before, -_ONE), (state, -low)], -np.inf, -low)

    def _max_pool(self, layer: MaxPool) -> None:
        """Add ``z ≥ h_p`` and ``z ≤ Σ (h_p - L_p) + max L``; in the integer program also which position wins.

        Positions whose upper bound is below another's lower bound cannot win and are left out.
        """
        low, high = np.append(self.low[layer.input], -np.inf), np.append(self.high[layer.input], -np.inf)
        cells = np.flatnonzero(self.needed[layer.output])
        windows = layer.windows[cells]
        floor = low[windows].max(axis=1)
        position, tap = np.nonzero((windows >= 0) & (high[windows] >= floor[:, None]))
        source = windows[position, tap]
        after, before = self.columns[layer.output][cells], self._column(layer.input)[source]
        if self.integer:
            self._winner(after[position], before, low[source], self.high[layer.output][cells[position]], position)
        moving = before >= 0
        position, source, before = position[moving], source[moving], before[moving]
        self._rows("z ≥ h", [(after[position], _ONE), (before, -_ONE)], 0.0, np.inf)
        rows = np.concatenate([np.arange(cells.size), position])
        values = np.concatenate([np.ones(cells.size), -np.ones(position.size)])
        matrix = _matrix(rows, np.concatenate([after, before]), values, (cells.size, self.builder.width))
        right = floor - np.bincount(position, low[source], cells.size)
        self.builder.rows("z ≤ Σ (h - L) + max L", matrix, -np.inf, right)

    def _winner(self, after: IntArray, before: IntArray, low: FloatArray, top: FloatArray, position: IntArray) -> None:
        """Add ``z ≤ h_p + (U - L_p)(1 - b_p)`` and ``Σ b_p ≥ 1`` for every position that can win."""
        wins = _numbers(self.builder.variables("wins", after.size, 0.0, 1.0, binary=True))
        reach = np.maximum(top - low, 0.0)
        moving = before >= 0
        terms = [(after[moving], _ONE), (before[moving], -_ONE), (wins[moving], reach[moving])]
        self._rows("z ≤ h + (U - L)(1 - b)", terms, -np.inf, reach[moving])
        terms = [(after[~moving], _ONE), (wins[~moving], reach[~moving])]
        self._rows("z ≤ h + (U - L)(1 - b)", terms, -np.inf, (reach + low)[~moving])
        windows, rows = np.unique(position, return_inverse=True)
        matrix = _matrix(rows, wins, np.ones(wins.size), (windows.size, self.builder.width))
        self.builder.rows("Σ b ≥ 1", matrix, 1.0, np.inf)


_ONE = np.ones(1)


def _numbers(block: VariableBlock) -> IntArray:
    return np.arange(block.start, block.start + block.size, dtype=np.int64)


def _matrix(rows: IntArray, columns: IntArray, values: FloatArray, shape: tuple[int, int]) -> SparseMatrix:
    return sparse.csr_array(sparse.coo_array((values, (rows, columns)), shape=shape))
