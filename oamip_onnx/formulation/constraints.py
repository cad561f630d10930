"""Constraint families: what each layer type becomes in each form of the joint program.

Notation: a = W h + b is the pre-activation, L ≤ a ≤ U its bounds, U⁺ = max(U, 0), s ∈ [0, 1] the score that all samples
and positions of a unit share, v ∈ {0, 1} the state of a ReLU, ζ ∈ {0, 1} the winner of a max-pool, a⁰ what the original
network computes. A tensor is handed on as an affine expression of the program's variables, so that what is affine costs
neither variables nor rows: fully connected layers, convolutions (a feature map's cells share its unit, so its score),
average pooling, batch normalisation, residual addition, concatenation, flattening and the last layer are all `affine`,
with the matrices that `operators` makes. What depends on no score is known exactly.

`SHIFT_FORM` and `GATE_FORM` are the tables from layer type to constraint; override entries with
`JointOptions.constraints`. Source of the shift form: ElAraby, Wolf, Carvalho, "Optimizing ANN Architectures using
Mixed-Integer Programming", 2020, arXiv 2002.07259.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import sparse

from oamip_onnx.channels import FIXED
from oamip_onnx.formulation.expressions import BoolArray, Expression, placed
from oamip_onnx.formulation.network import Affine, MaxPool, Relu, Shift, pooled
from oamip_onnx.formulation.program import FloatArray, IntArray, SparseMatrix, value_range, widened
from oamip_onnx.formulation.rows import ACTIVATIONS, STATES, WINNERS, SampleRows

Constraint = Callable[[SampleRows, Any, Sequence[Expression]], Expression]
"""Adds the rows of one layer in one sample, from its inputs' expressions; returns the expression of its output."""

# Rounding in interval sums; a row that holds by less is kept.
_ROUNDING = 1e-12


def affine(rows: SampleRows, layer: Affine, inputs: Sequence[Expression]) -> Expression:
    """State ``a = Σ_k W_k h_k + b``, without rows; a scored bias (a batch norm's behind a ReLU) becomes b·s."""
    width = max(e.matrix.shape[1] for e in inputs)
    constant = layer.bias.copy()
    matrix: SparseMatrix = sparse.csr_array((layer.size, width))
    for source, weights in zip(inputs, layer.matrices, strict=True):
        matrix = sparse.csr_array(matrix + weights @ widened(source.matrix, width))
        constant += np.asarray(weights @ source.constant)
    if layer.bias_units is None:
        return Expression(matrix, constant)
    cells = np.flatnonzero(layer.bias_units != FIXED)
    constant[cells] -= layer.bias[cells]
    return Expression(matrix, constant).plus(cells, rows.score_columns(layer.bias_units[cells]), layer.bias[cells])


def relu_shift(rows: SampleRows, layer: Relu, inputs: Sequence[Expression]) -> Expression:
    """State ``h = ReLU(a - (1 - s)U⁺)`` by the authors' rows.

        h ≥ 0;   h ≤ v U⁺;   h ≥ a - (1 - s)U⁺;   h ≤ a - (1 - s)U⁺ - (1 - v)L

    with L - U⁺ for L in the last row and ``L ≤ a ≤ U`` added in the valid version (a trust region). ``L ≥ 0`` decides
    v = 1, and then h *is* a - (1 - s)U⁺ and needs no variable (in the valid version only of unscored cells: removal
    itself lowers the others); ``U ≤ 0`` decides h = 0. In the first layer U = L = a⁰, which gives h = s·ReLU(a⁰).
    """
    (before,) = inputs
    tensor, scored = layer.input, layer.units != FIXED
    on, open_ = shift_states(rows, layer)
    live = on | open_
    upper = np.where(live & scored, rows.upper(tensor), 0.0)
    cells = np.flatnonzero(live & scored)
    shifted = before.shifted(-upper).plus(cells, rows.score_columns(layer.units[cells]), upper[cells])
    on_cells, open_cells = np.flatnonzero(on), np.flatnonzero(open_)
    rows.add("relu on: h ≥ 0", shifted.pick(on_cells), 0.0, np.inf)
    rows.add("relu on: h ≤ U", shifted.pick(on_cells), -np.inf, np.maximum(rows.upper(tensor)[on], 0.0))
    if rows.inactive_rows:
        off = np.flatnonzero(rows.depends(tensor) & ~live)
        rows.add("relu off: L ≤ a ≤ 0", before.pick(off), rows.lower(tensor)[off], 0.0)
    _trust_region(rows, tensor, before, np.flatnonzero(rows.depends(tensor)))
    lower = rows.lower(tensor)[open_]
    if rows.trust_region:
        lower = lower - upper[open_]
    h = _open_relu(rows, layer, shifted.pick(open_cells), open_cells, lower)
    return placed([(on_cells, shifted.pick(on_cells)), (open_cells, h), *_exact(rows, layer)], layer.size)


