"""`oamip explain`: one name of a model: what it belongs to, what can go, and why the rest stays."""

from pathlib import Path
from typing import Annotated

import typer

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.inspect import load_typed
from oamip_onnx.cli.streams import check_json_target, check_targets, output, say_notes, write_json
from oamip_onnx.config import make_config
from oamip_onnx.report.explaining import explain as explain_name
from oamip_onnx.report.ranking import grouping_settings

EPILOG = "Example: oamip explain model.onnx '/layer1/conv1/Conv[3]'"


@app.command(epilog=EPILOG)
def explain(
    model: options.Model,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A node, tensor or group, or one unit: NAME[3]; NAME[:,3] counts on axis 1. 'tensor:NAME' chooses.",
            show_default=False,
        ),
    ],
    data: options.Data = None,
    input_shape: options.InputShape = None,
    ignore: options.Ignore = None,
    only: options.Only = None,
    allow_inexact: options.AllowInexact = None,
    heads: options.Heads = None,
    scores: options.Scores = None,
    result: options.RunResult = None,
    json_path: options.Json = None,
) -> None:
    """Tell why one layer can or cannot be cut.

    Tells what else it is tied to, what it costs, and what would help.
    """
    check_json_target(json_path)
    check_targets([model, data], [json_path])
    files = [Path(file) for file in (result, scores) if file is not None]
    config = make_config(
        *(grouping_settings(file) for file in files),
        options.given(ignore=ignore, only=only, allow_inexact=allow_inexact, heads=heads),
    )
    loaded, types = load_typed(model, data, input_shape, config)
    found = explain_name(
        loaded,
        types,
        config,
        name,
        scores=None if scores is None else Path(scores),
        result=None if result is None else Path(result),
    )
    write_json(found.model_dump_json(indent=2), json_path)
    if json_path != "-":
        output().print(found)
    say_notes(found.notes)
