"""OAMIP in response form: the network's own responses in place of encoded layers.

Measure once, by forward passes, the change Δ_{g,i} of sample i's logits when unit g alone is removed. With the
original's probabilities p_i as soft labels and q⁰_i the logits now, solve

    min 1/n Σ_i [log Σ_c exp q_ic − p_iᵀ q_i],    q_i = q⁰_i + Σ_g (1 − s_g) Δ_{g,i},
    0 ≤ s ≤ 1,    Σ_{g∈l} s_g = k_l.

This is OAMIP's objective under simultaneous removal: convex, joint over all layers, for any graph, without an operator
to encode, and exact for one unit. Models that do not classify take the squared error to the original's outputs.

Around a subset that is removed already, Δ of a removed unit is the change when it comes back, and
``q_i = q⁰_i + Σ_{g alive} (1 − s_g) Δ_{g,i} + Σ_{g gone} s_g Δ_{g,i}``. A row that limits the exchange,
``Σ_{g alive} (1 − s_g) + Σ_{g gone} s_g ≤ r``, keeps the solution where the responses hold (a local branching row:
Fischetti and Lodi 2003).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from oamip_onnx.formulation.objective import (
    add_group_widths,
    add_logits,
    add_marginal_softmax,
    add_mean_scores,
    squared_error_scale,
)
from oamip_onnx.formulation.program import FloatArray, IntArray, Program, ProgramBuilder


def response_program(
    task: str,
    base: FloatArray,
    changes: FloatArray,
    targets: FloatArray,
    group_of_unit: IntArray,
    *,
    classifies: bool,
    widths: Sequence[int] | None,
    gone: npt.NDArray[np.bool_] | None = None,
    exchange: float | None = None,
    loss_weight: float = 1.0,
) -> Program:
    """Return the program in the module's docstring; its first variables are the scores.

    Parameters
    ----------
    task
        Name for reports.
    base
        q⁰, shape (samples, classes).
    changes
        Δ, shape (units, samples · classes).
    targets
        The original's probabilities, or its outputs for the squared error; shape (samples, classes).
    group_of_unit
        Group of each unit, shape (units,).
    classifies
        Whether the loss is the cross-entropy, else the squared error relative to the targets' variance.
    widths
        Units that each group keeps; None puts the paper's sparsity term Σ_l mean s in the place of these rows.
    gone
        Which units are removed already, shape (units,); none by default.
    exchange
        r, the most units that may change sides; no such row by default.
    loss_weight
        λ.
    """
    builder = ProgramBuilder(task)
    scores = builder.variables("scores", len(changes), 0.0, 1.0)
    away = np.zeros(len(changes), np.bool_) if gone is None else gone
    sign = np.where(away, 1.0, -1.0)
    if widths is None:
        add_mean_scores(builder, scores, group_of_unit)
    else:
        add_group_widths(builder, scores, group_of_unit, widths)
    if exchange is not None:
        # Σ sign·s ≤ r − (units alive)
        row = sparse.csr_array(sign[None, :])
        builder.rows("exchange", row, -np.inf, exchange - float((~away).sum()))
    matrix = sparse.csr_array((changes * sign[:, None]).T)
    constant = base.ravel() + changes[~away].sum(axis=0)
    if classifies:
        logits = add_logits(builder, matrix, constant)
        add_marginal_softmax(builder, logits, targets, loss_weight)
    else:
        scale = np.sqrt(loss_weight) * squared_error_scale(targets)
        builder.squares(sparse.csr_array(matrix * scale), scale * (targets.ravel() - constant))
    program = builder.build()
    return program if widths is not None else replace(program, start=_all_scores_at_one(program, len(changes)))


def _all_scores_at_one(program: Program, units: int) -> FloatArray:
    x = np.zeros(program.variable_count)
    x[:units] = 1.0
    defined = program.defined_logits()
    if defined is not None:
        block, matrix, constant = defined
        x[block.columns] = matrix @ x + constant
    return program.with_tight_losses(x)
