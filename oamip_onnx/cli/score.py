"""`oamip score`: the importance of every unit, without cutting; a front; several subnetworks."""

from pathlib import Path
from typing import Annotated

import typer

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.display import progress
from oamip_onnx.cli.streams import check_json_target, check_targets, output, say_notes, write_json, write_result
from oamip_onnx.config import PruneConfig, make_config, parse_settings
from oamip_onnx.errors import UsageError
from oamip_onnx.model import check_writable
from oamip_onnx.preparation import Prepared, prepare
from oamip_onnx.progress import Progress, StageClock
from oamip_onnx.report import (
    FrontReport,
    ScoreReport,
    SubnetworksReport,
    front_plot,
    front_report,
    require_plots,
    score_report,
    subnetworks_report,
)
from oamip_onnx.scoring import many, path
from oamip_onnx.scoring import score as score_units

EPILOG = "Example: oamip score model.onnx --data calibration.npz --out scores.json"


@app.command(epilog=EPILOG)
def score(
    model: options.Model,
    data: options.Data = None,
    labels: options.Labels = None,
    random_data: options.RandomData = None,
    target: options.Target = None,
    importance: options.Importance = None,
    preset: options.Preset = None,
    form: options.Form = None,
    points: Annotated[
        int | None, typer.Option("--path", help="Walk the weight of the loss; write the front.", metavar="N")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--subnetworks", help="Find K distinct subnetworks.", metavar="K")
    ] = None,
    round_to: options.RoundTo = None,
    deployment: options.Deployment = None,
    ignore: options.Ignore = None,
    allow_inexact: options.AllowInexact = None,
    more: options.Set = None,
    scheduler: options.Scheduler = None,
    no_cache: options.NoCache = None,
    provider: options.Provider = None,
    out: Annotated[Path | None, typer.Option(help="Write the scores as JSON.", metavar="PATH")] = None,
    json_path: options.Json = None,
) -> None:
    """Rank the units of every group for a target."""
    config = make_config(
        # One layer: a preset yields to whatever else the command line says.
        parse_settings(more or ())
        | options.given(
            target=target,
            importance=importance,
            preset=preset,
            form=form,
            round_to=round_to,
            deployment=deployment,
            ignore=ignore,
            allow_inexact=allow_inexact,
            scheduler=scheduler,
            cache=False if no_cache else None,
            provider=provider,
        ),
    )
    if points is not None and count is not None:
        raise UsageError("Give --path or --subnetworks, not both.")
    check_json_target(json_path)
    check_targets([model, data], [out, json_path])
    if out:
        check_writable(out)
    if points is not None and out:
        require_plots()
        if out.suffix == ".svg":
            raise UsageError(f"The plot is written beside the front as .svg; give --out the name {out.stem}.json.")
        check_writable(out.with_suffix(".svg"))
    with progress() as report:
        clock = StageClock(report, ["load", "score"])
        with clock.stage("load"):
            prepared = prepare(model, data, config, labels=labels, random_data=bool(random_data))
        with clock.stage("score") as tell:
            if points is not None:
                found: ScoreReport | FrontReport | SubnetworksReport = _front(prepared, config, points, out, tell)
            elif count is not None:
                found = _many(prepared, config, count, out, tell)
            else:
                scores, plan = score_units(prepared, config, tell)
                found = score_report(prepared.analysis, scores, plan.widths, config)
    text = found.model_dump_json(indent=2)
    write_json(text, None if out is None else str(out))
    write_json(text, json_path)
    if json_path != "-":
        output().print(found)
    say_notes(found.notes)


def _front(
    prepared: Prepared, config: PruneConfig, points: int, out: Path | None, report: Progress | None
) -> FrontReport:
    found = front_report(prepared.analysis, path(prepared, config, points, report), config)
    if out:
        write_result(front_plot(found), out.with_suffix(".svg"))
    return found


def _many(
    prepared: Prepared, config: PruneConfig, count: int, out: Path | None, report: Progress | None
) -> SubnetworksReport:
    """Find the subnetworks; the scores of each go into a file of their own beside `out`."""
    found = many(prepared, config, count, report)
    files: list[str | None] = [None] * len(found)
    if out:
        targets = [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, len(found) + 1)]
        for one, target in zip(found, targets, strict=True):
            widths = [int(one.kept[group.units].sum()) for group in prepared.analysis.groups]
            write_result(score_report(prepared.analysis, one.scores, widths, config).model_dump_json(indent=2), target)
        files = [target.name for target in targets]
    return subnetworks_report(prepared.analysis, found, files, count, config)
