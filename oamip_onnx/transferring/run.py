"""From a subnetwork and another data set to the subnetwork trained on it, beside the network that it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import Samples, Source
from oamip_onnx.errors import UsageError
from oamip_onnx.finetuning import FinetuneResult, finetune
from oamip_onnx.preparation import ModelSource
from oamip_onnx.progress import Progress, StageClock, Step
from oamip_onnx.report import DifferenceRecord, ModelWithReport, Result, TrainedRecord, TransferReport
from oamip_onnx.training import FinetuneSettings, make_finetune_settings, require_torch
from oamip_onnx.transferring.job import Candidate, Task, candidates, load_task, with_history


class TransferResult(ModelWithReport[TransferReport]):
    """What `transfer` returns; a notebook, and rich's `print`, show it as the table of networks.

    Attributes
    ----------
    model
        The subnetwork, trained on the new data with the first seed.
    report
        Everything measured, as data; `report.model_dump_json()` is the result JSON.
    """


def transfer(
    source: ModelSource,
    data: Source,
    *,
    classes: int | None = None,
    weights: str | None = None,
    initial: ModelSource | None = None,
    original: ModelSource | None = None,
    result: str | Path | Result | None = None,
    seeds: int = 1,
    evaluation: Source | None = None,
    labels: str | Path | npt.NDArray[np.integer[Any]] | None = None,
    checkpoint: str | Path | None = None,
    settings: FinetuneSettings | None = None,
    progress: Progress | None = None,
    **more: Any,
) -> TransferResult:
    """Train a subnetwork that was found on one data set on another, and compare it with the network it comes from.

    Parameters
    ----------
    source
        The subnetwork: a path, its bytes, or a message; it is not modified.
    data
        Training samples with labels (see `oamip_onnx.calibration.load_samples`); a share of them is held out.
    classes
        Number of classes in the new data; by default as many as the model has. The last layer is replaced by a new one
        where the number differs.
    weights
        Where training starts: ``keep``, the weights as they come; ``fresh``, drawn anew; ``initial``, those of
        `initial` in the units that the subnetwork keeps. By default ``initial`` where that is given, else ``keep``.
    initial
        The network before pruning with its weights before any training.
    original
        The network before pruning. It is trained in the same way, and with `result` so is a random subnetwork of it
        with the same widths, unless the weights are fresh: it would be the same network.
    result
        What ``oamip prune --json`` has written about the subnetwork, as a record or a path: it knows which units were
        kept.
    seeds
        Train so many times, with the seeds from that of the settings on.
    evaluation
        Samples with labels to measure the accuracy on; the held-out ones by default.
    labels
        Class indices of the samples, if they are not in `data`.
    checkpoint
        A folder for the state of each training, in a folder of its own named like ``random-0``; trainings that are
        there already are gone on with, and finished ones are not run again.
    settings, more
        Settings as a whole or by name (`FinetuneSettings`). Batch normalisations take the statistics of the new data
        (``batch_norm="train"``) unless they say otherwise.
    progress
        Called with each step.

    Returns
    -------
    TransferResult
        The subnetwork of the first seed, and the accuracies of all networks.

    Raises
    ------
    OamipError
        One sentence that says what is wrong, where, and what to do; `MissingExtraError` without PyTorch.
    """
    require_torch("Transfer")
    chosen = _settings(settings, more)
    if seeds < 1:
        raise UsageError(f"At least one seed is needed, not {seeds}.")
    numbers = list(range(chosen.seed, chosen.seed + seeds))
    named = ["subnetwork"] + ["unpruned", "random"] * (original is not None)
    folder = None if checkpoint is None else _folder(Path(checkpoint))
    clock = StageClock(progress, ["load", *named])
    with clock.stage("load"):
        task = load_task(source, data, labels, evaluation, classes, _weights(weights, initial), chosen)
        compared, notes = candidates(task, original, initial, result)
    first, records = None, []
    for candidate in compared:
        with clock.stage(candidate.name) as tell:
            trained = [_trained(task, candidate, seed, chosen, folder, tell) for seed in numbers]
        first = first or trained[0]
        records.append(_record(candidate, trained, clock.seconds[candidate.name]))
    if first is None:
        raise ValueError("There is no network to train.")
    found = _Found(records, first, numbers, [*task.notes, *notes], dict(clock.seconds))
    proto = with_history(task, first.model, chosen, first.report)
    return TransferResult(proto, _report(task, found, chosen), task.model.external_data)


def _settings(settings: FinetuneSettings | None, more: dict[str, Any]) -> FinetuneSettings:
    """Return the settings of all trainings.

    Raises
    ------
    UsageError
        If the loss is not that of the labels.
    """
    given = settings.model_dump(exclude_unset=True) if settings else {}
    chosen = make_finetune_settings({"batch_norm": "train"}, given, more)
    if chosen.loss not in {"auto", "labels"}:
        raise UsageError(f"Transfer trains on the labels of the new data, not by {chosen.loss!r}; leave the loss out.")
    return chosen.model_copy(update={"loss": "labels"})


def _weights(weights: str | None, initial: ModelSource | None) -> str:
    """Return where training starts.

    Raises
    ------
    UsageError
        If there is no such start, or it does not go with the initial network.
    """
    name = weights or ("keep" if initial is None else "initial")
    if name not in {"keep", "fresh", "initial"}:
        raise UsageError(f"Training starts from the weights keep, fresh or initial, not {name!r}.")
    if name == "initial" and initial is None:
        raise UsageError("Initial weights are those of the network before any training; give its file with --initial.")
    if name != "initial" and initial is not None:
        raise UsageError(f"--initial gives the weights to start from, --weights {name} wants others; leave one out.")
    return name


def _folder(path: Path) -> Path:
    """Return a folder that checkpoints can be written to.

    Raises
    ------
    OutputError
        If they cannot.
    """
    from oamip_onnx.training.checkpoint import check_folder  # noqa: PLC0415 - it imports PyTorch

    check_folder(path)
    return path


def _trained(
    task: Task, candidate: Candidate, seed: int, chosen: FinetuneSettings, folder: Path | None, tell: Progress
) -> FinetuneResult:
    """Return a network trained with one seed."""

    def told(step: Step) -> None:
        tell(replace(step, task=f"seed {seed}, {step.task}"))

    evaluation: Samples | None = task.evaluation
    return finetune(
        candidate.make(seed),
        task.samples,
        evaluation=evaluation,
        checkpoint=None if folder is None else folder / f"{candidate.name}-{seed}",
        settings=chosen.model_copy(update={"seed": seed}),
        progress=told,
    )


def _record(candidate: Candidate, trained: Sequence[FinetuneResult], seconds: float) -> TrainedRecord:
    reports = [one.report for one in trained]
    held_out = [report.epochs[report.best_epoch].metric for report in reports]
    measured = [report.evaluation.after for report in reports if report.evaluation is not None]
    accuracies = measured or held_out
    mean, error = _mean(accuracies)
    return TrainedRecord(
        name=candidate.name,
        parameters=candidate.parameters,
        accuracies=accuracies,
        mean=mean,
        standard_error=error,
        held_out_accuracies=held_out,
        best_epochs=[report.best_epoch for report in reports],
        seconds=seconds,
    )


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and its standard error where there are several values."""
    error = None if len(values) < 2 else float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return float(np.mean(values)), error


@dataclass(frozen=True)
class _Found:
    """What the trainings have come to."""

    records: list[TrainedRecord]
    first: FinetuneResult
    seeds: list[int]
    notes: list[str]
    seconds: dict[str, float]


def _report(task: Task, found: _Found, chosen: FinetuneSettings) -> TransferReport:
    own = found.records[0]
    differences = []
    for other in found.records[1:]:
        mean, error = _mean([a - b for a, b in zip(own.accuracies, other.accuracies, strict=True)])
        differences.append(DifferenceRecord(other=other.name, mean=mean, standard_error=error))
    training = found.first.report
    measured = task.evaluation
    return TransferReport(
        weights=task.weights,
        last_layer=task.layer.name,
        classes_before=task.layer.classes,
        classes=task.classes,
        replaced=task.weights == "fresh" or task.classes != task.layer.classes,
        seeds=found.seeds,
        judged_on="held-out" if measured is None else "evaluation",
        samples=training.held_out_samples if measured is None else measured.count,
        networks=found.records,
        differences=differences,
        training=training,
        notes=list(dict.fromkeys([*found.notes, *training.notes])),
        seconds=found.seconds,
        settings={**chosen.model_dump(mode="json"), "version": version("oamip-onnx")},
    )
