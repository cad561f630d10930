"""From a model and samples to the same graph with better weights: loaded, taught, trained, compared, written."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oamip_onnx.bench import Environment, describe_environment
from oamip_onnx.calibration import Source
from oamip_onnx.errors import UsageError
from oamip_onnx.finetuning.comparison import compare, evaluate, written
from oamip_onnx.finetuning.job import Job, choose_device, fingerprint, load_job, make_network
from oamip_onnx.preparation import ModelSource
from oamip_onnx.progress import Progress, StageClock
from oamip_onnx.report import EpochRecord, EvaluationRecord, FinetuneReport, ModelWithReport
from oamip_onnx.runtime import RuntimeOptions
from oamip_onnx.training import FinetuneSettings, make_finetune_settings, require_torch
from oamip_onnx.training.epochs import Outcome

if TYPE_CHECKING:
    from oamip_onnx.training.interpreter import Network
    from oamip_onnx.training.loop import Trainer


class FinetuneResult(ModelWithReport[FinetuneReport]):
    """What `finetune` returns; a notebook, and rich's `print`, show it as the table of epochs.

    Attributes
    ----------
    model
        The fine-tuned model: the graph that came, with other weights.
    report
        Everything measured, as data; `report.model_dump_json()` is the result JSON.
    """


def finetune(
    source: ModelSource,
    data: Source,
    *,
    labels: str | Path | npt.NDArray[np.integer[Any]] | None = None,
    original: ModelSource | None = None,
    evaluation: Source | None = None,
    checkpoint: str | Path | None = None,
    settings: FinetuneSettings | None = None,
    progress: Progress | None = None,
    **more: Any,
) -> FinetuneResult:
    """Train the weights of a model, and return the same graph with the best of them.

    Parameters
    ----------
    source
        The model, pruned or not: a path, its bytes, or a message; it is not modified.
    data
        Training samples (see `oamip_onnx.calibration.load_samples`); a share of them is held out.
    labels
        Class indices of the samples, if they are not in `data`.
    original
        The model before pruning, whose outputs distillation aims at.
    evaluation
        Samples on which the models are compared at the end.
    checkpoint
        A folder that keeps the state after every epoch. If it holds a state of the same run, that goes on.
    settings, more
        Settings as a whole or by name (`FinetuneSettings`).
    progress
        Called with each step.

    Returns
    -------
    FinetuneResult
        On the held-out samples it is never worse than `source`.

    Raises
    ------
    OamipError
        One sentence that says what is wrong, where, and what to do; `MissingExtraError` without PyTorch.
    """
    require_torch()
    chosen = make_finetune_settings(settings.model_dump() if settings else {}, more)
    clock = StageClock(progress, ["load", "teach", "train", "verify"])
    options = RuntimeOptions(threads=chosen.threads)
    environment = describe_environment(options)
    with clock.stage("load"):
        job = load_job(source, data, labels, original, evaluation, chosen)
        network = make_network(job, chosen, choose_device(chosen))
        compare(network, job.raw, job.samples, options, "as it came")
    folder = None if checkpoint is None else Path(checkpoint)
    trained = _train(job, network, chosen, options, folder, clock)
    with clock.stage("verify"):
        proto, error, tolerance = written(job, network, chosen, options)
        compared = evaluate(job, proto, options)
    found = _Found(trained, error, tolerance, compared, environment.after(), dict(clock.seconds))
    return FinetuneResult(proto, _report(job, network, chosen, found), job.model.external_data)


@dataclass(frozen=True)
class _Found:
    """What a run has come to, beside the model."""

    trainer: "Trainer"
    error: float
    tolerance: float
    evaluation: EvaluationRecord | None
    environment: Environment
    seconds: dict[str, float]


def _report(job: Job, network: "Network", settings: FinetuneSettings, found: _Found) -> FinetuneReport:
    data, outcome = found.trainer.data, found.trainer.outcome
    epochs = [asdict(epoch) for epoch in outcome.epochs]
    return FinetuneReport(
        loss=job.loss,
        layers=list(job.objective.layers),
        metric=job.metric,
        weights=len(network.weights),
        parameters=sum(int(weight.numel()) for weight in network.weights.values()),
        training_samples=len(data.train),
        held_out_samples=len(data.held_out),
        epochs=[EpochRecord(epoch=one.pop("number"), **one) for one in epochs],
        best_epoch=outcome.best,
        stopped=outcome.stopped,
        resumed_after=outcome.resumed,
        samples_per_second=_speed(outcome, len(data.train)),
        evaluation=found.evaluation,
        max_rel_error=found.error,
        tolerance=found.tolerance,
        device=network.device.type,
        notes=list(dict.fromkeys([*job.notes, *_notes(job, outcome)])),
        seconds=found.seconds,
        environment=asdict(found.environment),
        settings={**settings.model_dump(mode="json"), "version": version("oamip-onnx")},
    )


def _train(
    job: Job,
    network: "Network",
    settings: FinetuneSettings,
    options: RuntimeOptions,
    folder: Path | None,
    clock: StageClock,
) -> "Trainer":
    """Return the trainer after the training; the network holds the best weights.

    Raises
    ------
    OutputError, UsageError, DataError, ModelError
        If checkpoints, samples or the original are not usable, or a GPU has too little memory.
    """
    import torch  # noqa: PLC0415 - PyTorch is optional, and slow to import

    from oamip_onnx.training.checkpoint import check_folder  # noqa: PLC0415 - as above
    from oamip_onnx.training.data import Data, Teacher, split_rows  # noqa: PLC0415 - as above
    from oamip_onnx.training.loop import Trainer, repeatable  # noqa: PLC0415 - as above

    if folder is not None:
        check_folder(folder)
    samples, objective = job.samples, job.objective
    train, held_out = split_rows(samples.count, settings.held_out, settings.seed, samples.run_size or 1)
    with clock.stage("teach") as tell:
        teacher = None
        if job.original is not None and (objective.label_share < 1 or objective.layers):
            names = list(objective.tensors)
            teacher = Teacher(job.original.proto, names, samples, options, settings.memory_limit, tell)
    run = "" if folder is None else fingerprint(job, settings)
    with clock.stage("train") as tell, repeatable(settings.threads):
        trainer = Trainer(network, objective, Data(samples, train, held_out, teacher), settings, folder, run)
        try:
            trainer.fit(tell)
        except torch.cuda.OutOfMemoryError as error:
            size = samples.run_size or settings.batch_size
            raise UsageError(
                f"The memory of the GPU does not hold a step of {size} samples; take a smaller --batch-size, or "
                "--device cpu."
            ) from error
    return trainer


def _notes(job: Job, outcome: Outcome) -> list[str]:
    notes = []
    if outcome.stopped == "diverged":
        notes.append(
            f"The loss was no longer finite in epoch {outcome.epochs[-1].number}, and training stopped; take a smaller "
            "--learning-rate."
        )
    if outcome.best == 0 and len(outcome.epochs) > 1:
        notes.append("No epoch was better than the model as it came on the held-out samples; its weights are returned.")
    if outcome.resumed is not None:
        notes.append(f"The run went on from the checkpoint of epoch {outcome.resumed}.")
    if job.evaluation is not None and job.evaluation.labels is None and job.original is None:
        notes.append("The evaluation samples have no labels and there is no original, so nothing was evaluated.")
    return notes


def _speed(outcome: Outcome, samples: int) -> float | None:
    """Return the samples a second of the epochs of this run; None where there were none."""
    seconds = [epoch.seconds for epoch in outcome.epochs if epoch.number > (outcome.resumed or 0)]
    return round(samples * len(seconds) / sum(seconds), 1) if seconds else None
