"""The rows of one sample in shift form, layer by layer; the equations stand in `oamip`."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.channels import FIXED
from oamip_onnx.errors import SolverError
from oamip_onnx.formulation.bounds import Bounds
from oamip_onnx.formulation.expressions import BoolArray, Expression, affine_expression, entries
from oamip_onnx.formulation.network import Affine, MaxPool, Network, Relu, Shift, pooled
from oamip_onnx.formulation.options import ShiftOptions
from oamip_onnx.formulation.program import FloatArray, IntArray, ProgramBuilder, VariableBlock
from oamip_onnx.formulation.states import ReluStates

# Programs with more coefficients than this exceed the memory and patience of the solvers here.
LARGEST_PROGRAM = 40_000_000


class SampleEncoder:
    """Adds the rows of samples to a program.

    Parameters
    ----------
    builder
        The program; scores and undecided variables are made here.
    network, values, bounds, depends, states
        The network, what it computes for the samples, its bounds, which cells depend on scores, the ReLU states.
    options
        Settings of the shift form.
    """

    def __init__(
        self,
        builder: ProgramBuilder,
        network: Network,
        *,
        values: Mapping[str, FloatArray],
        bounds: Bounds,
        depends: Mapping[str, BoolArray],
        states: ReluStates,
        options: ShiftOptions,
    ) -> None:
        self.network, self.values, self.bounds, self.depends = network, values, bounds, depends
        self.states, self.options, self.builder = states, options, builder
        self.scores: VariableBlock = builder.variables("scores", network.unit_count, 0.0, 1.0)
        upper = np.zeros(states.open_count)
        for layer in network.layers:
            if isinstance(layer, Relu):
                for i, open_ in enumerate(states.open[layer.output]):
                    upper[states.numbers(layer.output, i)] = bounds.upper[layer.input][i][open_]
        self.activations = builder.variables("activations", states.open_count, 0.0, upper)
        self._width = builder.width
        self.open_states = builder.variables("states", states.open_count, 0.0, 1.0, binary=True)
        self._nonnegative = {layer.output for layer in network.layers if isinstance(layer, Relu)}
        self._coefficients = 0

    def encode(self, i: int) -> Expression:
        """Add the rows of sample i; return the expression of its logits.

        Raises
        ------
        SolverError
            If the program exceeds `LARGEST_PROGRAM` coefficients.
        """
        known = {n: Expression.of_constant(self.values[n][i], self._width) for n in self.network.inputs}
        for layer in self.network.layers:
            if isinstance(layer, Affine):
                known[layer.output] = affine_expression(layer, [known[n] for n in layer.inputs], self.scores.start)
            elif isinstance(layer, MaxPool):
                known[layer.output] = self._max_pool(layer, known[layer.input], i)
            elif isinstance(layer, Relu):
                known[layer.output] = self._relu(layer, known[layer.input], i)
            else:
                known[layer.output] = self._shift(layer, known[layer.input], i)
        return known[self.network.logits]

    def _shift(self, layer: Shift, before: Expression, i: int) -> Expression:
        """Return ``a - (1 - s)U``, and ``s·a`` where a is known exactly."""
        upper, depends = self.bounds.upper[layer.input][i], self.depends[layer.input]
        cells = np.flatnonzero(layer.units != FIXED)
        self._trust_region(before, layer.input, i, cells[depends[cells]])
        constant = before.constant.copy()
        constant[cells] = np.where(depends, constant - upper, 0.0)[cells]
        slope = np.where(depends, upper, before.constant)[cells]
        return Expression(before.matrix, constant).plus(cells, layer.units[cells] + self.scores.start, slope)

    def _relu(self, layer: Relu, before: Expression, i: int) -> Expression:
        """Return ``a - (1 - s)U⁺`` where the ReLU is on, 0 where off, h where open, ``s·ReLU(a)`` where exact."""
        upper = np.maximum(self.bounds.upper[layer.input][i], 0.0)
        scored, depends = layer.units != FIXED, self.depends[layer.input]
        on, open_ = self.states.on[layer.output][i], self.states.open[layer.output][i]
        cells = np.flatnonzero(scored & (on | open_))
        shifted = Expression(before.matrix, before.constant - np.where(scored & (on | open_), upper, 0.0)).plus(
            cells, layer.units[cells] + self.scores.start, upper[cells]
        )
        self._on_rows(shifted, on, upper)
        self._off_rows(before, layer.input, i, np.flatnonzero(depends & ~open_ & ~on))
        self._trust_region(before, layer.input, i, np.flatnonzero(on | open_))
        h = self._open_rows(layer, shifted, i)
        exact = np.where(depends, 0.0, np.maximum(before.constant, 0.0))
        result = Expression(
            sparse.csr_array(sparse.diags_array(on.astype(np.float64)) @ shifted.matrix),
            np.where(on, shifted.constant, np.where(scored, 0.0, exact)),
        )
        cells = np.flatnonzero(scored & (exact > 0))
        result = result.plus(cells, layer.units[cells] + self.scores.start, exact[cells])
        return result.plus(np.flatnonzero(open_), h, np.ones(h.size))

    def _on_rows(self, shifted: Expression, on: BoolArray, upper: FloatArray) -> None:
        """Add ``0 ≤ a - (1 - s)U⁺ ≤ U⁺`` for the cells that are on (h ≥ 0 and h ≤ vU⁺ with v = 1)."""
        part = shifted.pick(np.flatnonzero(on))
        self._rows("relu on: h ≥ 0", part, 0.0, np.inf)
        self._rows("relu on: h ≤ U", part, -np.inf, upper[on])

    def _off_rows(self, before: Expression, name: str, i: int, cells: IntArray) -> None:
        """Add ``L ≤ a ≤ 0`` for the cells that are off, where the authors' rows are wanted."""
        if self.options.inactive_rows:
            self._rows("relu off: L ≤ a ≤ 0", before.pick(cells), self.bounds.lower[name][i][cells], 0.0)

    def _trust_region(self, before: Expression, name: str, i: int, cells: IntArray) -> None:
        """Add ``L ≤ a ≤ U``, which makes the bounds valid for every solution."""
        if self.options.trust_radius is not None:
            low, high = self.bounds.lower[name][i][cells], self.bounds.upper[name][i][cells]
            self._rows("trust region: L ≤ a ≤ U", before.pick(cells), low, high)

    def _open_rows(self, layer: Relu, shifted: Expression, i: int) -> IntArray:
        """Add the big-M rows of the open cells; return the columns of their activations.

            h ≤ v U⁺;   h ≥ a - (1 - s)U⁺;   h ≤ a - (1 - s)U⁺ - (1 - v)L

        and L - U⁺ in place of L in the valid version.
        """
        cells, numbers = np.flatnonzero(self.states.open[layer.output][i]), self.states.numbers(layer.output, i)
        h, v = numbers + self.activations.start, numbers + self.open_states.start
        if not cells.size:
            return h
        upper, lower = self.bounds.upper[layer.input][i][cells], self.bounds.lower[layer.input][i][cells]
        if self.options.trust_radius is not None:
            lower = lower - np.where(layer.units[cells] != FIXED, upper, 0.0)
        part, own, ones = shifted.pick(cells), np.arange(cells.size), np.ones(cells.size)
        shape = (cells.size, self.builder.width)
        wide = sparse.csr_array((part.matrix.data, part.matrix.indices, part.matrix.indptr), shape=shape)
        difference = sparse.csr_array(entries(own, h, ones, shape) - wide)
        self.builder.rows("relu open: h ≥ a - (1 - s)U", difference, part.constant, np.inf)
        above = sparse.csr_array(difference - entries(own, v, lower, shape))
        self.builder.rows("relu open: h ≤ a - (1 - s)U - (1 - v)L", above, -np.inf, part.constant - lower)
        state = sparse.csr_array(entries(own, h, ones, shape) - entries(own, v, upper, shape))
        self.builder.rows("relu open: h ≤ vU", state, -np.inf, 0.0)
        return h

    def _max_pool(self, layer: MaxPool, before: Expression, i: int) -> Expression:
        """Fix the winner at the forward pass's argmax: ``z = h_argmax`` with ``h_p ≤ h_argmax`` for the others.

        Behind an exact layer the scores of a window are one score, so that its winner never changes and the rows
        vanish.
        """
        winners = pooled(self.values[layer.input][i : i + 1], layer.windows)[1][0]
        window, position = np.nonzero((layer.windows >= 0) & (layer.windows != winners[:, None]))
        pairs = np.unique(np.stack([winners[window], layer.windows[window, position]]), axis=1)
        if layer.input in self._nonnegative:
            # A ReLU that is off asks for h_argmax ≥ 0 only, which holds already.
            off = (np.diff(before.matrix.indptr) == 0) & (before.constant == 0)
            pairs = pairs[:, ~off[pairs[1]]]
        self._rows("max-pool: h_p ≤ h_argmax", before.pick(pairs[0]).minus(before.pick(pairs[1])), 0.0, np.inf)
        return before.pick(winners)

    def _rows(self, family: str, expression: Expression, lower: npt.ArrayLike, upper: npt.ArrayLike) -> None:
        """Add ``lower ≤ matrix · x + constant ≤ upper``."""
        self._coefficients += int(expression.matrix.nnz)
        if self._coefficients > LARGEST_PROGRAM:
            raise SolverError(
                f"The joint program exceeds {LARGEST_PROGRAM:,} coefficients; give it fewer samples, or use the "
                "response or the layer-wise form."
            )
        low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
        self.builder.rows(family, expression.matrix, low - expression.constant, high - expression.constant)
