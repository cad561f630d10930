"""The parts of the objective: marginal softmax, sparsity of the scores, budget rows."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from oamip_onnx.formulation.program import (
    LOGITS,
    FloatArray,
    IntArray,
    ProgramBuilder,
    SparseMatrix,
    VariableBlock,
)


def add_logits(
    builder: ProgramBuilder,
    matrix: SparseMatrix,
    constant: FloatArray,
    limits: tuple[FloatArray, FloatArray] | None = None,
) -> VariableBlock:
    """Add the logits q as variables with the rows ``q = matrix · x + constant``; return their block.

    Parameters
    ----------
    builder
        Holds the variables x, the columns of `matrix`.
    matrix, constant
        Logits of all samples one after the other, shape (samples·classes, …).
    limits
        Smallest and largest value of each logit (the anchor ``|q - q⁰| ≤ δ``); none by default.
    """
    before = builder.width
    lower, upper = limits if limits is not None else (np.full(constant.size, -np.inf), np.full(constant.size, np.inf))
    block = builder.variables(LOGITS, constant.size, lower, upper)
    own = sparse.hstack(
        [
            sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), shape=(constant.size, before)),
            -sparse.eye_array(constant.size),
        ],
        format="csr",
    )
    builder.rows(LOGITS, sparse.csr_array(own), -constant, -constant)
    return block


def add_marginal_softmax(
    builder: ProgramBuilder, logits: VariableBlock, targets: FloatArray, weight: float
) -> VariableBlock:
    """Add the mean marginal softmax to the objective; return the block of the losses T.

    With targets p_i (one-hot for a label y_i, a distribution for soft labels) it is

        weight/n · Σ_i [T_i - p_iᵀ q_i],    T_i ≥ log Σ_c exp q_ic.

    For one-hot targets this is the paper's marginal softmax ``log Σ_c exp q_ic - q_{i,y_i}`` (ElAraby, Wolf, Carvalho
    2020, arXiv 2002.07259).

    Parameters
    ----------
    builder, logits
        The program and the block of its logits, (samples·classes) long.
    targets
        p, shape (samples, classes).
    weight
        λ.
    """
    samples, classes = targets.shape
    losses = builder.variables("losses", samples, -np.inf, np.inf)
    columns = np.arange(samples * classes, dtype=np.int64) + logits.start
    epigraph = np.arange(samples, dtype=np.int64) + losses.start
    builder.log_sum_exp(epigraph, columns.reshape(samples, classes))
    builder.cost(epigraph, weight / samples)
    builder.cost(columns, -weight / samples * targets.reshape(-1))
    return losses


def add_mean_scores(
    builder: ProgramBuilder, scores: VariableBlock, group_of_unit: IntArray, weights: FloatArray | None = None
) -> None:
    """Add ``Σ_l mean_{g∈l} w_g s_g`` to the objective, the paper's sparsity term; w = 1 by default.

    With ``w = 1/(s + ε)`` of an earlier solution this is one step of the reweighted l1 scheme.
    """
    share = 1.0 / np.bincount(group_of_unit)[group_of_unit]
    factor = share if weights is None else share * weights
    builder.cost(np.arange(scores.size) + scores.start, factor)


def add_largest_means(builder: ProgramBuilder, scores: VariableBlock, group_of_unit: IntArray) -> None:
    """Add the sum of the K - 1 largest of the K layer means of (s - 2), as the authors' code does.

    The sum of the k largest of m_1 … m_K is ``min kθ + Σ_l u_l`` with ``u_l ≥ m_l - θ``, ``u_l ≥ 0``. With a single
    layer, its mean is taken.
    """
    groups = int(group_of_unit.max()) + 1
    count = max(groups - 1, 1)
    threshold = builder.variables("largest threshold", 1, -np.inf, np.inf)
    excess = builder.variables("largest excess", groups, 0.0, np.inf)
    share = 1.0 / np.bincount(group_of_unit)[group_of_unit]
    rows = np.concatenate([np.arange(groups), np.arange(groups), group_of_unit])
    columns = np.concatenate(
        [
            np.arange(groups) + excess.start,
            np.full(groups, threshold.start),
            np.arange(scores.size) + scores.start,
        ]
    )
    values = np.concatenate([np.ones(2 * groups), -share])
    matrix = sparse.coo_array((values, (rows, columns)), shape=(groups, builder.width))
    # u_l + θ - mean s ≥ -2
    builder.rows("largest layer means", sparse.csr_array(matrix), -2.0, np.inf)
    builder.cost([threshold.start], count)
    builder.cost(np.arange(groups) + excess.start, 1.0)


def add_budget(
    builder: ProgramBuilder, scores: VariableBlock, costs: FloatArray, limit: float, *, equal: bool = False
) -> None:
    """Add the budget row ``Σ_g cost_g s_g ≤ limit``, or ``= limit`` if `equal`."""
    columns = np.arange(scores.size) + scores.start
    matrix = sparse.coo_array((costs, (np.zeros(scores.size, np.int64), columns)), shape=(1, builder.width))
    builder.rows("budget", sparse.csr_array(matrix), limit if equal else -np.inf, limit)


def add_group_widths(
    builder: ProgramBuilder, scores: VariableBlock, group_of_unit: IntArray, widths: Sequence[int]
) -> None:
    """Add one row ``Σ_{g∈l} s_g = widths[l]`` per group."""
    columns = np.arange(scores.size) + scores.start
    matrix = sparse.coo_array((np.ones(scores.size), (group_of_unit, columns)), shape=(len(widths), builder.width))
    target = np.asarray(widths, np.float64)
    builder.rows("group widths", sparse.csr_array(matrix), target, target)
