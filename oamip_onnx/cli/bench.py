"""`oamip bench`: latency, cold start and memory of ONNX files against each other."""

from collections.abc import Sequence
from typing import Annotated

import typer

from oamip_onnx.bench import BenchSettings
from oamip_onnx.benching import benchmark
from oamip_onnx.cli import options
from oamip_onnx.cli.app import app, parse_input_shapes
from oamip_onnx.cli.display import progress
from oamip_onnx.cli.streams import check_json_target, output, say_notes, write_json
from oamip_onnx.errors import RegressionError, UsageError
from oamip_onnx.report import regression_sentence

EPILOG = "Example: oamip bench model.onnx small.onnx --threads 1,2 --batch 1,8"

_DEFAULT_MAX_SLOW_DOWN = "5%"

Providers = Annotated[list[str] | None, typer.Option(help="ONNX Runtime providers: cpu, cuda, …", metavar="NAME,…")]
Threads = Annotated[list[str] | None, typer.Option(help="Threads; 0: ONNX Runtime's own choice.", metavar="N,…")]
Batches = Annotated[list[str] | None, typer.Option(help="Samples a run.", metavar="N,…")]
Variants = Annotated[
    list[str] | None, typer.Option("--variant", help="Measure int8 or float16 as well.", metavar="NAME,…")
]
InputShapes = Annotated[
    list[str] | None, typer.Option(help="Shape of a dynamic input; again: another.", metavar="NAME=1,3,224,224")
]


@app.command(epilog=EPILOG)
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="ONNX files; the first is the reference.")],
    *,
    data: options.Data = None,
    batch: Batches = None,
    input_shape: InputShapes = None,
    provider: Providers = None,
    threads: Threads = None,
    variant: Variants = None,
    seconds: Annotated[float, typer.Option(help="Measure each model at least so long.", min=0.0)] = 3.0,
    runs: Annotated[int, typer.Option(help="Measure each model at least so often.", min=2)] = 50,
    no_cold_start: Annotated[bool, typer.Option("--no-cold-start", help="Start no fresh processes.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show the time of each operator.")] = False,
    compare: Annotated[str | None, typer.Option(help="Compare with an earlier --json.", metavar="PATH")] = None,
    max_slowdown: Annotated[str | None, typer.Option(help="Exit with 1 above it [5%].", metavar="SHARE")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of samples and order.", metavar="N", min=0)] = None,
    json_path: options.Json = None,
) -> None:
    """Measure latency, cold start and memory of models.

    All models are loaded at once and run in random turns.
    """
    check_json_target(json_path)
    if max_slowdown is not None and compare is None:
        raise UsageError("--max-slowdown needs an earlier report to hold against; give it with --compare.")
    with progress() as report_progress:
        report = benchmark(
            models,
            data,
            batches=_numbers(batch, "--batch"),
            input_shapes=_shapes(input_shape),
            providers=_items(provider) or ["cpu"],
            threads=_numbers(threads, "--threads") or [0],
            variants=_items(variant),
            profile=profile,
            compare=compare,
            max_slow_down=_share(max_slowdown or _DEFAULT_MAX_SLOW_DOWN),
            settings=_settings(
                seconds, runs, len(models) * (1 + len(set(_items(variant)))), cold_start=not no_cold_start
            ),
            seed=seed or 0,
            progress=report_progress,
        )
    try:
        write_json(report.model_dump_json(indent=2), json_path)
        if json_path != "-":
            output().print(report)
        say_notes(report.notes)
    finally:
        # A reader of standard output that has left does not change what was found.
        if report.regressions():
            raise RegressionError(regression_sentence(report))


def _settings(seconds: float, runs: int, models: int, *, cold_start: bool) -> BenchSettings:
    """Return the settings for a number of models, variants included, whose time limit leaves each its seconds."""
    plain = BenchSettings()
    return BenchSettings(
        minimum_runs=runs,
        minimum_seconds=seconds,
        # Twice the seconds asked for: warming up, the yardstick and models that take longer than others need room.
        maximum_seconds=max(plain.maximum_seconds, 2 * seconds * models),
        maximum_runs=max(plain.maximum_runs, runs),
        cold_processes=plain.cold_processes if cold_start else 0,
    )


def _items(texts: Sequence[str] | None) -> list[str]:
    """Return the parts of comma-separated texts."""
    return [part.strip() for text in texts or () for part in text.split(",") if part.strip()]


def _numbers(texts: Sequence[str] | None, option: str) -> list[int]:
    parts = _items(texts)
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise UsageError(f"{option} takes whole numbers such as 1,8; {wrong[0]!r} is none.")
    return [int(part) for part in parts]


def _share(text: str) -> float:
    """Return a share that was given as 0.05 or as 5%."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError as error:
        raise UsageError(f"--max-slowdown takes a share such as 5% or 0.05, not {text!r}.") from error
    if not 0 <= share < float("inf"):
        raise UsageError(f"--max-slowdown takes a share from 0 on, not {text!r}; give one such as 5% or 0.05.")
    return share


def _shapes(texts: list[str] | None) -> list[dict[str, tuple[int, ...]]]:
    """Return the shapes of every input; the second shape of one input belongs to the second of each other.

    Raises
    ------
    UsageError
        If inputs with several shapes have unequally many.
    """
    by_input: dict[str, list[tuple[int, ...]]] = {}
    for text in texts or ():
        for name, shape in parse_input_shapes([text]).items():
            by_input.setdefault(name, []).append(shape)
    count = max((len(shapes) for shapes in by_input.values()), default=0)
    for name, shapes in by_input.items():
        if len(shapes) not in {1, count}:
            raise UsageError(
                f"--input-shape gives {name!r} {len(shapes)} shapes and another input {count}; give each input one "
                "shape for all, or equally many."
            )
    return [
        {name: shapes[-1 if len(shapes) == 1 else turn] for name, shapes in by_input.items()} for turn in range(count)
    ]
