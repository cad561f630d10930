"""`oamip import`: a trained model of a framework as an ONNX model."""  # noqa: N999 - commands are imported by name

from pathlib import Path
from typing import Annotated

import typer

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.display import progress
from oamip_onnx.cli.streams import check_json_target, check_targets, mark_written, output, say_notes, write_json
from oamip_onnx.importing import import_model, parse_inputs

EPILOG = "Example: oamip import net.py:make model.onnx --input x=1,3,32,32"


@app.command(name="import", epilog=EPILOG)
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A trained model: file.py:factory, .pt2, .pt, .keras, .tflite, .joblib, .onnx, a SavedModel folder.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The ONNX file to write.", show_default=False)],
    *,
    converter: Annotated[
        str | None,
        typer.Option(
            "--from", help="torch, keras, tensorflow, sklearn, jax, paddle, onnx; else by SOURCE.", metavar="NAME"
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="What an input takes: x=1,3,32,32 or ids=1,16:int64.", metavar="NAME=SHAPE"),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Weights for a model that comes from code.", metavar="PATH")
    ] = None,
    data: options.Data = None,
    opset: Annotated[
        int | None, typer.Option(help="Operator set of the result; at least 18 by default.", metavar="N")
    ] = None,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="Fix the number of samples in a batch.")] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest difference of an output, by its largest value; 1e-4.", metavar="X"),
    ] = None,
    json_path: options.Json = None,
) -> None:
    """Make a trained model of a framework an ONNX model to prune.

    It is converted, cleaned up, and compared with what the framework computes.
    """
    check_targets([source, state, data], [out, json_path])
    check_json_target(json_path)
    with progress() as tell:
        report = import_model(
            source,
            out,
            converter=converter,
            inputs=parse_inputs(inputs or []),
            state=state,
            data=data,
            opset=opset,
            fixed_batch=fixed_batch,
            tolerance=tolerance,
            progress=tell,
        )
    mark_written(out)
    write_json(report.model_dump_json(indent=2), json_path)
    if json_path != "-":
        output().print(report)
    say_notes(report.notes)
