"""`oamip finetune`: training in PyTorch, the weights written back into the same ONNX graph."""

from pathlib import Path
from typing import Annotated

import typer

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.display import progress
from oamip_onnx.cli.streams import (
    check_json_target,
    check_targets,
    checkpoints_in,
    mark_written,
    output,
    say_notes,
    write_json,
)
from oamip_onnx.config import parse_settings
from oamip_onnx.finetuning import finetune as run_finetune
from oamip_onnx.model import check_writable
from oamip_onnx.training import make_finetune_settings, require_torch

EPILOG = "Example: oamip finetune small.onnx tuned.onnx --data train.npz --original model.onnx"


@app.command(epilog=EPILOG)
def finetune(
    model: options.Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    *,
    data: Annotated[str, typer.Option(help="Training samples, as for prune.", metavar="PATH", show_default=False)],
    labels: options.Labels = None,
    original: Annotated[
        str | None, typer.Option(help="The model before pruning, to learn from.", metavar="PATH")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="Samples to compare the models on.", metavar="PATH")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="auto, labels, distillation, both or layers.", metavar="NAME")
    ] = None,
    epochs: options.Epochs = None,
    learning_rate: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    optimiser: Annotated[str | None, typer.Option(help="adamw or sgd.", metavar="NAME")] = None,
    batch_norm: Annotated[
        str | None, typer.Option(help="Its statistics: frozen, train or re-estimate.", metavar="NAME")
    ] = None,
    held_out: Annotated[float | None, typer.Option(help="Share to judge on; default 0.1.", metavar="SHARE")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a gain before it stops.", metavar="N")] = None,
    checkpoint: options.Checkpoint = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", metavar="NAME")] = None,
    seed: options.TrainingSeed = None,
    more: Annotated[
        list[str] | None, typer.Option("--set", help="Any other: threads=1, freeze=[…], …", metavar="NAME=VALUE")
    ] = None,
    json_path: options.Json = None,
) -> None:
    """Train a model's weights; nothing else in the file changes."""
    require_torch()
    settings = make_finetune_settings(
        parse_settings(more or ()),
        options.given(
            loss=loss,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            optimiser=optimiser,
            batch_norm=batch_norm,
            held_out=held_out,
            patience=patience,
            device=device,
            seed=seed,
        ),
    )
    check_writable(out)
    check_targets([model, original], [out, json_path])
    check_json_target(json_path)
    with checkpoints_in(checkpoint), progress() as tell:
        result = run_finetune(
            model,
            data,
            labels=labels,
            original=original,
            evaluation=evaluation,
            checkpoint=checkpoint,
            settings=settings,
            progress=tell,
        )
    result.save(out)
    mark_written(out)
    write_json(result.report.model_dump_json(indent=2), json_path)
    if json_path != "-":
        output().print(result.report)
    say_notes(result.report.notes)
