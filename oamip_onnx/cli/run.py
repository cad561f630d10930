"""`oamip run`: a pipeline from a file."""

from typing import Annotated

import typer

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.display import progress
from oamip_onnx.cli.streams import check_json_target, check_targets, output, say_notes, write_json
from oamip_onnx.errors import RegressionError
from oamip_onnx.running import run_pipeline

EPILOG = "Example: oamip run pipeline.toml"


@app.command(epilog=EPILOG)
def run(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A TOML file.", show_default=False)],
    *,
    force: Annotated[bool, typer.Option("--force", help="Run every stage, whatever has been done.")] = False,
    json_path: options.Json = None,
) -> None:
    """Import, prune, finetune, export and bench, as one file says.

    Only stages run whose settings, files or versions have changed. Ends with 1 if the result misses what [check] asks
    for, or a model became slower than [bench] allows.
    """
    check_targets([pipeline], [json_path])
    check_json_target(json_path)
    with progress() as tell:
        report = run_pipeline(pipeline, force=force, progress=tell)
    write_json(report.model_dump_json(indent=2), json_path)
    if json_path != "-":
        output().print(report)
    # What several stages have to say is said by the first.
    said: dict[str, str] = {}
    for stage in report.stages:
        for note in stage.notes:
            said.setdefault(note, stage.name)
    say_notes([f"{stage}: {note}" for note, stage in said.items()])
    if report.failures():
        missed = "; ".join(failure.rstrip(".") for failure in report.failures())
        raise RegressionError(f"The pipeline {pipeline!r} does not reach what it asks for: {missed}.")
