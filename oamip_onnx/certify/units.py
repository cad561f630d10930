"""Which cells decide about a unit."""

import numpy as np

from oamip_onnx.channels import BoolArray, ChannelAnalysis
from oamip_onnx.formulation.bounds import Bounds
from oamip_onnx.formulation.build import units_of_cells
from oamip_onnx.formulation.network import Network, Relu
from oamip_onnx.formulation.program import IntArray
from oamip_onnx.model import Model
from oamip_onnx.tightening.evidence import Evidence, Target
from oamip_onnx.tightening.tighten import Side, any_open

# Operators behind which the cells are the same ones in the same order.
_SAME_CELLS = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


class UnitCells:
    """The cells by which units are inactive or always active.

    Parameters
    ----------
    model, analysis, network
        The model, its channels, and its description.

    Attributes
    ----------
    removable
        Whether removal of a unit whose reads are zero changes nothing; shape (units,).
    """

    def __init__(self, model: Model, analysis: ChannelAnalysis, network: Network) -> None:
        self.count = analysis.unit_count
        self.relus = [layer for layer in network.layers if isinstance(layer, Relu)]
        self.cells = {layer.output: units_of_cells(analysis, layer.output, layer.size) for layer in self.relus}
        # Removal of a unit under a normalisation over channels changes the statistic, even where the unit is zero.
        self.removable = np.ones(self.count, np.bool_)
        for group in analysis.groups:
            self.removable[group.units] = group.exact
        self.reads = self._find_reads(model, analysis, network)
        self.has_relu = self._with(*((self.cells[layer.output], True) for layer in self.relus))
        self._version = -1
        self._possible = (self.removable, self.has_relu)

    def proven(self, bounds: Bounds) -> tuple[BoolArray, BoolArray]:
        """Return which units bounds prove inactive, and which always active."""
        live = [(units, (bounds.lower[n][0] < 0) | (bounds.upper[n][0] > 0)) for n, units in self.reads]
        cut = [(self.cells[layer.output], bounds.lower[layer.input][0] < 0) for layer in self.relus]
        return self.removable & ~self._with(*live), self.has_relu & ~self._with(*cut)

    def possible(self, evidence: Evidence) -> tuple[BoolArray, BoolArray]:
        """Return which units may be inactive, and which always active, as far as inputs tried so far show."""
        if self._version != evidence.version:
            self._version = evidence.version
            self._possible = self.proven(Bounds(evidence.lowest, evidence.highest))
        return self._possible

    def wanted(self, layer: Relu, side: Side, evidence: Evidence, failed: BoolArray) -> BoolArray:
        """Return the cells whose unit may still be proven, shape (1, cells)."""
        units = self.cells[layer.output]
        inactive, active = self.possible(evidence)
        possible = (inactive if side is Side.OFF else active) & ~self._with((units, failed[0]))
        open_ = any_open(layer, side, evidence, failed)[0]
        return np.asarray((np.append(possible, np.False_)[units] & open_)[None])

    def targets(self, bounds: Bounds, evidence: Evidence) -> list[Target]:
        """Return the cells by which a unit is most likely to be shown live, or to be off for some input."""
        inactive, active = (
            possible & ~proven for possible, proven in zip(self.possible(evidence), self.proven(bounds), strict=True)
        )
        found: list[Target] = []
        for layer in self.relus:
            units, name = self.cells[layer.output], layer.input
            for sign, wanted in ((1, inactive), (-1, active)):
                seen = evidence.highest[name][0] if sign == 1 else -evidence.lowest[name][0]
                reach = bounds.upper[name][0] if sign == 1 else -bounds.lower[name][0]
                for unit in np.flatnonzero(wanted):
                    own = np.flatnonzero((units == unit) & (reach > 0))
                    if own.size:
                        best = {int(own[seen[own].argmax()]), int(own[reach[own].argmax()])}
                        found.extend(Target(name, cell, 0, sign) for cell in sorted(best))
        return found

    def _find_reads(self, model: Model, analysis: ChannelAnalysis, network: Network) -> list[tuple[str, IntArray]]:
        """Return the tensors that contractions read, with each cell's unit; what is read outside the network stays."""
        known = {*network.inputs, *(layer.output for layer in network.layers)}
        reads = []
        for contraction in analysis.contractions:
            shape = analysis.types[contraction.tensor].shape
            units = np.broadcast_to(contraction.units, shape)[0].reshape(-1)
            name = _source(model, contraction.tensor, known)
            if name is None:
                self.removable &= ~self._with((units, True))
            else:
                reads.append((name, units))
        self.removable &= self._with(*((units, True) for _, units in reads))
        return reads

    def _with(self, *parts: tuple[IntArray, BoolArray | bool]) -> BoolArray:
        """Return the units of the true cells, shape (units,)."""
        found = np.zeros(self.count + 1, np.bool_)
        for units, cells in parts:
            found[units[np.broadcast_to(cells, units.shape)]] = True
        return found[:-1]  # the last entry took the fixed cells


def _source(model: Model, tensor: str, known: set[str]) -> str | None:
    """Return the tensor of the network that holds a tensor's cells; None where the network has none."""
    while tensor not in known:
        index = model.producers.get(tensor)
        if index is None or model.graph.node[index].domain or model.graph.node[index].op_type not in _SAME_CELLS:
            return None
        tensor = model.graph.node[index].input[0]
    return tensor
