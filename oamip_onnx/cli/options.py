"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The ONNX model.", show_default=False)]
Data = Annotated[
    str | None,
    typer.Option(help="Samples: .npz keyed by input name, a folder, or file.py[:function].", metavar="PATH"),
]
Labels = Annotated[str | None, typer.Option(help="Class indices: .npy or .npz; else the key 'labels'.", metavar="PATH")]
RandomData = Annotated[bool | None, typer.Option("--random-data", help="Draw samples at random; no real data.")]
Samples = Annotated[int | None, typer.Option(help="Use at most this many samples.", metavar="N")]
Target = Annotated[
    str | None,
    typer.Option(
        help="ratio=R removes the share R of every group; macs=, params=, latency= or size=F leave F.",
        metavar="KIND=VALUE",
    ),
]
Importance = Annotated[
    str | None,
    typer.Option(help="auto, oamip, reconstruction, magnitude, activation, removal, taylor, random, …", metavar="NAME"),
]
Form = Annotated[str | None, typer.Option(help="auto, response, layerwise, shift or gate.", metavar="NAME")]
Preset = Annotated[str | None, typer.Option(help="default, or paper: the authors' program.", metavar="NAME")]
Scheduler = Annotated[str | None, typer.Option(help="Solve on a Dask cluster: tcp://host:8786.", metavar="ADDRESS")]
NoCache = Annotated[bool | None, typer.Option("--no-cache", help="Neither keep nor reuse solved programs.")]
RoundTo = Annotated[
    str | None, typer.Option(help="Widths in multiples of N; auto: here, or --for cuda, arm, …", metavar="N")
]
Deployment = Annotated[
    # Of use with --round-to auto alone, whose help names it.
    str | None, typer.Option("--for", help="Where the model will run.", metavar="NAME", hidden=True)
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(help="Leave these nodes or tensors alone: a glob, or re: and an expression.", metavar="PATTERN"),
]
Only = Annotated[list[str] | None, typer.Option(help="Narrow these nodes or tensors only.", metavar="PATTERN")]
AllowInexact = Annotated[
    bool | None, typer.Option("--allow-inexact", help="Open channels under a normalisation over them.")
]
Heads = Annotated[
    str | None, typer.Option(help="Attention loses whole heads, or a dimension of every head.", metavar="NAME")
]
Evaluation = Annotated[str | None, typer.Option("--eval", help="Samples for accuracy and drift.", metavar="PATH")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the data; default 5.", metavar="N")]
LearningRate = Annotated[float | None, typer.Option(help="Largest of the cycle; 0.001 for adamw.", metavar="RATE")]
BatchSize = Annotated[int | None, typer.Option(help="Samples a step; default 64.", metavar="N")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Keep the state here, and go on from it.", metavar="DIR", show_default=False)
]
TrainingSeed = Annotated[int | None, typer.Option(help="Seed of all draws.", metavar="N")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting of --config: form=layerwise, seed=1, …", metavar="NAME=VALUE"),
]
InputShape = Annotated[
    list[str] | None, typer.Option(help="Shape of an input with dynamic axes.", metavar="NAME=1,3,224,224")
]
Provider = Annotated[str | None, typer.Option(help="ONNX Runtime provider: cpu, cuda, …", metavar="NAME")]
Threads = Annotated[int | None, typer.Option(help="Threads of ONNX Runtime; 0: its own choice.", metavar="N")]
Scores = Annotated[str | None, typer.Option(help="Scores of oamip score --out.", metavar="PATH")]
RunResult = Annotated[str | None, typer.Option("--result", help="A run of oamip prune --json.", metavar="PATH")]
Json = Annotated[
    str | None, typer.Option("--json", help="Write the result as JSON; - is standard output.", metavar="PATH")
]


def given(**settings: object) -> dict[str, object]:
    """Return the settings that were given on the command line."""
    return {name: value for name, value in settings.items() if value is not None and value not in ([], {}, ())}
