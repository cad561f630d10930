"""What sampled inputs show: a unit seen active is not inactive, whatever a solver could say about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oamip_onnx.formulation.bounds import Bounds
from oamip_onnx.formulation.joint import gate_response
from oamip_onnx.formulation.network import Affine, MaxPool, Network, Relu, pooled
from oamip_onnx.formulation.program import FloatArray, IntArray
from oamip_onnx.tightening.timing import Budget

# Inputs of one forward pass, and passes: enough to show nearly every live unit, little beside one linear program.
_ROWS = 128
_PASSES = 4

# Lengths of the steps of a search, as shares of each cell's range, and how many points it starts from.
_SEARCH_STEPS = (1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.1, 0.1, 0.1, 0.1)
_SEARCH_STARTS = 3


@dataclass(frozen=True)
class Target:
    """A cell of a tensor in one of the boxes, to be made as large (`sign` 1) or as small (-1) as possible."""

    tensor: str
    cell: int
    box: int
    sign: int


class Evidence:
    """The smallest and largest value of every cell over the inputs tried so far.

    Parameters
    ----------
    network
        The network.
    bounds
        Bounds that hold the boxes of the inputs, shape (boxes, cells).
    scored
        Whether scores in [0, 1] of the gate ``h = s·ReLU(a)`` are tried along with the inputs.
    """

    def __init__(self, network: Network, bounds: Bounds, *, scored: bool = False) -> None:
        self.network, self.scored = network, scored
        self._low = {name: bounds.lower[name] for name in network.inputs}
        self._high = {name: bounds.upper[name] for name in network.inputs}
        self.boxes = len(next(iter(self._low.values())))
        # Counts the passes, so that what is derived from them can be kept.
        self.version = 0
        self.lowest: dict[str, FloatArray] = {}
        self.highest: dict[str, FloatArray] = {}

    def sample(self, seed: int) -> None:
        """Try random inputs and corners of the boxes."""
        generator = np.random.default_rng(seed)
        repeats = max(1, _ROWS // self.boxes)
        for number in range(_PASSES):
            scores = np.ones(self.network.unit_count)
            if self.scored and number > 0:
                scores = generator.uniform(0, 1, self.network.unit_count)
                scores = scores.round() if number % 2 else scores
            points = {}
            for name, low in self._low.items():
                share = _shares(generator, (repeats, *low.shape))
                points[name] = (low + share * (self._high[name] - low)).reshape(-1, low.shape[1])
            self._try(points, np.tile(np.arange(self.boxes), repeats), scores)

    def observe(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Try given samples, of any per-sample shape, moved into each box."""
        for start in range(0, len(next(iter(feeds.values()))), _ROWS):
            points = self.network.flatten({name: values[start : start + _ROWS] for name, values in feeds.items()})
            count = len(next(iter(points.values())))
            for box in range(self.boxes):
                inside = {n: np.clip(v, self._low[n][box], self._high[n][box]) for n, v in points.items()}
                self._try(inside, np.full(count, box))

    def search(self, targets: Sequence[Target], budget: Budget, seed: int) -> None:
        """Climb along the sign of each target's slope, from the middle of its box and from random points.

        The first step goes to a corner, which is the best input there is for a cell that is affine in the inputs.
        A target is left when its sign has been reached. All scores are 1.
        """
        generator = np.random.default_rng(seed)
        for first in range(0, len(targets), _ROWS):
            for start in range(_SEARCH_STARTS):
                waiting = [target for target in targets[first : first + _ROWS] if not self.shows(target)]
                if not waiting or budget.left <= 0:
                    break
                boxes = np.array([target.box for target in waiting])
                points = {}
                for name, low in self._low.items():
                    share = 0.5 if start == 0 else _shares(generator, (1, len(waiting), low.shape[1]))[0]
                    points[name] = low[boxes] + share * (self._high[name] - low)[boxes]
                self._climb(waiting, points, budget)

    def shows(self, target: Target) -> bool:
        """Return whether some input has given the target's cell a value of its sign."""
        found = self.highest if target.sign > 0 else self.lowest
        return bool(target.sign * found[target.tensor][target.box, target.cell] > 0)

    def add(self, point: Mapping[str, FloatArray], box: int) -> None:
        """Try one input, shape (cells,) by name; it is moved into its box where rounding put it outside."""
        inside = {n: np.clip(v, self._low[n][box], self._high[n][box])[None] for n, v in point.items()}
        self._try(inside, np.array([box]))

    def _climb(self, targets: Sequence[Target], points: dict[str, FloatArray], budget: Budget) -> None:
        """Move one point for each target, shape (targets, cells) by input, until all show their sign."""
        boxes = np.array([target.box for target in targets])
        values = self._try(points, boxes)
        for step in _SEARCH_STEPS:
            waiting = np.flatnonzero([not self.shows(target) for target in targets])
            if not waiting.size or budget.left <= 0:
                return
            targets, boxes = [targets[int(k)] for k in waiting], boxes[waiting]
            values = {name: found[waiting] for name, found in values.items()}
            points = {name: found[waiting] for name, found in points.items()}
            for name, slope in _gradients(self.network, values, targets).items():
                low, high = self._low[name][boxes], self._high[name][boxes]
                points[name] = np.clip(points[name] + step * (high - low) * np.sign(slope), low, high)
            values = self._try(points, boxes)

    def _try(
        self,
        points: Mapping[str, FloatArray],
        boxes: IntArray,
        scores: FloatArray | None = None,
    ) -> dict[str, FloatArray]:
        self.version += 1
        network = self.network if scores is None else self.network.with_scaled_bias(scores)
        values = network.forward(points, None if scores is None else gate_response(scores))
        for name, found in values.items():
            if name not in self.lowest:
                self.lowest[name] = np.full((self.boxes, found.shape[1]), np.inf)
                self.highest[name] = np.full((self.boxes, found.shape[1]), -np.inf)
            for box in np.unique(boxes):
                own = found if self.boxes == 1 else found[boxes == box]
                self.lowest[name][box] = np.minimum(self.lowest[name][box], own.min(axis=0))
                self.highest[name][box] = np.maximum(self.highest[name][box], own.max(axis=0))
        return values