def relu_gate(rows: SampleRows, layer: Relu, inputs: Sequence[Expression]) -> Expression:
    """State ``h = s·ReLU(a)``, removal itself where s is binary, by the McCormick rows of the product.

        0 ≤ h ≤ sU⁺;   h ≥ a - (1 - s)U⁺

    and, where ``L ≥ 0``, the hull's other half ``h ≥ sL; h ≤ a - (1 - s)L``; elsewhere ``h ≤ a - (1 - v)L; h ≤ vU⁺``.
    Bounds must hold for every score (`score_aware_bounds`). Exact for binary s, a valid relaxation between.
    """
    (before,) = inputs
    lower, upper, scored = rows.lower(layer.input), rows.upper(layer.input), layer.units != FIXED
    live = rows.depends(layer.input) & (upper > 0)
    through = np.flatnonzero(live & ~scored & (lower >= 0))
    unscored = np.flatnonzero(live & ~scored & (lower < 0))
    plain = _open_relu(rows, layer, before.pick(unscored), unscored, lower[unscored])
    gated = np.flatnonzero(live & scored)
    h_columns = rows.new(ACTIVATIONS, layer.output, gated, upper[gated])
    h = Expression.of_columns(h_columns)
    a, top = before.pick(gated), upper[gated]
    own, score = np.arange(gated.size), rows.score_columns(layer.units[gated])
    rows.add("gate: h ≤ sU", h.plus(own, score, -top), -np.inf, 0.0)
    rows.add("gate: h ≥ a - (1 - s)U", h.minus(a).plus(own, score, -top), -top, np.inf)
    on, open_ = np.flatnonzero(lower[gated] >= 0), np.flatnonzero(lower[gated] < 0)
    low = lower[gated][on]
    count = np.arange(on.size)
    rows.add("gate on: h ≥ sL", h.pick(on).plus(count, score[on], -low), 0.0, np.inf)
    difference = h.pick(on).minus(a.pick(on))
    rows.add("gate on: h ≤ a - (1 - s)L", difference.plus(count, score[on], -low), -np.inf, -low)
    low, count = lower[gated][open_], np.arange(open_.size)
    v = rows.new(STATES, layer.output, gated[open_], 1.0)
    difference = h.pick(open_).minus(a.pick(open_))
    rows.add("gate open: h ≤ a - (1 - v)L", difference.plus(count, v, -low), -np.inf, -low)
    rows.add("gate open: h ≤ vU", h.pick(open_).plus(count, v, -top[open_]), -np.inf, 0.0)
    parts = [(gated, h), (unscored, plain), (through, before.pick(through))]
    return placed([*parts, *_exact(rows, layer)], layer.size)


def linear_shift(rows: SampleRows, layer: Shift, inputs: Sequence[Expression]) -> Expression:
    """State ``h = a - (1 - s)U``: a scored tensor without a ReLU; s·a⁰ where a is known exactly."""
    (before,) = inputs
    upper, depends = rows.upper(layer.input), rows.depends(layer.input)
    cells = np.flatnonzero(layer.units != FIXED)
    _trust_region(rows, layer.input, before, cells[depends[cells]])
    constant = before.constant.copy()
    constant[cells] = np.where(depends, constant - upper, 0.0)[cells]
    slope = np.where(depends, upper, before.constant)[cells]
    return Expression(before.matrix, constant).plus(cells, rows.score_columns(layer.units[cells]), slope)


