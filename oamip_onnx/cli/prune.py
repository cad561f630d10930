"""`oamip prune`: the main job."""

from pathlib import Path
from typing import Annotated

import typer

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.display import progress
from oamip_onnx.cli.streams import check_json_target, check_targets, mark_written, output, say_notes, write_json
from oamip_onnx.config import make_config, parse_settings, read_config, save_config
from oamip_onnx.errors import OutputError
from oamip_onnx.model import check_writable
from oamip_onnx.pipeline import prune as run_prune
from oamip_onnx.report import Result, before_after_table, check_report_folder, summary_lines, write_report_folder

EPILOG = "Example: oamip prune model.onnx small.onnx --data calibration.npz --target ratio=0.5"


@app.command(epilog=EPILOG)
def prune(
    model: options.Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    data: options.Data = None,
    labels: options.Labels = None,
    evaluation: options.Evaluation = None,
    random_data: options.RandomData = None,
    target: options.Target = None,
    importance: options.Importance = None,
    preset: options.Preset = None,
    scores: Annotated[str | None, typer.Option(help="Use the scores of oamip score --out.", metavar="PATH")] = None,
    lossless: Annotated[
        bool | None,
        typer.Option("--lossless", help="Cut only what provably changes nothing: --input-range 0,1."),
    ] = None,
    input_range: Annotated[
        # Of use with --lossless alone, whose help names it.
        list[str] | None, typer.Option(help="0,1 or NAME=0,1.", metavar="RANGE", hidden=True)
    ] = None,
    metric: Annotated[
        # Of use with max-drop alone, which the guide explains.
        str | None, typer.Option(help="What max-drop is about.", metavar="FILE.PY:FUNCTION", hidden=True)
    ] = None,
    memory_limit: Annotated[
        # Of use for the largest models alone, whose notes name it.
        str | None, typer.Option(help="What a refit may hold, such as 512MiB.", metavar="SIZE", hidden=True)
    ] = None,
    repair: Annotated[str | None, typer.Option(help="least-squares, bias, batch-norm or none.", metavar="NAME")] = None,
    round_to: options.RoundTo = None,
    deployment: options.Deployment = None,
    ignore: options.Ignore = None,
    allow_inexact: options.AllowInexact = None,
    more: options.Set = None,
    provider: options.Provider = None,
    no_bench: Annotated[bool | None, typer.Option("--no-bench", help="Do not measure latency.")] = None,
    json_path: options.Json = None,
    report_folder: Annotated[
        Path | None, typer.Option("--report", help="Write report.html, report.md, result.json.", metavar="DIR")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML.", metavar="FILE")] = None,
    save_config_path: Annotated[
        Path | None, typer.Option("--save-config", help="Write the settings as TOML.", metavar="FILE")
    ] = None,
) -> None:
    """Write a narrower, verified, measured model."""
    settings = make_config(
        read_config(config) if config else {},
        # One layer: a preset yields to whatever else the command line says.
        parse_settings(more or ())
        | options.given(
            target=target,
            importance=importance,
            preset=preset,
            lossless=lossless,
            input_range=tuple(input_range or ()),
            metric=metric,
            memory_limit=memory_limit,
            repair=repair,
            round_to=round_to,
            deployment=deployment,
            ignore=ignore,
            allow_inexact=allow_inexact,
            provider=provider,
            bench=False if no_bench else None,
        ),
    )
    _check_targets(Path(model), out, json_path, save_config_path, report_folder)
    with progress() as tell:
        result = run_prune(
            model,
            data,
            evaluation=evaluation,
            labels=labels,
            random_data=bool(random_data),
            scores=scores,
            config=settings,
            progress=tell,
        )
    result.save(out)
    mark_written(out)
    if save_config_path:
        save_config(settings, save_config_path)
        mark_written(save_config_path)
    if report_folder:
        write_report_folder(result.report, report_folder, title=f"{Path(model).name} → {out.name}")
        mark_written(report_folder)
    _show(result.report, json_path)


def _check_targets(
    model: Path, out: Path, json_path: str | None, save_config_path: Path | None, report_folder: Path | None
) -> None:
    """Raise before the work starts if a result could not be written after it."""
    check_writable(out)
    check_targets([model], [out, json_path, save_config_path])
    check_json_target(json_path)
    if save_config_path:
        check_writable(save_config_path)
    if report_folder:
        check_report_folder(report_folder)
        if report_folder.resolve() in out.resolve().parents:
            raise OutputError(f"The model {str(out)!r} would lie in the report folder; choose another place for one.")


def _show(result: Result, json_path: str | None) -> None:
    write_json(result.model_dump_json(indent=2), json_path)
    if json_path != "-":
        console = output()
        console.print(before_after_table(result))
        for line in summary_lines(result):
            console.print(line, markup=False, soft_wrap=True)
    say_notes(result.notes)
