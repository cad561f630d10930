"""Deciding ReLUs that intervals leave open: by linear programs, then by integer programs, within a time budget."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from oamip_onnx.formulation.bounds import Bounds, propagated
from oamip_onnx.formulation.network import BoolArray, Network, Relu
from oamip_onnx.formulation.program import FloatArray
from oamip_onnx.tightening.evidence import Evidence
from oamip_onnx.tightening.relaxation import Relaxation, relax
from oamip_onnx.tightening.solving import Verdict, integer_bound, linear_bound, margins
from oamip_onnx.tightening.timing import Budget

# Programs with more coefficients are skipped: one of them takes longer than the usual budget as a whole.
LARGEST_RELAXATION = 1_000_000


class Side(StrEnum):
    """What may hold of a ReLU for every input: off, ``a ≤ 0``, or on, ``a ≥ 0``."""

    OFF = "off"
    ON = "on"


class Method(StrEnum):
    """What kind of program answers."""

    LINEAR = "linear"
    INTEGER = "integer"


# Which cells of a ReLU are worth asking about, shape (boxes, cells), given what inputs have shown and which cells the
# method at work could not decide.
Wanted = Callable[[Relu, Side, Evidence, BoolArray], BoolArray]


@dataclass(frozen=True)
class Tightened:
    """Bounds after solving.

    Attributes
    ----------
    bounds
        Bounds of every tensor, at least as tight as those before.
    asked, decided
        Number of programs solved, and of ReLU cells that they decided.
    exhausted
        Whether the time ended with questions open.
    skipped
        Number of programs that were too large to try.
    """

    bounds: Bounds
    asked: int
    decided: int
    exhausted: bool
    skipped: int = 0


@dataclass(frozen=True)
class _Question:
    layer: Relu
    side: Side
    box: int
    cell: int
    # Share of the interval that lies on the wrong side of zero: small is close to being decided.
    distance: float


def tighten(network: Network, bounds: Bounds, seconds: float, *, seed: int = 0, scored: bool = False) -> Tightened:
    """Return bounds tightened by linear programs and then by integer programs, one for each undecided ReLU.

    Layer by layer, the ReLUs whose interval is closest to being decided come first. Only a bound that decides its ReLU
    is worth its time, so that a search ends at the first input on the other side of zero, and cells that samples
    have shown on both sides are not asked about.

    Parameters
    ----------
    network
        The network.
    bounds
        Bounds of every tensor to start from, shape (boxes, cells), for instance those of `box_bounds`,
        `interval_bounds` or `score_aware_bounds`; those of the inputs are the boxes.
    seconds
        Wall-clock budget. What is decided when it ends depends on the machine, that the bounds hold doesn't.
    seed
        Seed of the samples and of SCIP.
    scored
        Whether the bounds have to hold for every score in [0, 1] of the gate ``h = s·ReLU(a)`` as well; the bounds to
        start from must then be those of `score_aware_bounds`.
    """
    budget = Budget(seconds)
    evidence = Evidence(network, bounds, scored=scored)
    evidence.sample(seed)
    run = Run(network, evidence, budget, any_open, seed)
    linear = run.tighten(bounds, Method.LINEAR)
    integer = run.tighten(linear.bounds, Method.INTEGER)
    return Tightened(
        integer.bounds,
        linear.asked + integer.asked,
        linear.decided + integer.decided,
        # What linear programs left open, integer programs were asked again.
        integer.exhausted,
        integer.skipped,
    )


def any_open(layer: Relu, side: Side, evidence: Evidence, failed: BoolArray) -> BoolArray:
    """Return the cells that no input has shown on the wrong side and that are not asked about yet; (boxes, cells)."""
    if side is Side.OFF:
        return np.asarray((evidence.highest[layer.input] <= 0) & ~failed)
    return np.asarray((evidence.lowest[layer.input] >= 0) & ~failed)


@dataclass(frozen=True)
class _Answer:
    # How far the cell can reach to the wrong side of zero at most, and why nothing better is known.
    reach: float
    stopped: bool = False
    too_large: bool = False


@dataclass(frozen=True)
class Run:
    """One network, what samples show of it, and the time to tighten its bounds.

    Attributes
    ----------
    network, evidence
        The network and what samples show; points that solvers find are added.
    budget
        The time.
    wanted
        Which cells are worth asking about.
    seed
        SCIP's seed.
    """

    network: Network
    evidence: Evidence
    budget: Budget
    wanted: Wanted
    seed: int = 0

    def tighten(self, bounds: Bounds, method: Method) -> Tightened:
        """Return the bounds after asking about every wanted cell, from the first layer to the last."""
        inputs = self.network.inputs
        boxes = {n: bounds.lower[n] for n in inputs}, {n: bounds.upper[n] for n in inputs}
        total = Tightened(bounds, 0, 0, exhausted=False)
        for layer in self.network.layers:
            if isinstance(layer, Relu):
                result = self._tighten_layer(layer, total.bounds, method)
                bounds = result.bounds
                if result.asked:
                    bounds = propagated(self.network, *boxes, scored=self.evidence.scored, known=bounds)
                total = Tightened(
                    bounds,
                    total.asked + result.asked,
                    total.decided + result.decided,
                    total.exhausted or result.exhausted,
                    total.skipped + result.skipped,
                )
        return total

    def _tighten_layer(self, layer: Relu, bounds: Bounds, method: Method) -> Tightened:
        """Return the bounds with those of one pre-activation tightened; what follows from them is not updated."""
        name = layer.input
        low, high = bounds.lower[name].copy(), bounds.upper[name].copy()
        failed = {side: np.zeros(low.shape, np.bool_) for side in Side}
        questions = self._questions(layer, low, high, failed)
        margin = margins(self.network, bounds)[name] if questions and method is Method.INTEGER else None
        asked = decided = skipped = 0
        exhausted = False
        for number, question in enumerate(questions):
            # Inputs that solvers found and cells that they could not decide have told more since the list was made.
            open_ = self.wanted(layer, question.side, self.evidence, failed[question.side])
            if not open_[question.box, question.cell]:
                continue
            if self.budget.left <= 0:
                exhausted = True
                break
            # No question takes more than twice its share of what is left.
            seconds = min(self.budget.left, max(2 * self.budget.left / (len(questions) - number), 1.0))
            answer = self._answer(question, bounds, seconds, margin)
            asked, skipped = asked + 1, skipped + answer.too_large
            exhausted = exhausted or answer.stopped
            if _record(question, answer.reach, low, high):
                decided += 1
            else:
                failed[question.side][question.box, question.cell] = True
        tighter = Bounds({**bounds.lower, name: low}, {**bounds.upper, name: high})
        return Tightened(tighter, asked, decided, exhausted, skipped)

    def _questions(
        self, layer: Relu, low: FloatArray, high: FloatArray, failed: Mapping[Side, BoolArray]
    ) -> list[_Question]:
        """Return what to ask, the intervals that are closest to being decided first."""
        found = []
        for side in Side:
            wanted = self.wanted(layer, side, self.evidence, failed[side]) & (low < 0) & (high > 0)
            for box, cell in zip(*np.nonzero(wanted), strict=True):
                wrong = high[box, cell] if side is Side.OFF else -low[box, cell]
                distance = wrong / (high[box, cell] - low[box, cell])
                found.append(_Question(layer, side, int(box), int(cell), float(distance)))
        return sorted(found, key=lambda question: question.distance)

    def _answer(self, question: _Question, bounds: Bounds, seconds: float, margin: FloatArray | None) -> _Answer:
        """Solve one program, an integer one where margins are given."""
        relaxation = relax(
            self.network,
            bounds,
            question.box,
            question.layer.input,
            question.cell,
            sign=-1 if question.side is Side.OFF else 1,
            integer=margin is not None,
            scored=self.evidence.scored,
        )
        program = relaxation.program
        if program.nonzero_count > LARGEST_RELAXATION:
            return _Answer(np.inf, too_large=True)
        if margin is None:
            linear = linear_bound(program, seconds)
            self._learn(relaxation, linear.x, bounds, question.box)
            return _Answer(-linear.value, stopped=linear.x is None)
        slack = float(margin[question.box, question.cell])
        integer = integer_bound(program, slack, seconds, self.seed)
        self._learn(relaxation, integer.x, bounds, question.box)
        if integer.verdict is Verdict.PROVEN:
            return _Answer(0.0)
        return _Answer(slack - integer.value, stopped=integer.verdict is Verdict.OPEN)

    def _learn(self, relaxation: Relaxation, x: FloatArray | None, bounds: Bounds, box: int) -> None:
        # With scores in play, a solution's activations follow from its scores, which the program doesn't hold.
        if x is not None and not self.evidence.scored:
            self.evidence.add(relaxation.point(x, bounds, box), box)


def _record(question: _Question, bound: float, low: FloatArray, high: FloatArray) -> bool:
    """Take over a bound where it is tighter; return whether it decides the cell."""
    at = question.box, question.cell
    if question.side is Side.OFF:
        # Both bounds are proven, so that they can cross by rounding only.
        high[at] = max(min(high[at], bound), low[at])
        return bool(high[at] <= 0)
    low[at] = min(max(low[at], -bound), high[at])
    return bool(low[at] >= 0)
