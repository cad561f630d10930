"""Random small graphs for property-based tests; `strategy` says what is drawn."""

from random_graphs.strategy import RandomGraph, dependence, random_graphs, samples
from random_graphs.table import BLOCKS

__all__ = ["BLOCKS", "RandomGraph", "dependence", "random_graphs", "samples"]
