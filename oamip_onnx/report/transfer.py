"""What `transfer` reports: the accuracy of the trained networks beside each other."""

from rich.text import Text

from oamip_onnx.report.finetuning import FinetuneReport
from oamip_onnx.report.schema import SCHEMA_VERSION, Record
from oamip_onnx.report.shown import Part, ShownInParts, filled


class TrainedRecord(Record):
    """One network, trained once for each seed.

    Attributes
    ----------
    name
        ``subnetwork``, ``unpruned``, or ``random``: units of the unpruned network that were drawn, of the same widths.
    parameters
        Number of weights, with the last layer for the new classes.
    accuracies
        Share of the samples of `TransferReport.judged_on` that are classified correctly, one for each seed.
    mean
        Their mean.
    standard_error
        Its standard error; null for one seed.
    held_out_accuracies
        The same on the held-out samples of each seed, which chose the epoch.
    best_epochs
        The epoch whose weights were taken, for each seed.
    seconds
        Wall-clock seconds of all its trainings.
    """

    name: str
    parameters: int
    accuracies: list[float]
    mean: float
    standard_error: float | None
    held_out_accuracies: list[float]
    best_epochs: list[int]
    seconds: float


class DifferenceRecord(Record):
    """The subnetwork's accuracy less that of another network, trained with the same seeds.

    Attributes
    ----------
    other
        The other network.
    mean
        Mean of the differences by seed; positive where the subnetwork is better.
    standard_error
        Its standard error; null for one seed.
    """

    other: str
    mean: float
    standard_error: float | None


class TransferReport(Record, ShownInParts):
    """How a transfer went.

    Attributes
    ----------
    schema_version
        Version of this format.
    weights
        Where training started: ``keep``, ``fresh`` or ``initial``.
    last_layer
        The layer that makes the logits.
    classes_before, classes
        Number of classes of the model as it came, and of the one that is returned.
    replaced
        Whether the last layer was drawn anew.
    seeds
        The seeds; the model that is returned is that of the first.
    judged_on, samples
        What the accuracies are of, ``evaluation`` or ``held-out`` samples, and how many.
    networks
        The networks, the subnetwork first.
    differences
        The subnetwork against each other network.
    training
        How the returned model was trained.
    notes
        What a reader should know, as sentences.
    seconds
        Wall-clock seconds by stage.
    settings
        The settings of all trainings, with the version of this package.
    """

    schema_version: int = SCHEMA_VERSION
    weights: str
    last_layer: str
    classes_before: int
    classes: int
    replaced: bool
    seeds: list[int]
    judged_on: str
    samples: int
    networks: list[TrainedRecord]
    differences: list[DifferenceRecord]
    training: FinetuneReport
    notes: list[str]
    seconds: dict[str, float]
    settings: dict[str, object]

    def parts(self) -> list[Part]:
        """Return the table of networks, and what is returned."""
        ahead = {one.other: _with_error(100 * one.mean, one.standard_error, "+.2f") for one in self.differences}
        rows = [
            (
                network.name,
                f"{network.parameters:,}",
                _accuracy(network),
                ahead.get(network.name, ""),
                f"{network.seconds:.0f} s",
            )
            for network in self.networks
        ]
        table = filled(["Network", "Parameters", "Accuracy", "Subnetwork ahead by", "Time"], rows)
        return [table, *(Text(line) for line in self._lines())]

    def _lines(self) -> list[str]:
        kind = "evaluation" if self.judged_on == "evaluation" else "held-out"
        count = len(self.seeds)
        times = "one seed" if count == 1 else f"{count} seeds, ± standard error of the mean"
        head = "a new last layer" if self.replaced else "its last layer"
        first = self.networks[0].accuracies[0]
        return [
            f"Accuracy on {self.samples:,} {kind} samples, {times}; differences in points.",
            f"Returned: seed {self.seeds[0]}, accuracy {first:.4f}, with {head} for {self.classes} classes.",
        ]


def _accuracy(network: TrainedRecord) -> str:
    error = network.standard_error
    return f"{network.mean:.4f}" if error is None else f"{network.mean:.4f} ± {error:.4f}"


def _with_error(points: float, error: float | None, form: str) -> str:
    return f"{points:{form}}" if error is None else f"{points:{form}} ± {100 * error:.2f}"
