"""Log-sum-exp terms in SCIP, as tangent cuts.

log Σ exp is convex, so that each of its tangents (Kelley 1960) is valid everywhere:

    T >= log Σ_c exp q̄_c + Σ_c softmax(q̄)_c (q_c - q̄_c).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, softmax

from oamip_onnx.formulation.program import FloatArray, LogSumExpTerms

# A term may be violated by this much, relative to T: the epigraphs of a solution are tightened afterwards, and tangents
# bound from below whatever their number, so that this only leaves a gap of the same size.
_TOLERANCE = 1e-4


class TangentCuts:
    """The terms of one program and the cuts that state them.

    Parameters
    ----------
    model, variables
        The PySCIPOpt model and its variables, in the program's column order.
    terms
        The terms.
    """

    def __init__(self, model: Any, variables: list[Any], terms: LogSumExpTerms) -> None:
        self.model, self.variables, self.terms = model, variables, terms
        self.columns = [variables[j] for j in np.concatenate([terms.epigraph, terms.logits.reshape(-1)])]

    def seed(self, points: list[FloatArray]) -> None:
        """Add ``T >= q_c`` for every logit, and the tangents at the given full vectors."""
        for i in range(len(self.terms.epigraph)):
            for j in self.terms.logits[i]:
                # log Σ exp is at least its largest argument.
                self.model.addCons(self.variables[self.terms.epigraph[i]] >= self.variables[j])
            for point in points:
                self._add(i, point[self.terms.logits[i]])

    def violated(self, solution: Any) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """Return the terms that a solution violates (the LP's for None), and all its logits, (terms, classes)."""
        values = np.array([self.model.getSolVal(solution, v) for v in self.columns])
        count = len(self.terms.epigraph)
        epigraph, logits = values[:count], values[count:].reshape(self.terms.logits.shape)
        excess = logsumexp(logits, axis=1) - epigraph
        return np.flatnonzero(excess > _TOLERANCE * np.maximum(1.0, np.abs(epigraph))), logits

    def cut(self) -> bool:
        """Add the tangents that cut the current LP solution off; return whether there were any."""
        violated, logits = self.violated(None)
        for i in violated:
            self._add(int(i), logits[i])
        return bool(violated.size)

    def _add(self, i: int, point: FloatArray) -> None:
        from pyscipopt import quicksum  # noqa: PLC0415 - loads SCIP's shared library

        slopes = np.asarray(softmax(point), np.float64)
        constant = float(logsumexp(point)) - float(slopes @ point)
        value = quicksum(c * self.variables[j] for c, j in zip(slopes, self.terms.logits[i], strict=True))
        self.model.addCons(self.variables[self.terms.epigraph[i]] >= value + constant)


def include_handler(cuts: TangentCuts) -> None:
    """Give SCIP the lazy constraint handler of the terms: it cuts whatever the search finds that violates one."""
    from pyscipopt import SCIP_RESULT, Conshdlr  # noqa: PLC0415 - as above

    def verdict(solution: Any) -> dict[str, Any]:
        violated, _ = cuts.violated(solution)
        return {"result": SCIP_RESULT.INFEASIBLE if violated.size else SCIP_RESULT.FEASIBLE}

    # SCIP calls the methods by position; the names are PySCIPOpt's.
    class Handler(Conshdlr):  # type: ignore[misc]
        def conscheck(self, constraints: Any, solution: Any, *_: Any) -> dict[str, Any]:  # noqa: ARG002
            return verdict(solution)

        def consenfolp(self, *_: Any) -> dict[str, Any]:
            return {"result": SCIP_RESULT.CONSADDED if cuts.cut() else SCIP_RESULT.FEASIBLE}

        def consenfops(self, *_: Any) -> dict[str, Any]:
            return verdict(None)

        def conssepalp(self, *_: Any) -> dict[str, Any]:
            return {"result": SCIP_RESULT.CONSADDED if cuts.cut() else SCIP_RESULT.DIDNOTFIND}

        def conslock(self, constraint: Any, locktype: Any, positive: int, negative: int) -> None:  # noqa: ARG002
            # A larger logit or a smaller epigraph can violate a term; locking both ways is safe for both.
            for variable in cuts.columns:
                cuts.model.addVarLocksType(variable, locktype, positive + negative, positive + negative)

    cuts.model.includeConshdlr(
        Handler(),
        "logsumexp",
        "T >= log sum exp q by lazy tangents",
        sepapriority=10,
        enfopriority=-10,
        chckpriority=-10,
        sepafreq=1,
        eagerfreq=1,
        needscons=False,
    )