def _shares(generator: np.random.Generator, shape: tuple[int, int, int]) -> FloatArray:
    """Return where in its range each input cell lies: a third uniform, a third corners, a third nearly constant.

    Independent values alone hardly move sums over many cells.
    """
    uniform = generator.uniform(0, 1, shape)
    level = generator.uniform(0, 1, (*shape[:2], 1))
    kind = generator.integers(0, 3, (*shape[:2], 1))
    corner = (uniform < level).astype(np.float64)
    constant = np.clip(level + 0.1 * (uniform - 0.5), 0, 1)
    return np.asarray(np.where(kind == 0, uniform, np.where(kind == 1, corner, constant)))


def _gradients(network: Network, values: Mapping[str, FloatArray], targets: Sequence[Target]) -> dict[str, FloatArray]:
    """Return the slope of each target with respect to every input cell at its own row of `values`."""
    slopes: dict[str, FloatArray] = {}

    def add(name: str, slope: FloatArray) -> None:
        slopes[name] = slopes[name] + slope if name in slopes else slope

    for row, target in enumerate(targets):
        if target.tensor not in slopes:
            slopes[target.tensor] = np.zeros_like(values[target.tensor])
        slopes[target.tensor][row, target.cell] = target.sign
    for layer in reversed(network.layers):
        slope = slopes.pop(layer.output, None)
        if slope is None:
            continue
        if isinstance(layer, Affine):
            for name, matrix in zip(layer.inputs, layer.matrices, strict=True):
                add(name, np.asarray((matrix.T @ slope.T).T, np.float64))
        elif isinstance(layer, MaxPool):
            cells = pooled(values[layer.input], layer.windows)[1]
            behind = np.zeros_like(values[layer.input])
            np.add.at(behind, (np.arange(len(slope))[:, None], cells), slope)
            add(layer.input, behind)
        elif isinstance(layer, Relu):
            # At zero the slope passes, so that a search can leave a cell that is just off.
            add(layer.input, np.where(values[layer.input] >= 0, slope, 0.0))
        else:
            add(layer.input, slope)
    return {name: slope for name, slope in slopes.items() if name in network.inputs}
