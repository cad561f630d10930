"""What `finetune` reports: loss and metric epoch by epoch, and what was returned."""

from rich.text import Text

from oamip_onnx.report.schema import SCHEMA_VERSION, Record
from oamip_onnx.report.shown import Part, ShownInParts, filled


class EpochRecord(Record):
    """One pass over the training samples.

    Attributes
    ----------
    epoch
        Its number from 1; 0 is the model as it came.
    training_loss
        Mean loss of its steps; null for the model as it came.
    loss, metric
        Of the held-out samples after it.
    seconds
        Its wall-clock time with the evaluation.
    """

    epoch: int
    training_loss: float | None
    loss: float
    metric: float
    seconds: float


class EvaluationRecord(Record):
    """Both models, and the original where it is known, on samples of their own, through ONNX Runtime.

    Attributes
    ----------
    metric
        What was measured: ``accuracy`` with labels, else ``agreement`` with the original.
    original
        Of the original; null without one.
    before, after
        Of the model as it came, and of the one that is returned.
    samples
        How many samples.
    """

    metric: str
    original: float | None
    before: float
    after: float
    samples: int


class FinetuneReport(Record, ShownInParts):
    """How a fine-tuning went.

    Attributes
    ----------
    schema_version
        Version of this format.
    loss
        The loss: ``labels``, ``distillation``, ``both`` or ``layers``.
    layers
        The inner tensors that were compared with the original's.
    metric
        What is measured on held-out samples: ``accuracy``, ``agreement`` with the original, or ``cosine``.
    weights, parameters
        How many weights are trained, and how many numbers they hold.
    training_samples, held_out_samples
        Samples that were trained on, and that the weights were judged on.
    epochs
        What each epoch came to, the model as it came first.
    best_epoch
        The epoch whose weights are returned; 0 for those that came.
    stopped
        Why training ended: ``finished``, ``patience`` or ``diverged``.
    resumed_after
        The epoch whose checkpoint was taken up; null without one.
    samples_per_second
        Of training, evaluations included; null where nothing was trained in this run.
    evaluation
        Both models on samples of their own; null without any.
    max_rel_error, tolerance
        Largest difference between PyTorch's outputs and ONNX Runtime's of the returned model, relative to the largest
        output, and what is allowed.
    device
        Where it was trained.
    notes
        What a reader should know, as sentences.
    seconds
        Wall-clock seconds by stage.
    environment
        Machine and versions; nothing in it names the machine or its user.
    settings
        The settings, with the version of this package.
    """

    schema_version: int = SCHEMA_VERSION
    loss: str
    layers: list[str]
    metric: str
    weights: int
    parameters: int
    training_samples: int
    held_out_samples: int
    epochs: list[EpochRecord]
    best_epoch: int
    stopped: str
    resumed_after: int | None
    samples_per_second: float | None
    evaluation: EvaluationRecord | None
    max_rel_error: float
    tolerance: float
    device: str
    notes: list[str]
    seconds: dict[str, float]
    environment: dict[str, str | int | float]
    settings: dict[str, object]

    def parts(self) -> list[Part]:
        """Return the table of epochs, and what is returned."""
        cells = [
            (
                f"{epoch.epoch}{' *' if epoch.epoch == self.best_epoch else ''}",
                "" if epoch.training_loss is None else f"{epoch.training_loss:.4f}",
                f"{epoch.loss:.4f}",
                f"{epoch.metric:.4f}",
                f"{epoch.seconds:.1f} s",
            )
            for epoch in self.epochs
        ]
        table = filled(["Epoch", "Training loss", "Held-out loss", f"Held-out {self.metric}", "Time"], cells)
        return [table, *(Text(line) for line in self._lines())]

    def _lines(self) -> list[str]:
        first, best = self.epochs[0], self.epochs[self.best_epoch]
        change = f"{self.metric} {first.metric:.4f} → {best.metric:.4f}"
        lines = [f"Returned: epoch {best.epoch} (*), {change} on {self.held_out_samples:,} held-out samples."]
        if self.evaluation is not None:
            found = self.evaluation
            known = "" if found.original is None else f" (original {found.original:.4f})"
            change = f"{found.metric} {found.before:.4f} → {found.after:.4f}{known}"
            lines.append(f"Evaluation: {change} on {found.samples:,} samples.")
        return lines
