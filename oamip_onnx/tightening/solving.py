"""Bounds on a program's minimum that hold in spite of rounding: one linear program, or a search with SCIP."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from oamip_onnx.formulation.bounds import Bounds
from oamip_onnx.formulation.network import Affine, MaxPool, Network
from oamip_onnx.formulation.program import FloatArray, Program, applied

# SCIP's tolerance here, a tenth of its default: margins shrink with it. SCIP tightens it a thousandfold where a linear
# program is unstable, and its LP solver takes nothing below 1e-10.
_FEASIBILITY = 1e-7

# A search below this many seconds would not get past presolving.
_SHORTEST_SECONDS = 0.01


@dataclass(frozen=True)
class LinearBound:
    """Outcome of a linear program.

    Attributes
    ----------
    value
        Proven lower bound of the minimum; -∞ where the time was up.
    x
        The minimiser, shape (variables,); None where the time was up.
    """

    value: float
    x: FloatArray | None


class Verdict(Enum):
    """What a search found."""

    PROVEN = auto()
    REFUTED = auto()
    OPEN = auto()


@dataclass(frozen=True)
class IntegerBound:
    """Outcome of a search.

    Attributes
    ----------
    verdict
        Whether the minimum reaches the cutoff.
    value
        Lower bound of the minimum.
    x
        A point below the cutoff, shape (variables,); None unless the verdict is `REFUTED`.
    """

    verdict: Verdict
    value: float
    x: FloatArray | None


def linear_bound(program: Program, seconds: float) -> LinearBound:
    """Return a lower bound of a linear program's minimum from HiGHS' dual solution.

    For whatever multipliers y, with d = c - Aᵀy and every variable within l ≤ x ≤ u,

        c·x ≥ Σ_i min(y_i · rows_i) + Σ_j min(d_j l_j, d_j u_j)

    (Neumaier, Shcherbina 2004). The bound therefore doesn't rest on the solver's tolerances; what is left is the
    rounding of this sum, which is estimated from above and taken off.

    Parameters
    ----------
    program
        The program; binaries are relaxed, and every variable must have finite bounds.
    seconds
        Time limit.
    """
    matrix, lower, upper = _stacked(program)
    equal = lower == upper
    above, below = np.flatnonzero(np.isfinite(upper) & ~equal), np.flatnonzero(np.isfinite(lower) & ~equal)
    same = np.flatnonzero(equal)
    inequalities: Any = sparse.csr_array(sparse.vstack([matrix[above], -matrix[below]]))
    solve: Any = linprog  # its stubs take no sparse matrices
    low, high = program.lower, program.upper
    result = solve(
        program.cost,
        A_ub=inequalities if inequalities.shape[0] else None,
        b_ub=np.concatenate([upper[above], -lower[below]]) if inequalities.shape[0] else None,
        A_eq=matrix[same] if same.size else None,
        b_eq=lower[same] if same.size else None,
        bounds=np.stack([low, high], axis=1),
        method="highs",
        options={"time_limit": max(seconds, _SHORTEST_SECONDS)},
    )
    if result.status != 0:
        return LinearBound(-np.inf, None)
    multipliers = np.zeros(len(lower))
    if inequalities.shape[0]:
        # Of an inequality only a multiplier of its own sign gives a bound.
        found = np.minimum(np.asarray(result.ineqlin.marginals), 0.0)
        np.add.at(multipliers, above, found[: above.size])
        np.subtract.at(multipliers, below, found[above.size :])
    if same.size:
        multipliers[same] = np.asarray(result.eqlin.marginals)
    return LinearBound(_dual_value(program, matrix, lower, upper, multipliers), np.asarray(result.x, np.float64))


def integer_bound(program: Program, cutoff: float, seconds: float, seed: int) -> IntegerBound:
    """Search for a point with an objective below the cutoff, with SCIP; without one the minimum reaches the cutoff.

    Parameters
    ----------
    program
        The program.
    cutoff
        The search ends at the first point below it.
    seconds
        Time limit.
    seed
        SCIP's seed.
    """
    model, variables = _scip_model(program)
    model.setParam("limits/time", max(seconds, _SHORTEST_SECONDS))
    model.setParam("limits/solutions", 1)
    model.setParam("randomization/randomseedshift", seed)
    model.setObjlimit(cutoff)
    model.optimize()
    status = str(model.getStatus())
    if model.getNSols():
        best = model.getBestSol()
        x = np.array([model.getSolVal(best, v) for v in variables], np.float64)
        if program.objective(x) < cutoff:
            return IntegerBound(Verdict.REFUTED, -np.inf, x)
    if status == "infeasible":
        return IntegerBound(Verdict.PROVEN, cutoff, None)
    bound = float(model.getDualbound())
    return IntegerBound(Verdict.OPEN, min(bound, cutoff) if abs(bound) < model.infinity() else -np.inf, None)


def margins(network: Network, bounds: Bounds) -> dict[str, FloatArray]:
    """Return how far a cell may be off where every row of an integer program only holds up to SCIP's tolerance ε.

    Each row defines a cell from cells before it. With e the error of those, an affine cell is off by at most
    ``|W| e + ε (1 + |b|)``, an activation or a pool by ``e + 2 ε (1 + max(|L|, |U|))``: a binary that is ε away from
    0 or 1 moves it by ε times its largest bound. Bounds that SCIP proves count less this margin; that takes SCIP at
    its word that it decides up to ε, as no dual solution can be checked after a search.

    Parameters
    ----------
    network, bounds
        The network and its bounds.

    Returns
    -------
    dict
        Shape (boxes, cells) by tensor.
    """
    error = {name: np.full_like(bounds.lower[name], _FEASIBILITY) for name in network.inputs}
    for layer in network.layers:
        if isinstance(layer, Affine):
            total = np.tile(_FEASIBILITY * (1 + np.abs(layer.bias)), (len(next(iter(error.values()))), 1))
            for name, matrix in zip(layer.inputs, layer.matrices, strict=True):
                total += applied(abs(matrix), error[name])
            error[layer.output] = total
            continue
        size = np.maximum(np.abs(bounds.lower[layer.input]), np.abs(bounds.upper[layer.input]))
        after = error[layer.input] + 2 * _FEASIBILITY * (1 + size)
        if isinstance(layer, MaxPool):
            after = np.append(after, np.zeros((len(after), 1)), axis=1)[:, layer.windows].max(axis=2)
        error[layer.output] = after
    return error


def _dual_value(program: Program, matrix: Any, lower: FloatArray, upper: FloatArray, y: FloatArray) -> float:
    """Return the bound that multipliers prove, less the largest possible rounding of its computation."""
    limit = np.where(y > 0, lower, upper)
    rows = np.where(y == 0, 0.0, y * np.where(y == 0, 0.0, limit))
    slope = program.cost - matrix.T @ y
    low, high = program.lower, program.upper
    value = float(rows.sum() + np.minimum(slope * low, slope * high).sum())
    # A sum of n products carries a relative error of at most n units of roundoff of the sum of their magnitudes.
    size = np.abs(program.cost) + abs(matrix).T @ np.abs(y)
    magnitude = float(np.abs(rows).sum() + (size * np.maximum(np.abs(low), np.abs(high))).sum())
    terms = len(y) + len(slope)
    return value - 2 * terms * float(np.finfo(np.float64).eps) * magnitude


def _stacked(program: Program) -> tuple[Any, FloatArray, FloatArray]:
    if not program.rows:
        return sparse.csr_array((0, program.variable_count)), np.zeros(0), np.zeros(0)
    matrix = sparse.csr_array(sparse.vstack([rows.matrix for rows in program.rows]))
    lower = np.concatenate([rows.lower for rows in program.rows])
    return matrix, lower, np.concatenate([rows.upper for rows in program.rows])


def _scip_model(program: Program) -> tuple[Any, list[Any]]:
    from pyscipopt import Model, quicksum  # noqa: PLC0415 - loads SCIP's shared library

    model = Model(program.task)
    model.hideOutput()
    model.setParam("numerics/feastol", _FEASIBILITY)
    model.setParam("numerics/dualfeastol", _FEASIBILITY)
    model.setParam("lp/threads", 1)
    columns = zip(program.lower, program.upper, program.cost, program.binary, strict=True)
    variables = [
        model.addVar(vtype="B" if is_binary else "C", lb=low, ub=high, obj=cost)
        for low, high, cost, is_binary in columns
    ]
    matrix, lower, upper = _stacked(program)
    for i in range(matrix.shape[0]):
        part = slice(matrix.indptr[i], matrix.indptr[i + 1])
        value = quicksum(c * variables[j] for c, j in zip(matrix.data[part], matrix.indices[part], strict=True))
        if lower[i] == upper[i]:
            model.addCons(value == lower[i])
        elif np.isfinite(lower[i]):
            model.addCons(value >= lower[i])
        if lower[i] != upper[i] and np.isfinite(upper[i]):
            model.addCons(value <= upper[i])
    return model, variables