def linear_gate(rows: SampleRows, layer: Shift, inputs: Sequence[Expression]) -> Expression:
    """State ``h = s·a`` by ``sL ≤ h ≤ sU; a - (1 - s)U ≤ h ≤ a - (1 - s)L``; it is s·a⁰ where a is known."""
    (before,) = inputs
    scored, depends = layer.units != FIXED, rows.depends(layer.input)
    known, gated = np.flatnonzero(scored & ~depends), np.flatnonzero(scored & depends)
    low, high = np.minimum(rows.lower(layer.input), 0.0)[gated], np.maximum(rows.upper(layer.input), 0.0)[gated]
    h = Expression.of_columns(rows.new(ACTIVATIONS, layer.output, gated, high, lower=low))
    low, high = rows.lower(layer.input)[gated], rows.upper(layer.input)[gated]
    own, score = np.arange(gated.size), rows.score_columns(layer.units[gated])
    difference = h.minus(before.pick(gated))
    rows.add("gate: h ≤ sU", h.plus(own, score, -high), -np.inf, 0.0)
    rows.add("gate: h ≥ sL", h.plus(own, score, -low), 0.0, np.inf)
    rows.add("gate: h ≥ a - (1 - s)U", difference.plus(own, score, -high), -high, np.inf)
    rows.add("gate: h ≤ a - (1 - s)L", difference.plus(own, score, -low), -np.inf, -low)
    scaled = _scaled(rows, layer.units[known], before.constant[known])
    rest = np.flatnonzero(~scored)
    return placed([(rest, before.pick(rest)), (known, scaled), (gated, h)], layer.size)


def max_pool_at_winner(rows: SampleRows, layer: MaxPool, inputs: Sequence[Expression]) -> Expression:
    """State ``z = h_w`` with w the forward pass's argmax, and ``h_p ≤ h_w`` for the others: ζ fixed.

    Behind an exact layer the scores of a window are one score, so that its winner never changes and the rows vanish.
    """
    (before,) = inputs
    winners, pairs = _rivals(rows, layer)
    rows.add("max-pool: h_p ≤ h_argmax", before.pick(pairs[0]).minus(before.pick(pairs[1])), 0.0, np.inf)
    return before.pick(winners)


def max_pool(rows: SampleRows, layer: MaxPool, inputs: Sequence[Expression]) -> Expression:
    """State ``z = max_p h_p`` with binary winners, dropped where bounds decide.

        z ≥ h_p;   z ≤ h_p + (1 - ζ_p)(max_{p'≠p} U_{p'} - L_p);   Σ_p ζ_p = 1

    U and L are those of the pooled tensor; behind a scored ReLU they are U⁺ and 0.
    """
    (before,) = inputs
    winners, pairs = _rivals(rows, layer)
    difference = before.pick(pairs[0]).minus(before.pick(pairs[1]))
    smallest, _ = value_range(difference.matrix, *rows.builder.bounds())
    beaten = smallest + difference.constant >= -_ROUNDING
    settled = np.unique(pairs[:, beaten], axis=1)
    undecided = np.zeros(layer.size, np.bool_)
    candidates: list[IntArray] = []
    beats = {(int(w), int(p)) for w, p in settled.T}
    for output, window in enumerate(layer.windows):
        winner = int(winners[output])
        rivals = [int(p) for p in window if p >= 0 and p != winner and (winner, int(p)) not in beats]
        if rivals:
            undecided[output] = True
            candidates.append(np.array([winner, *rivals], np.int64))
    open_, decided = np.flatnonzero(undecided), np.flatnonzero(~undecided)
    z = _open_pool(rows, layer, before, open_, candidates)
    return placed([(decided, before.pick(winners[decided])), (open_, z)], layer.size)


SHIFT_FORM: Mapping[type, Constraint] = MappingProxyType(
    {Affine: affine, Relu: relu_shift, Shift: linear_shift, MaxPool: max_pool_at_winner}
)
GATE_FORM: Mapping[type, Constraint] = MappingProxyType(
    {Affine: affine, Relu: relu_gate, Shift: linear_gate, MaxPool: max_pool}
)


def shift_states(rows: SampleRows, layer: Relu) -> tuple[BoolArray, BoolArray]:
    """Return which cells of a ReLU the bounds decide on, and which they leave open; shape (cells,) each."""
    return decide(
        rows.lower(layer.input),
        rows.upper(layer.input),
        rows.depends(layer.input),
        layer.units != FIXED,
        lowered_by_removal=rows.trust_region,
    )


def decide(
    lower: FloatArray, upper: FloatArray, depends: BoolArray, scored: BoolArray, *, lowered_by_removal: bool
) -> tuple[BoolArray, BoolArray]:
    """Return where ``L ≥ 0`` decides a ReLU on, and where it is open; the rest is off or known exactly.

    `lowered_by_removal` says that the bounds hold for every solution, as in the valid version: removal itself lowers a
    scored activation then, so that ``L ≥ 0`` decides unscored cells only.
    """
    open_ = (lower < 0) & (upper > 0)
    if lowered_by_removal:
        open_ = open_ | ((upper > 0) & scored)
    return np.asarray((upper > 0) & ~open_ & depends), np.asarray(open_ & depends)


