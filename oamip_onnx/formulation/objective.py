"""The parts of the objective: the losses, sparsity of the scores, budget rows."""

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


def add_hinge(builder: ProgramBuilder, logits: VariableBlock, labels: IntArray, weight: float) -> VariableBlock:
    """Add the mean hinge loss to the objective; return the block of the losses T.

        weight/n · Σ_i T_i,    T_i ≥ 0,    T_i ≥ 1 + q_ic - q_{i,y_i} for every c ≠ y_i

    (Crammer and Singer 2001). It is linear, so that programs with binaries need no tangents.

    Parameters
    ----------
    builder, logits
        The program and the block of its logits, (samples·classes) long.
    labels
        y, shape (samples,).
    weight
        λ.
    """
    samples, classes = len(labels), logits.size // len(labels)
    losses = builder.variables("losses", samples, 0.0, np.inf)
    sample, other = np.nonzero(np.arange(classes) != labels[:, None])
    rows = np.arange(sample.size)
    first = sample * classes + logits.start
    columns = np.concatenate([sample + losses.start, first + other, first + labels[sample]])
    values = np.concatenate([np.ones(rows.size), -np.ones(rows.size), np.ones(rows.size)])
    matrix = sparse.coo_array((values, (np.tile(rows, 3), columns)), shape=(rows.size, builder.width))
    builder.rows("hinge", sparse.csr_array(matrix), 1.0, np.inf)
    builder.cost(np.arange(samples) + losses.start, weight / samples)
    return losses


def add_squared_error(builder: ProgramBuilder, logits: VariableBlock, targets: FloatArray, weight: float) -> None:
    """Add ``weight · Σ (q - t)² / (count · Var t)`` to the objective, the error relative to the targets' variance.

    Parameters
    ----------
    builder, logits
        The program and the block of the outputs q.
    targets
        t, what the original computes, of the same size as q.
    weight
        λ.
    """
    scale = np.sqrt(weight) * squared_error_scale(targets)
    columns = np.arange(logits.size) + logits.start
    picked = sparse.coo_array(
        (np.full(logits.size, scale), (np.arange(logits.size), columns)), shape=(logits.size, builder.width)
    )
    builder.squares(sparse.csr_array(picked), scale * targets.reshape(-1))


def squared_error_scale(targets: FloatArray) -> float:
    """Return ``1 / √(count · Var t)``, what residuals are multiplied by for the relative squared error."""
    return float(1.0 / np.sqrt(max(float(targets.var()), np.finfo(np.float64).tiny) * targets.size))


def add_mean_scores(
    builder: ProgramBuilder,
    scores: VariableBlock,
    group_of_unit: IntArray,
    weights: FloatArray | None = None,
    sizes: FloatArray | None = None,
) -> None:
    """Add ``Σ_l mean_{g∈l} w_g s_g`` to the objective, the paper's sparsity term; w = 1 by default.

    With ``w = 1/(s + ε)`` of an earlier solution this is one step of the reweighted l1 scheme (Candès, Wakin, Boyd
    2008). `sizes` is what each group's sum is divided by, its width by default.
    """
    share = _shares(group_of_unit, sizes)
    factor = share if weights is None else share * weights
    builder.cost(np.arange(scores.size) + scores.start, factor)


def _shares(group_of_unit: IntArray, sizes: FloatArray | None) -> FloatArray:
    divisors = np.bincount(group_of_unit) if sizes is None else sizes
    return np.asarray(1.0 / divisors[group_of_unit], np.float64)


def largest_means(
    scores: FloatArray, group_of_unit: IntArray, sizes: FloatArray | None = None
) -> tuple[float, FloatArray]:
    """Return θ, the K-1st largest layer mean of (s - 2), and what exceeds it, u, at given scores."""
    means = np.bincount(group_of_unit, scores * _shares(group_of_unit, sizes)) - 2.0
    threshold = float(np.sort(means)[::-1][max(len(means) - 1, 1) - 1])
    return threshold, np.maximum(means - threshold, 0.0)


def add_largest_means(
    builder: ProgramBuilder, scores: VariableBlock, group_of_unit: IntArray, sizes: FloatArray | None = None
) -> None:
    """Add the sum of the K - 1 largest of the K layer means of (s - 2), as the authors' code does.

    The sum of the k largest of m_1 … m_K is ``min kθ + Σ_l u_l`` with ``u_l ≥ m_l - θ``, ``u_l ≥ 0``. With a single
    layer, its mean is taken.
    """
    groups = int(group_of_unit.max()) + 1
    count = max(groups - 1, 1)
    threshold = builder.variables("largest threshold", 1, -np.inf, np.inf)
    excess = builder.variables("largest excess", groups, 0.0, np.inf)
    share = _shares(group_of_unit, sizes)
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


def add_budget(builder: ProgramBuilder, scores: VariableBlock, costs: FloatArray, limit: float) -> None:
    """Add the budget row ``Σ_g cost_g s_g ≤ limit``."""
    columns = np.arange(scores.size) + scores.start
    matrix = sparse.coo_array((costs, (np.zeros(scores.size, np.int64), columns)), shape=(1, builder.width))
    builder.rows("budget", sparse.csr_array(matrix), -np.inf, limit)


def add_group_widths(
    builder: ProgramBuilder, scores: VariableBlock, group_of_unit: IntArray, widths: Sequence[int]
) -> None:
    """Add one row ``Σ_{g∈l} s_g = widths[l]`` per group."""
    columns = np.arange(scores.size) + scores.start
    matrix = sparse.coo_array((np.ones(scores.size), (group_of_unit, columns)), shape=(len(widths), builder.width))
    target = np.asarray(widths, np.float64)
    builder.rows("group widths", sparse.csr_array(matrix), target, target)
