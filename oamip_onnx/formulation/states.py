"""Which ReLUs the bounds decide, sample by sample."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oamip_onnx.channels import FIXED
from oamip_onnx.formulation.bounds import Bounds
from oamip_onnx.formulation.network import Network, Relu
from oamip_onnx.formulation.program import IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ReluStates:
    """The states of all ReLUs whose input depends on the scores.

    Attributes
    ----------
    on, open
        By the ReLU's output: which cells are decided on, and which are undecided, shape (samples, cells); the rest
        is off or known exactly.
    first_open
        By the ReLU's output and the sample: number of its first undecided cell.
    open_count
        Number of undecided cells.
    """

    on: Mapping[str, BoolArray]
    open: Mapping[str, BoolArray]
    first_open: Mapping[tuple[str, int], int]
    open_count: int

    def numbers(self, name: str, sample: int) -> IntArray:
        """Return the numbers of the undecided cells of a ReLU in one sample."""
        first = self.first_open[name, sample]
        return np.arange(first, first + int(self.open[name][sample].sum()))


def decide_states(
    network: Network, bounds: Bounds, depends: Mapping[str, BoolArray], *, lowered_by_removal: bool
) -> ReluStates:
    """Return what the bounds decide: on where ``L >= 0``, off where ``U <= 0``, else undecided.

    Parameters
    ----------
    network, bounds, depends
        The network, its bounds, and which cells of each tensor depend on scores.
    lowered_by_removal
        Whether the bounds hold for every solution, as in the valid version: removal itself lowers a scored activation
        then, so that ``L >= 0`` decides unscored cells only.
    """
    on, open_ = {}, {}
    for layer in network.layers:
        if isinstance(layer, Relu):
            lower, upper = bounds.lower[layer.input], bounds.upper[layer.input]
            undecided = (lower < 0) & (upper > 0)
            if lowered_by_removal:
                undecided |= (upper > 0) & (layer.units != FIXED)
            open_[layer.output] = undecided & depends[layer.input]
            on[layer.output] = (upper > 0) & ~undecided & depends[layer.input]
    return ReluStates(on, open_, _first_numbers(open_), sum(int(o.sum()) for o in open_.values()))


def _first_numbers(open_: Mapping[str, BoolArray]) -> dict[tuple[str, int], int]:
    first: dict[tuple[str, int], int] = {}
    count = 0
    for name, cells in open_.items():
        for sample, size in enumerate(cells.sum(axis=1)):
            first[name, sample] = count
            count += int(size)
    return first
