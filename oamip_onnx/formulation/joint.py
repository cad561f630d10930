"""The joint OAMIP program: all layers and all samples at once, in shift or in gate form.

    min λ/n Σ_i loss_i + Σ_l mean_{g∈l} s_g    over the rows of `constraints`

Source: ElAraby, Wolf, Carvalho, "Optimizing ANN Architectures using Mixed-Integer Programming", 2020, arXiv 2002.07259.

Where the shift form's bounds come from the box around each sample, they are not valid once upstream units go: the rows
act as a trust region (an active unit: s ≥ 1 - a/U for every sample), and a 0/1 mask on live units is infeasible. The
gate form's bounds hold for every score, and a 0/1 score is removal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.channels import FIXED
from oamip_onnx.formulation.bounds import (
    Bounds,
    interval_bounds,
    propagated,
    score_aware_bounds,
    trust_region_bounds,
)
from oamip_onnx.formulation.constraints import GATE_FORM, SHIFT_FORM, Constraint, decide, max_pool_at_winner
from oamip_onnx.formulation.expressions import Expression, depends_on_scores
from oamip_onnx.formulation.network import MaxPool, Network, Relu, Respond, Shift, scores_of
from oamip_onnx.formulation.objective import (
    add_budget,
    add_group_widths,
    add_hinge,
    add_largest_means,
    add_logits,
    add_marginal_softmax,
    add_mean_scores,
    add_squared_error,
    largest_means,
)
from oamip_onnx.formulation.options import JointOptions
from oamip_onnx.formulation.program import LOGITS, FloatArray, IntArray, Program, ProgramBuilder, VariableBlock, widened
from oamip_onnx.formulation.rows import STATES, WINNERS, CellVariables, SampleRows

Feeds = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class JointProgram:
    """A joint program with what its variables stand for.

    Attributes
    ----------
    program
        The program; its blocks are scores, activations, states, winners, logits and losses.
    network, feeds
        The network and its samples.
    options
        The settings.
    bounds
        The bounds in use, shape (samples, cells) by tensor.
    variables
        What the activations, states and winners stand for.
    open_count
        Number of ReLU states that the bounds leave open.
    """

    program: Program
    network: Network
    feeds: Feeds
    options: JointOptions
    bounds: Bounds
    variables: tuple[CellVariables, ...]
    open_count: int

    def forward(self, scores: FloatArray) -> dict[str, FloatArray]:
        """Return what the network computes in this form at given scores, (units,): every tensor, (samples, cells)."""
        if self.options.form == "gate":
            return self.network.with_scaled_bias(scores).forward(self.feeds, gate_response(scores))
        respond = shift_response(self.network, self.bounds, scores)
        return self.network.with_scaled_bias(scores).forward(self.feeds, respond)

    def point(self, scores: FloatArray) -> FloatArray:
        """Return the full vector of a forward pass at given scores, shape (variables,); a start for solvers.

        It meets every row where the scores lie in what the form covers: any mask in the gate form, the trust region in
        the shift form.
        """
        program, values = self.program, self.forward(scores)
        x = np.zeros(program.variable_count)
        x[program.block("scores").columns] = scores
        for part in self.variables:
            own = values[part.tensor][part.sample][part.cells]
            if part.kind == STATES:
                own = (own > 0).astype(np.float64)
            elif part.kind == WINNERS:
                own = _winners(self.network, values, part)
            x[part.columns] = own
        x[program.block(LOGITS).columns] = values[self.network.logits].reshape(-1)
        for block in program.blocks:
            if block.name == "largest threshold":
                x[block.columns] = self._largest(scores)[0]
            elif block.name == "largest excess":
                x[block.columns] = self._largest(scores)[1]
            elif block.name == "losses" and self.options.loss == "hinge":
                x[block.columns] = self._hinge(x)
        return program.with_tight_losses(x)

    def _largest(self, scores: FloatArray) -> tuple[float, FloatArray]:
        return largest_means(scores, self.network.group_of_unit, self.options.layer_sizes)

    def _hinge(self, x: FloatArray) -> FloatArray:
        (rows,) = (r for r in self.program.rows if r.family == "hinge")
        block = self.program.block("losses")
        missing = rows.lower - rows.matrix @ x
        losses = np.zeros(block.size)
        np.maximum.at(losses, rows.matrix[:, block.columns].indices, missing)
        return losses


def joint_program(
    network: Network,
    feeds: Feeds,
    targets: IntArray | FloatArray,
    options: JointOptions | None = None,
    bounds: Bounds | None = None,
) -> JointProgram:
    """Return the joint program of the samples.

        min λ/n Σ_i [T_i - q_{i,y_i}] + Σ_l mean_{g∈l} s_g,    T_i ≥ log Σ_c exp q_ic

    or with another loss or sparsity term, over the rows of the form. `Program.start` is the original network, every
    score at 1; with planned widths in the gate form it is a mask; with a budget there is none.

    Parameters
    ----------
    network, feeds
        The network and its samples.
    targets
        Class y of each sample, shape (samples,), the true one or the model's own prediction; or probabilities, shape
        (samples, classes); for the squared error what the original computes, (samples, numbers).
    options
        Settings; the paper's λ and ε without them.
    bounds
        Bounds to use in place of those that `joint_bounds` gives.

    Raises
    ------
    SolverError
        If the program would have too many coefficients for the solvers here.
    """
    options = options or JointOptions()
    values = network.forward(feeds)
    depends = depends_on_scores(network)
    bounds = joint_bounds(network, feeds, values, options) if bounds is None else bounds
    builder = ProgramBuilder(f"{options.form} form")
    scores = _scores(builder, network, options)
    rows = SampleRows(
        builder,
        scores,
        values=values,
        bounds=bounds,
        depends=depends,
        trust_region=options.form == "shift" and options.trust_radius is not None,
        inactive_rows=options.inactive_rows,
    )
    table = {**(SHIFT_FORM if options.form == "shift" else GATE_FORM), **(options.constraints or {})}
    expressions = []
    for sample in range(len(values[network.logits])):
        rows.sample = sample
        known = {name: Expression.of_constant(values[name][sample]) for name in network.inputs}
        for layer in network.layers:
            names = (layer.input,) if isinstance(layer, Relu | Shift | MaxPool) else layer.inputs
            known[layer.output] = table[type(layer)](rows, layer, [known[n] for n in names])
        expressions.append(known[network.logits])
    logits = _logits(builder, expressions, values[network.logits], options)
    _objective(builder, scores, logits, targets, network, options)
    open_count = sum(part.cells.size for part in rows.variables if part.kind == STATES)
    builder.notes += _notes(network, table, open_count, shrunk=bounds.lower is bounds.upper)
    joint = JointProgram(builder.build(), network, feeds, options, bounds, tuple(rows.variables), open_count)
    start = _start(joint)
    return joint if start is None else replace(joint, program=replace(joint.program, start=start))


def _start(joint: JointProgram) -> FloatArray | None:
    """Return a point of the program: the original, or with planned widths in the gate form a mask; None elsewhere.

    Any mask of the widths is a point of the gate form; the first units stand for all.
    """
    options, owner = joint.options, joint.network.group_of_unit
    if options.budget is not None:
        return None
    if options.widths is None:
        return joint.point(np.ones(owner.size))
    if options.form != "gate" or options.anchor is not None:
        return None
    place = np.arange(owner.size) - np.searchsorted(owner, owner)
    return joint.point((place < np.asarray(options.widths)[owner]).astype(np.float64))


def joint_bounds(network: Network, feeds: Feeds, values: Mapping[str, FloatArray], options: JointOptions) -> Bounds:
    """Return the bounds that a form uses with these options; `values` is what `Network.forward` returned.

    The gate form takes bounds that hold for every score. The shift form takes interval bounds, which widen with depth:
    where they leave more than `JointOptions.largest_open` states undecided, the box is shrunk to the sample itself,
    U = L = a of the forward pass, which decides every state.
    """
    if options.form == "gate":
        return score_aware_bounds(network, feeds)
    if options.trust_radius is not None:
        region = trust_region_bounds(network, values, options.trust_radius)
        # Pools read tensors behind the activations, whose bounds follow from the region.
        own = network.flatten(feeds)
        behind = propagated(network, own, own, scored=True, known=region)
        return Bounds({**behind.lower, **region.lower}, {**behind.upper, **region.upper})
    bounds = interval_bounds(network, feeds, options.radius, options.domain)
    return bounds if _open_count(network, bounds) <= options.largest_open else Bounds(values, values)


def shift_response(network: Network, bounds: Bounds, scores: FloatArray) -> Respond:
    """Return what scored activations compute in the shift form at these scores, for `Network.forward`.

    ``h = ReLU(a - (1 - s)U⁺)``, 0 where U ≤ 0, and ``s·ReLU(a)`` where a depends on no score.
    """
    depends = depends_on_scores(network)

    def respond(layer: Relu | Shift, before: FloatArray) -> FloatArray:
        score, upper = scores_of(scores, layer.units), bounds.upper[layer.input]
        exact = ~depends[layer.input]
        if isinstance(layer, Shift):
            moved = before - np.where(layer.units >= 0, (1 - score) * upper, 0.0)
            return np.asarray(np.where(exact, score * before, moved), np.float64)
        shifted = np.maximum(before - (1 - score) * np.maximum(upper, 0.0), 0.0)
        inexact = np.where(upper <= 0, 0.0, shifted)
        return np.asarray(np.where(exact, score * np.maximum(before, 0.0), inexact), np.float64)

    return respond


def gate_response(scores: FloatArray) -> Respond:
    """Return what scored activations compute in the gate form, ``h = s·ReLU(a)``, for `Network.forward`.

    The biases that belong to a unit take its score in `Network.with_scaled_bias`.
    """

    def respond(layer: Relu | Shift, before: FloatArray) -> FloatArray:
        active = np.maximum(before, 0.0) if isinstance(layer, Relu) else before
        return np.asarray(scores_of(scores, layer.units) * active, np.float64)

    return respond


def _scores(builder: ProgramBuilder, network: Network, options: JointOptions) -> VariableBlock:
    binary = False if options.binary_scores is None else options.binary_scores
    return builder.variables("scores", network.unit_count, 0.0, 1.0, binary=binary)


def _logits(
    builder: ProgramBuilder, expressions: list[Expression], original: FloatArray, options: JointOptions
) -> VariableBlock:
    flat = original.reshape(-1)
    limits = None if options.anchor is None else (flat - options.anchor, flat + options.anchor)
    matrix = sparse.vstack([widened(e.matrix, builder.width) for e in expressions], format="csr")
    return add_logits(builder, sparse.csr_array(matrix), np.concatenate([e.constant for e in expressions]), limits)


def _objective(
    builder: ProgramBuilder,
    scores: VariableBlock,
    logits: VariableBlock,
    targets: IntArray | FloatArray,
    network: Network,
    options: JointOptions,
) -> None:
    owner, sizes = network.group_of_unit, options.layer_sizes
    if options.loss == "squared-error":
        add_squared_error(builder, logits, np.asarray(targets, np.float64), options.loss_weight)
    elif options.loss == "hinge":
        labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
        add_hinge(builder, logits, np.asarray(labels, np.int64), options.loss_weight)
    else:
        classes = logits.size // len(targets)
        soft = np.eye(classes)[np.asarray(targets, np.int64)] if targets.ndim == 1 else targets
        add_marginal_softmax(builder, logits, np.asarray(soft, np.float64), options.loss_weight)
    if options.widths is not None:
        add_group_widths(builder, scores, owner, options.widths)
    elif options.layer_rescale == "largest":
        add_largest_means(builder, scores, owner, sizes)
    else:
        add_mean_scores(builder, scores, owner, options.weights, sizes)
    if options.budget is not None:
        costs = np.ones(network.unit_count) if options.costs is None else options.costs
        add_budget(builder, scores, costs, options.budget)


def _open_count(network: Network, bounds: Bounds) -> int:
    depends = depends_on_scores(network)
    count = 0
    for layer in network.layers:
        if isinstance(layer, Relu):
            lower, upper = bounds.lower[layer.input], bounds.upper[layer.input]
            scored = layer.units != FIXED
            count += int(decide(lower, upper, depends[layer.input], scored, lowered_by_removal=False)[1].sum())
    return count


def _winners(network: Network, values: Mapping[str, FloatArray], part: CellVariables) -> FloatArray:
    """Return ζ: 1 at the first of the largest candidates of each window, 0 elsewhere."""
    assert part.positions is not None  # noqa: S101 - winners always carry them
    (source,) = (layer.input for layer in network.layers if layer.output == part.tensor)  # type: ignore[union-attr]
    candidates = values[source][part.sample][part.positions]
    order = np.lexsort((np.arange(candidates.size), -candidates, part.cells))
    first = np.unique(part.cells[order], return_index=True)[1]
    winners = np.zeros(candidates.size)
    winners[order[first]] = 1.0
    return winners


def _notes(network: Network, table: Mapping[type, Constraint], open_count: int, *, shrunk: bool) -> list[str]:
    notes = list(network.notes)
    pools = any(isinstance(layer, MaxPool) for layer in network.layers)
    if pools and table[MaxPool] is max_pool_at_winner:
        notes.append("Max-pools are fixed at the winner of the forward pass.")
    if shrunk:
        notes.append("The box around each sample leaves too many ReLU states open; it is shrunk to the sample itself.")
    if open_count:
        notes.append(f"The bounds leave {open_count} ReLU states open.")
    else:
        notes.append("The bounds decide every ReLU state: the program is convex.")
    return notes
