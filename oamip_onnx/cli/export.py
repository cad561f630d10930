"""`oamip export`: a model in the format of a runtime."""

from pathlib import Path
from typing import Annotated

import typer

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.display import progress
from oamip_onnx.cli.streams import check_json_target, check_targets, mark_written, output, say_notes, write_json
from oamip_onnx.config import make_config, parse_settings
from oamip_onnx.exporting import export as run_export

EPILOG = "Example: oamip export small.onnx small-int8.onnx --format int8 --data calibration.npz"


@app.command(epilog=EPILOG)
def export(
    model: options.Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    *,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="ort, ort-native, fp16, int8, int8-dynamic, openvino, tensorrt, coreml, tflite.",
            metavar="NAME",
            show_default=False,
        ),
    ],
    data: options.Data = None,
    evaluation: options.Evaluation = None,
    min_sqnr: Annotated[
        float | None, typer.Option(help="Write nothing that is further from the original.", metavar="DB")
    ] = None,
    more: options.Set = None,
    provider: options.Provider = None,
    no_bench: Annotated[bool | None, typer.Option("--no-bench", help="Do not measure latency.")] = None,
    json_path: options.Json = None,
) -> None:
    """Write a model in the format of a runtime.

    It is loaded back, compared with the original, and timed against it.
    """
    settings = make_config(
        parse_settings(more or ()) | options.given(provider=provider, bench=False if no_bench else None)
    )
    check_targets([model], [out, json_path])
    check_json_target(json_path)
    with progress() as tell:
        report = run_export(
            model,
            out,
            format=format_name,
            data=data,
            evaluation=evaluation,
            min_sqnr_db=min_sqnr,
            config=settings,
            progress=tell,
        )
    mark_written(out)
    write_json(report.model_dump_json(indent=2), json_path)
    if json_path != "-":
        output().print(report)
    say_notes(report.notes)
