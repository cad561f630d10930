"""A mathematical program as data: what a solver needs, and nothing of any solver."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import logsumexp

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SparseMatrix = sparse.csr_array[np.float64, tuple[int, int]]

# Name of the block of the logits and of the rows that define them.
LOGITS = "logits"

# Names of the blocks that the sparsity term reads.
SPARSITY = frozenset({"scores", "largest threshold", "largest excess"})


@dataclass(frozen=True)
class VariableBlock:
    """Variables of one kind, side by side.

    Attributes
    ----------
    name
        What they are: ``scores``, ``activations``, ``states``, ``logits``, ``losses``, …
    start
        Column of the first.
    lower, upper
        Their bounds, shape (size,); infinite where there is none.
    binary
        Which of them must be 0 or 1, shape (size,).
    """

    name: str
    start: int
    lower: FloatArray
    upper: FloatArray
    binary: npt.NDArray[np.bool_]

    @property
    def size(self) -> int:
        """Number of variables."""
        return int(self.lower.size)

    @property
    def columns(self) -> slice:
        """Where they stand in the vector of all variables."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class LinearRows:
    """The rows ``lower ≤ matrix · x ≤ upper``; `family` names the equation that they come from."""

    family: str
    matrix: SparseMatrix
    lower: FloatArray
    upper: FloatArray


@dataclass(frozen=True)
class LogSumExpTerms:
    """The constraints ``x[epigraph[i]] ≥ log Σ_c exp x[logits[i, c]]``; shapes (terms,) and (terms, classes)."""

    epigraph: IntArray
    logits: IntArray


@dataclass(frozen=True)
class SquaredTerms:
    """The term ``‖matrix · x - target‖²`` of the objective."""

    matrix: SparseMatrix
    target: FloatArray


@dataclass(frozen=True)
class Program:
    """``min cost · x + constant + ‖squared‖²`` over linear rows, log-sum-exp constraints, bounds and binaries.

    Attributes
    ----------
    task
        What is solved, for reports.
    blocks
        The variables, in column order.
    rows
        The linear rows, one entry a family.
    cost, constant
        The linear part of the objective.
    exponentials, squared
        The nonlinear parts, where there are any.
    start
        A full feasible vector from a forward pass, where there is one; shape (variables,).
    notes
        What the program fixes or relaxes, in sentences.
    """

    task: str
    blocks: tuple[VariableBlock, ...]
    rows: tuple[LinearRows, ...]
    cost: FloatArray
    constant: float = 0.0
    exponentials: LogSumExpTerms | None = None
    squared: SquaredTerms | None = None
    start: FloatArray | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def variable_count(self) -> int:
        """Number of variables."""
        return int(self.cost.size)

    @property
    def lower(self) -> FloatArray:
        """Lower bound of every variable, shape (variables,)."""
        return np.concatenate([b.lower for b in self.blocks])

    @property
    def upper(self) -> FloatArray:
        """Upper bound of every variable, shape (variables,)."""
        return np.concatenate([b.upper for b in self.blocks])

    @property
    def binary(self) -> npt.NDArray[np.bool_]:
        """Which variables must be 0 or 1, shape (variables,)."""
        return np.concatenate([b.binary for b in self.blocks])

    @property
    def binary_count(self) -> int:
        """Number of binary variables."""
        return sum(int(b.binary.sum()) for b in self.blocks)

    @property
    def nonzero_count(self) -> int:
        """Number of coefficients in the rows."""
        return sum(int(r.matrix.nnz) for r in self.rows)

    def columns(self, name: str) -> IntArray:
        """Return the columns of all blocks of that name, in order; empty where there is none."""
        parts = [np.arange(b.start, b.start + b.size) for b in self.blocks if b.name == name]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def block(self, name: str) -> VariableBlock:
        """Return the first block of that name.

        Raises
        ------
        KeyError
            If the program has none.
        """
        for block in self.blocks:
            if block.name == name:
                return block
        raise KeyError(name)

    def defined_logits(self) -> tuple[VariableBlock, SparseMatrix, FloatArray] | None:
        """Return the logits' block, E and c of the rows ``q = E x + c`` that define them; None without such rows.

        A solver may put ``E x + c`` in place of q; E has no coefficient at the logits themselves.
        """
        rows = [r for r in self.rows if r.family == LOGITS]
        if len(rows) != 1:
            return None
        block, matrix = self.block(LOGITS), rows[0].matrix
        own = sparse.csr_array(matrix[:, block.columns])
        if own.shape[0] != own.shape[1] or (own + sparse.eye_array(block.size)).count_nonzero():
            return None
        others = matrix.copy()
        others.data[(others.indices >= block.start) & (others.indices < block.start + block.size)] = 0.0
        others.eliminate_zeros()
        return block, others, -rows[0].lower

    def with_tight_losses(self, x: FloatArray) -> FloatArray:
        """Return `x` with every log-sum-exp epigraph variable at its smallest feasible value."""
        result = x.copy()
        if self.exponentials is not None:
            result[self.exponentials.epigraph] = logsumexp(x[self.exponentials.logits], axis=1)
        return result

    def sparsity(self, x: FloatArray) -> float:
        """Return what the scores cost in the objective at `x`, the part that is not the loss."""
        return float(sum(self.cost[b.columns] @ x[b.columns] for b in self.blocks if b.name in SPARSITY))

    def expected_loss(self, x: FloatArray, loss_weight: float) -> float | None:
        """Return the loss at `x` less that of the original, which `start` is; None without a start."""
        if self.start is None:
            return None
        loss, original = (self.objective(v) - self.sparsity(v) for v in (x, self.start))
        return (loss - original) / loss_weight

    def objective(self, x: FloatArray) -> float:
        """Return the objective at `x`, shape (variables,)."""
        value = float(self.cost @ x) + self.constant
        if self.squared is not None:
            value += float(((self.squared.matrix @ x - self.squared.target) ** 2).sum())
        return value

    def violations(self, x: FloatArray) -> dict[str, float]:
        """Return the largest violation at `x` of each family of rows, of the bounds and of the log-sum-exp terms."""
        found = {"variable bounds": float(np.maximum(self.lower - x, x - self.upper).max(initial=0.0))}
        for rows in self.rows:
            value = rows.matrix @ x
            worst = float(np.maximum(rows.lower - value, value - rows.upper).max(initial=0.0))
            found[rows.family] = max(found.get(rows.family, 0.0), worst)
        if self.exponentials is not None:
            excess = logsumexp(x[self.exponentials.logits], axis=1) - x[self.exponentials.epigraph]
            found["log-sum-exp"] = float(excess.max(initial=0.0))
        return found


