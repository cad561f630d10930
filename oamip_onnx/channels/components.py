"""Atoms tied by joins: what lives and dies together."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from oamip_onnx.channels.groups import Pin
from oamip_onnx.channels.labels import FIXED, BoolArray, IntArray
from oamip_onnx.channels.trace import Trace


class Components:
    """Atoms tied by joins; each component with the pins that hold it, if any."""

    def __init__(self, trace: Trace) -> None:
        count = max(trace.atom_count, 1)
        edges = np.concatenate(trace.joins, axis=1) if trace.joins else np.zeros((2, 0), dtype=np.int64)
        matrix = coo_array((np.ones(edges.shape[1], dtype=np.int8), (edges[0], edges[1])), shape=(count, count))
        self.count, found = connected_components(matrix, directed=False)
        # FIXED is -1, the last entry of the lookup.
        self.of_atom: IntArray = np.append(found.astype(np.int64), FIXED)
        self.first_atom: IntArray = np.full(self.count, np.iinfo(np.int64).max)
        np.minimum.at(self.first_atom, found, np.arange(count))
        self.pins: dict[int, Pin] = {}
        for atoms, pin in trace.pins:
            self.pin(np.unique(self.of_atom[atoms]), pin)

    def pin(self, components: IntArray, pin: Pin) -> None:
        """Hold components; the first reason given stays."""
        for component in components[components != FIXED]:
            self.pins.setdefault(int(component), pin)

    def pinned(self) -> BoolArray:
        """Return whether each component is held."""
        result = np.zeros(self.count, dtype=np.bool_)
        result[list(self.pins)] = True
        return result
