"""`oamip score`: the importance of every unit, without cutting."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app, check_json_target, messages, output, progress, write_json
from oamip_onnx.config import make_config
from oamip_onnx.model import check_writable
from oamip_onnx.pipeline import prepare
from oamip_onnx.pipeline import score as score_units
from oamip_onnx.report import ScoreReport, score_report

EPILOG = "Example: oamip score model.onnx --data calibration.npz --out scores.json"


@app.command(epilog=EPILOG)
def score(
    model: options.Model,
    data: options.Data = None,
    labels: options.Labels = None,
    random_data: options.RandomData = None,
    samples: options.Samples = None,
    images: options.Images = None,
    target: options.Target = None,
    importance: options.Importance = None,
    form: options.Form = None,
    round_to: options.RoundTo = None,
    ignore: options.Ignore = None,
    only: options.Only = None,
    allow_inexact: options.AllowInexact = None,
    heads: options.Heads = None,
    provider: options.Provider = None,
    threads: options.Threads = None,
    seed: options.Seed = None,
    out: Annotated[Path | None, typer.Option(help="Write the scores as JSON.", metavar="PATH")] = None,
    json_path: options.Json = None,
) -> None:
    """Rank the units of every group for a target."""
    config = make_config(
        options.given(
            samples=samples,
            images=images,
            target=target,
            importance=importance,
            form=form,
            round_to=round_to,
            ignore=ignore,
            only=only,
            allow_inexact=allow_inexact,
            heads=heads,
            provider=provider,
            threads=threads,
            seed=seed,
        )
    )
    check_json_target(json_path)
    if out:
        check_writable(out)
    with progress() as report:
        prepared = prepare(model, data, config, labels=labels, random_data=bool(random_data))
        scores, widths = score_units(prepared, config, report)
    found = score_report(prepared.analysis, scores, widths, config)
    text = found.model_dump_json(indent=2)
    write_json(text, None if out is None else str(out))
    write_json(text, json_path)
    if json_path != "-":
        _show(found)
    for note in found.notes:
        messages().print(f"note: {note}", markup=False, soft_wrap=True)


def _show(found: ScoreReport) -> None:
    table = Table(title=None, header_style="bold")
    for column in ("Group", "Width", "Kept", "Lowest", "Median", "Highest"):
        table.add_column(column, justify="left" if column == "Group" else "right", overflow="fold")
    for group in found.groups:
        ordered = sorted(group.importance)
        figures = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
        table.add_row(group.name, str(group.before), str(group.after), *(f"{v:.4f}" for v in figures))
    output().print(table)