class ProgramBuilder:
    """Collects variables, rows and costs; `build` freezes them."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.notes: list[str] = []
        self.constant = 0.0
        self._blocks: list[VariableBlock] = []
        self._rows: dict[str, list[tuple[SparseMatrix, FloatArray, FloatArray]]] = {}
        self._costs: list[tuple[IntArray, FloatArray]] = []
        self._exponentials: LogSumExpTerms | None = None
        self._squared: SquaredTerms | None = None
        self._known_bounds = (np.zeros(0), np.zeros(0))

    @property
    def width(self) -> int:
        """Number of variables so far."""
        return self._blocks[-1].start + self._blocks[-1].size if self._blocks else 0

    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Return the lower and the upper bounds of the variables so far, shape (variables,) each."""
        lower, upper = self._known_bounds
        if lower.size < self.width:
            # Blocks are only ever added: those that are in the arrays already are not read again.
            new = [b for b in self._blocks if b.start >= lower.size]
            lower = np.concatenate([lower, *(b.lower for b in new)])
            upper = np.concatenate([upper, *(b.upper for b in new)])
            self._known_bounds = lower, upper
        return lower, upper

    def variables(
        self, name: str, size: int, lower: npt.ArrayLike, upper: npt.ArrayLike, *, binary: npt.ArrayLike = False
    ) -> VariableBlock:
        """Add variables and return their block; scalar bounds hold for all."""
        low = np.broadcast_to(np.asarray(lower, np.float64), (size,)).copy()
        high = np.broadcast_to(np.asarray(upper, np.float64), (size,)).copy()
        integer = np.broadcast_to(np.asarray(binary, np.bool_), (size,)).copy()
        block = VariableBlock(name, self.width, low, high, integer)
        self._blocks.append(block)
        return block

    def rows(self, family: str, matrix: SparseMatrix, lower: npt.ArrayLike, upper: npt.ArrayLike) -> None:
        """Add ``lower ≤ matrix · x ≤ upper``; a matrix over the first variables only is widened later.

        Rows that the variables' bounds already imply are left out.
        """
        count = matrix.shape[0]
        low = np.broadcast_to(np.asarray(lower, np.float64), (count,))
        high = np.broadcast_to(np.asarray(upper, np.float64), (count,))
        smallest, largest = value_range(matrix, *self.bounds())
        # The slack keeps rounding in the interval sums from dropping a row that just binds.
        # Rows with values that are no numbers stay, to be named by the solver.
        needed = ~((smallest >= low - 1e-12) & (largest <= high + 1e-12))
        if needed.any():
            self._rows.setdefault(family, []).append((matrix[np.flatnonzero(needed)], low[needed], high[needed]))

    def cost(self, columns: npt.ArrayLike, coefficients: npt.ArrayLike) -> None:
        """Add ``Σ coefficients · x[columns]`` to the objective."""
        index = np.atleast_1d(np.asarray(columns, np.int64))
        self._costs.append((index, np.broadcast_to(np.asarray(coefficients, np.float64), index.shape)))

    def log_sum_exp(self, epigraph: IntArray, logits: IntArray) -> None:
        """State ``x[epigraph[i]] ≥ log Σ_c exp x[logits[i, c]]``."""
        self._exponentials = LogSumExpTerms(epigraph, logits)

    def squares(self, matrix: SparseMatrix, target: FloatArray) -> None:
        """Add ``‖matrix · x - target‖²`` to the objective.

        A tall matrix A is replaced by the triangle of ``A = Q R``, which keeps the value for every x:
        ``‖A x - d‖² = ‖R x - Qᵀd‖² + ‖d‖² - ‖Qᵀd‖²``.
        """
        if matrix.shape[0] > matrix.shape[1]:
            orthogonal, triangle = np.linalg.qr(matrix.toarray())
            inside = orthogonal.T @ target
            self.constant += float(target @ target) - float(inside @ inside)
            matrix, target = sparse.csr_array(triangle), inside
        self._squared = SquaredTerms(widened(matrix, self.width), target)

    def build(self, start: FloatArray | None = None) -> Program:
        """Return the program."""
        cost = np.zeros(self.width)
        for columns, coefficients in self._costs:
            np.add.at(cost, columns, coefficients)
        return Program(
            self.task,
            tuple(self._blocks),
            tuple(self._stacked()),
            cost,
            self.constant,
            self._exponentials,
            self._squared,
            start,
            tuple(self.notes),
        )

    def _stacked(self) -> Iterator[LinearRows]:
        for family, parts in self._rows.items():
            matrix = sparse.vstack([widened(m, self.width) for m, _, _ in parts], format="csr")
            lower = np.concatenate([low for _, low, _ in parts])
            upper = np.concatenate([high for _, _, high in parts])
            yield LinearRows(family, sparse.csr_array(matrix), lower, upper)


