"""The joint OAMIP program in shift form.

Source: ElAraby, Wolf, Carvalho, "Optimizing ANN Architectures using Mixed-Integer Programming", 2020, arXiv 2002.07259.
With a = W h + b the pre-activation, L ≤ a ≤ U its bounds, U⁺ = max(U, 0), s ∈ [0, 1] the score that all samples and
positions of a unit share, and v ∈ {0, 1} the state of the ReLU, a scored activation is ``h = ReLU(a - (1 - s)U⁺)``:

    h ≥ 0;   h ≤ v U⁺;   h ≥ a - (1 - s)U⁺;   h ≤ a - (1 - s)U⁺ - (1 - v)L.

`L ≥ 0` decides v = 1, and then h *is* ``a - (1 - s)U⁺``: it needs no variable and is substituted. `U ≤ 0` decides
h = 0. What depends on no score (the first layer) is known exactly: there U = L = a, which gives ``h = s·ReLU(a)``, and
this stays linear through pools, reshapes and the next affine map. In the end only scores, undecided activations and
logits are variables.

Where the bounds come from the box around each sample, they are not valid once upstream units go: the rows act as a
trust region (an active unit: s ≥ 1 - a/U for every sample), and a 0/1 mask on live units is infeasible.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.formulation.bounds import Bounds, interval_bounds, trust_region_bounds
from oamip_onnx.formulation.encoding import SampleEncoder
from oamip_onnx.formulation.expressions import depends_on_scores
from oamip_onnx.formulation.network import MaxPool, Network, Relu, Respond, Shift, scores_of
from oamip_onnx.formulation.objective import (
    add_budget,
    add_largest_means,
    add_logits,
    add_marginal_softmax,
    add_mean_scores,
)
from oamip_onnx.formulation.options import ShiftOptions
from oamip_onnx.formulation.program import FloatArray, IntArray, Program, ProgramBuilder
from oamip_onnx.formulation.states import ReluStates, decide_states


def shift_program(
    network: Network,
    feeds: Mapping[str, npt.NDArray[np.generic]],
    labels: IntArray,
    options: ShiftOptions | None = None,
) -> Program:
    """Return the joint program of the samples; its blocks are scores, activations, states, logits and losses.

        min λ/n Σ_i [T_i - q_{i,y_i}] + Σ_l mean_{g∈l} s_g,    T_i ≥ log Σ_c exp q_ic

    over the rows in the module's docstring. `Program.start` is the original network, every score at 1, unless a budget
    cuts it off.

    Parameters
    ----------
    network, feeds
        The network and its samples.
    labels
        Class y of each sample, shape (samples,): the true one or the model's own prediction.
    options
        Settings; the paper's λ and ε without them.

    Raises
    ------
    SolverError
        If the program would have too many coefficients for the solvers here.
    """
    options = options or ShiftOptions()
    values = network.forward(feeds)
    depends = depends_on_scores(network)
    bounds = shift_bounds(network, feeds, values, options)
    states = decide_states(network, bounds, depends, lowered_by_removal=options.trust_radius is not None)
    builder = ProgramBuilder("shift form")
    encoder = SampleEncoder(
        builder, network, values=values, bounds=bounds, depends=depends, states=states, options=options
    )
    samples, classes = values[network.logits].shape
    expressions = [encoder.encode(i) for i in range(samples)]
    original = values[network.logits].reshape(-1)
    limits = None if options.anchor is None else (original - options.anchor, original + options.anchor)
    matrix = sparse.csr_array(sparse.vstack([e.matrix for e in expressions], format="csr"))
    logits = add_logits(builder, matrix, np.concatenate([e.constant for e in expressions]), limits)
    add_marginal_softmax(builder, logits, np.eye(classes)[labels], options.loss_weight)
    if options.layer_rescale == "largest":
        add_largest_means(builder, encoder.scores, network.group_of_unit)
    else:
        add_mean_scores(builder, encoder.scores, network.group_of_unit, options.weights)
    if options.budget is not None:
        costs = np.ones(network.unit_count) if options.costs is None else options.costs
        add_budget(builder, encoder.scores, costs, options.budget)
    builder.notes += _notes(network, states, shrunk=bounds.lower is bounds.upper)
    program = builder.build()
    if options.budget is not None:
        return program
    return replace(program, start=_original(program, network, values, states))


def shift_bounds(
    network: Network,
    feeds: Mapping[str, npt.NDArray[np.generic]],
    values: Mapping[str, FloatArray],
    options: ShiftOptions,
) -> Bounds:
    """Return the bounds that the shift form uses with these options; `values` is what `Network.forward` returned.

    Interval bounds widen with depth. Where they leave more than `ShiftOptions.largest_open` states undecided, the box
    is shrunk to the sample itself, U = L = a of the forward pass, which decides every state.
    """
    if options.trust_radius is not None:
        return trust_region_bounds(network, values, options.trust_radius)
    bounds = interval_bounds(network, feeds, options.radius, options.domain)
    states = decide_states(network, bounds, depends_on_scores(network), lowered_by_removal=False)
    return bounds if states.open_count <= options.largest_open else Bounds(values, values)


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


def _original(program: Program, network: Network, values: Mapping[str, FloatArray], states: ReluStates) -> FloatArray:
    """Return the original network as a solution: every score 1, h = ReLU(a), v = [a > 0]."""
    x = np.zeros(program.variable_count)
    x[program.block("scores").columns] = 1.0
    h, v = program.block("activations").start, program.block("states").start
    for layer in network.layers:
        if isinstance(layer, Relu):
            for i, before in enumerate(values[layer.input]):
                numbers, open_ = states.numbers(layer.output, i), states.open[layer.output][i]
                x[numbers + h] = np.maximum(before[open_], 0.0)
                x[numbers + v] = before[open_] > 0
    x[program.block("logits").columns] = values[network.logits].reshape(-1)
    for block in program.blocks:
        if block.name == "largest threshold":
            # Every mean of (s - 2) is -1, so that the threshold is too and nothing exceeds it.
            x[block.columns] = -1.0
    return program.with_tight_losses(x)


def _notes(network: Network, states: ReluStates, *, shrunk: bool) -> list[str]:
    notes = list(network.notes)
    if any(isinstance(layer, MaxPool) for layer in network.layers):
        notes.append("Max-pools are fixed at the winner of the forward pass.")
    if shrunk:
        notes.append("The box around each sample leaves too many ReLU states open; it is shrunk to the sample itself.")
    if states.open_count:
        notes.append(f"The bounds leave {states.open_count} ReLU states open.")
    else:
        notes.append("The bounds decide every ReLU state: the program is convex.")
    return notes
