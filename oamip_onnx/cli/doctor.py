"""`oamip doctor`: what is installed, what works, and which widths pay on this machine."""

from typing import Annotated

import typer

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.streams import check_json_target, messages, output, write_json
from oamip_onnx.doctor import examine

EPILOG = "Example: oamip doctor --json doctor.json"


@app.command(epilog=EPILOG)
def doctor(
    no_measure: Annotated[bool | None, typer.Option("--no-measure", help="Do not time which widths pay.")] = None,
    seconds: Annotated[float, typer.Option(help="Time the widths about so long.", min=0.5, max=600.0)] = 4.0,
    json_path: options.Json = None,
) -> None:
    """Check what works here, and which widths pay.

    Looks at libraries, providers, solvers, extras, converters, cache and CPU. Ends with 1 if something that every run
    needs does not work.
    """
    check_json_target(json_path)
    console = messages()
    if console.is_terminal and not no_measure:
        console.print(f"Starting providers, solving, and timing widths for about {seconds:g} seconds …")
    found = examine(measure=not no_measure, seconds=seconds)
    write_json(found.model_dump_json(indent=2), json_path)
    if json_path != "-":
        output().print(found)
    if not found.healthy:
        raise typer.Exit(1)