def value_range(matrix: SparseMatrix, lower: FloatArray, upper: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the smallest and largest value of each row of ``matrix · x`` over the variables' bounds."""
    coefficients, columns = matrix.data, matrix.indices
    with np.errstate(invalid="ignore"):
        at_lower, at_upper = coefficients * lower[columns], coefficients * upper[columns]
    # 0 · ∞ contributes nothing.
    low = np.where(coefficients == 0, 0.0, np.minimum(at_lower, at_upper))
    high = np.where(coefficients == 0, 0.0, np.maximum(at_lower, at_upper))
    return _row_sums(matrix, low), _row_sums(matrix, high)


def _row_sums(matrix: SparseMatrix, values: FloatArray) -> FloatArray:
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return np.bincount(rows, values, matrix.shape[0]).astype(np.float64)


def widened(matrix: SparseMatrix, width: int) -> SparseMatrix:
    """Return a matrix over the first variables with empty columns for the others."""
    if matrix.shape[1] == width:
        return matrix
    return sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], width))


def applied(matrix: SparseMatrix, values: FloatArray) -> FloatArray:
    """Return ``matrix · values[i]`` for every row i of `values`, shape (rows, matrix rows)."""
    return np.asarray(np.asarray(matrix @ values.T).T, np.float64)


def largest_violation(violations: Mapping[str, float]) -> tuple[str, float]:
    """Return the family violated most, and by how much."""
    family = max(violations, key=lambda name: violations[name])
    return family, violations[family]
