"""What is run, and what tells its rows from others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from oamip_onnx.errors import OamipError

from .networks import RECIPES, Data, trained
from .subnetworks import Case, case_of, drawn

Row = dict[str, Any]
Measure = Callable[[], Row]
# Returns a case, which is made only once a row is to be measured.
Make = Callable[[], Case]

# The network as it is, which every subnetwork is held against.
REFERENCE = "reference"


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes
    ----------
    networks, data
        Networks by name, and data sets.
    targets
        Data sets that subnetworks are taken to.
    runs
        Networks that are trained of each kind.
    methods
        Those that are run, of those that an experiment knows.
    work
        The folder of networks.
    samples
        Training images that programs and repairs see.
    draws
        Draws of ten images whose effect is measured.
    epochs
        Passes of the training of references, in place of the recipes'.
    """

    networks: Sequence[str]
    data: Sequence[Data]
    targets: Sequence[Data]
    runs: int
    methods: Sequence[str]
    work: Path
    samples: int
    draws: int
    epochs: int | None = None

    def maker(self, network: str, data: Data, run: int, *, is_trained: bool = True) -> Make:
        """Return what makes a case, once."""
        return cache(partial(self.case, network, data, run, is_trained=is_trained))

    def case(self, network: str, data: Data, run: int, *, is_trained: bool = True) -> Case:
        """Return a network, trained or as it was before, with the samples of a run."""
        path = trained(network, data, run, self.work, epochs=self.epochs if is_trained else 0)
        return case_of(path, data, run, drawn(data, self.samples, run), RECIPES[network].program)

    def chosen(self, methods: Sequence[str]) -> list[str]:
        """Return those of an experiment's methods that are run."""
        return [method for method in methods if method in self.methods]

    def keys(self, experiment: str, network: str, data: Data, run: int) -> Row:
        """Return what tells the rows of a network from others."""
        setting = {"samples": self.samples, "trained_on": len(data.train.labels), "epochs": self.epochs}
        return {"experiment": experiment, "network": network, "data": data.name, "run": run, **setting}


def measured(wanted: Row, measure: Measure) -> Row:
    """Return a row, or one that says why there is none."""
    try:
        return wanted | measure()
    except OamipError as error:
        return wanted | {"error": str(error)}


# Yields the rows that an experiment has for a network and a data set, each with what measures it.
Experiment = Callable[[Plan, str, Data], Iterator[tuple[Row, Measure]]]