def _trust_region(rows: SampleRows, tensor: str, before: Expression, cells: IntArray) -> None:
    if rows.trust_region:
        low, high = rows.lower(tensor)[cells], rows.upper(tensor)[cells]
        rows.add("trust region: L ≤ a ≤ U", before.pick(cells), low, high)


def _open_relu(rows: SampleRows, layer: Relu, before: Expression, cells: IntArray, lower: FloatArray) -> Expression:
    """Add ``h ≥ a; h ≤ a - (1 - v)L; h ≤ vU⁺`` for open cells, `before` being what the ReLU reads; return h."""
    if not cells.size:
        return Expression.of_constant(np.zeros(0))
    upper = rows.upper(layer.input)[cells]
    h = Expression.of_columns(rows.new(ACTIVATIONS, layer.output, cells, upper))
    v, own = rows.new(STATES, layer.output, cells, 1.0), np.arange(cells.size)
    difference = h.minus(before)
    rows.add("relu open: h ≥ a", difference, 0.0, np.inf)
    rows.add("relu open: h ≤ a - (1 - v)L", difference.plus(own, v, -lower), -np.inf, -lower)
    rows.add("relu open: h ≤ vU", h.plus(own, v, -upper), -np.inf, 0.0)
    return h


def _exact(rows: SampleRows, layer: Relu) -> list[tuple[IntArray, Expression]]:
    """Return ``s·ReLU(a⁰)`` of scored cells, ``ReLU(a⁰)`` of others, where a depends on no score."""
    value = np.maximum(rows.original(layer.input), 0.0)
    known = ~rows.depends(layer.input) & (value > 0)
    scored, rest = np.flatnonzero(known & (layer.units != FIXED)), np.flatnonzero(known & (layer.units == FIXED))
    return [(scored, _scaled(rows, layer.units[scored], value[scored])), (rest, Expression.of_constant(value[rest]))]


def _scaled(rows: SampleRows, units: IntArray, values: FloatArray) -> Expression:
    """Return ``s·value`` of each cell, given its unit."""
    return Expression.of_constant(np.zeros(units.size)).plus(np.arange(units.size), rows.score_columns(units), values)


def _rivals(rows: SampleRows, layer: MaxPool) -> tuple[IntArray, IntArray]:
    """Return each window's winner in the original, (windows,), and all pairs of (winner, other cell), (2, pairs)."""
    winners = pooled(rows.original(layer.input)[None], layer.windows)[1][0]
    window, position = np.nonzero((layer.windows >= 0) & (layer.windows != winners[:, None]))
    pairs = np.stack([winners[window], layer.windows[window, position]])
    return winners, np.asarray(np.unique(pairs, axis=1), np.int64)


def _open_pool(
    rows: SampleRows, layer: MaxPool, before: Expression, outputs: IntArray, candidates: list[IntArray]
) -> Expression:
    """Add the rows of the windows whose winner is open; return z."""
    if not outputs.size:
        return Expression.of_constant(np.zeros(0))
    lower, upper = rows.lower(layer.input), rows.upper(layer.input)
    counts = np.array([len(c) for c in candidates])
    owner, cells = np.repeat(np.arange(outputs.size), counts), np.concatenate(candidates)
    top = np.array([upper[c].max() for c in candidates])
    bottom = np.array([lower[c].max() for c in candidates])
    z = Expression.of_columns(rows.new(ACTIVATIONS, layer.output, outputs, top, lower=bottom))
    winners = rows.new(WINNERS, layer.output, outputs[owner], 1.0, positions=cells)
    others = np.concatenate([[np.delete(upper[c], k).max() for k in range(len(c))] for c in candidates])
    reach = np.maximum(others - lower[cells], 0.0)
    difference = z.pick(owner).minus(before.pick(cells))
    rows.add("max-pool: z ≥ h_p", difference, 0.0, np.inf)
    own = np.arange(cells.size)
    rows.add("max-pool: z ≤ h_p + (1 - ζ)M", difference.plus(own, winners, reach), -np.inf, reach)
    total = Expression.of_constant(np.zeros(outputs.size)).plus(owner, winners, 1.0)
    rows.add("max-pool: Σ ζ = 1", total, 1.0, 1.0)
    return z
