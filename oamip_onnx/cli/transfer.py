"""`oamip transfer`: a subnetwork trained on another data set, beside the network that it comes from."""

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
from oamip_onnx.model import check_writable
from oamip_onnx.training import make_finetune_settings, require_torch
from oamip_onnx.transferring import transfer as run_transfer

EPILOG = "Example: oamip transfer small.onnx out.onnx --data digits --classes 10"


@app.command(epilog=EPILOG)
def transfer(
    model: options.Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    *,
    data: Annotated[str, typer.Option(help="The other data set, as for prune.", metavar="PATH", show_default=False)],
    labels: options.Labels = None,
    classes: Annotated[int | None, typer.Option(help="Its classes; default: the model's.", metavar="K")] = None,
    weights: Annotated[str | None, typer.Option(help="Start from keep, fresh or initial.", metavar="NAME")] = None,
    initial: Annotated[str | None, typer.Option(help="The network before any training.", metavar="PATH")] = None,
    original: Annotated[str | None, typer.Option(help="The unpruned network, to compare with.", metavar="PATH")] = None,
    result: options.RunResult = None,
    seeds: Annotated[int, typer.Option(help="Train so often, to compare.", metavar="N")] = 1,
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="Samples to measure the accuracy on.", metavar="PATH")
    ] = None,
    epochs: options.Epochs = None,
    learning_rate: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    batch_norm: Annotated[
        str | None, typer.Option(help="Its statistics: train, frozen or re-estimate.", metavar="NAME")
    ] = None,
    checkpoint: options.Checkpoint = None,
    seed: options.TrainingSeed = None,
    more: Annotated[
        list[str] | None, typer.Option("--set", help="Any other of finetune: threads=1, …", metavar="NAME=VALUE")
    ] = None,
    json_path: options.Json = None,
) -> None:
    """Train a subnetwork on another data set.

    With --original, beside the unpruned network and a random subnetwork.
    """
    require_torch("Transfer")
    settings = make_finetune_settings(
        {"batch_norm": "train"},
        parse_settings(more or ()),
        options.given(
            epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, batch_norm=batch_norm, seed=seed
        ),
    )
    check_writable(out)
    check_targets([model, initial, original, result], [out, json_path])
    check_json_target(json_path)
    with checkpoints_in(checkpoint), progress() as tell:
        found = run_transfer(
            model,
            data,
            classes=classes,
            weights=weights,
            initial=initial,
            original=original,
            result=result,
            seeds=seeds,
            evaluation=evaluation,
            labels=labels,
            checkpoint=checkpoint,
            settings=settings,
            progress=tell,
        )
    found.save(out)
    mark_written(out)
    write_json(found.report.model_dump_json(indent=2), json_path)
    if json_path != "-":
        output().print(found.report)
    say_notes(found.report.notes)
