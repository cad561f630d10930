"""`oamip bench`: latency of ONNX files against each other."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from oamip_onnx.bench import BenchSettings, Measurement, describe_environment, measure_latency, warnings
from oamip_onnx.calibration import load_samples, random_samples
from oamip_onnx.cli import options
from oamip_onnx.cli.app import app, check_json_target, messages, output, parse_input_shapes, write_json
from oamip_onnx.errors import DataError, ModelError
from oamip_onnx.model import Array, Model, bind_inputs, infer_shapes, load_model
from oamip_onnx.report import BenchReport, bench_report
from oamip_onnx.runtime import RuntimeOptions

EPILOG = "Example: oamip bench model.onnx small.onnx --threads 1"


@app.command(epilog=EPILOG)
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="ONNX files; the first is the reference.")],
    data: options.Data = None,
    batch: Annotated[int, typer.Option(help="Samples a run.", metavar="N", min=1)] = 1,
    input_shape: options.InputShape = None,
    seconds: Annotated[float, typer.Option(help="Measure each model at least so long.", min=0.0)] = 3.0,
    runs: Annotated[int, typer.Option(help="Measure each model at least so often.", min=2)] = 50,
    provider: options.Provider = None,
    threads: options.Threads = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of runs.", metavar="N")] = None,
    json_path: options.Json = None,
) -> None:
    """Measure latency, all models loaded, in random turns."""
    check_json_target(json_path)
    runtime = RuntimeOptions(provider or "cpu", threads or 0)
    runtime.provider_names()
    loaded = [load_model(model) for model in models]
    feeds = _feeds(loaded, data, batch, parse_input_shapes(input_shape), seed or 0)
    environment = describe_environment(runtime)
    settings = BenchSettings(minimum_seconds=seconds, minimum_runs=runs)
    measured = measure_latency([Path(m) for m in models], feeds, runtime, settings=settings, seed=seed or 0)
    environment = environment.after()
    notes = warnings(environment, dict(zip(models, measured.latencies, strict=True)), minimum_runs=runs)
    report = bench_report(models, measured, asdict(environment), notes, batch)
    write_json(report.model_dump_json(indent=2), json_path)
    if json_path != "-":
        _show(report, measured)
    for note in notes:
        messages().print(f"note: {note}", markup=False, soft_wrap=True)


def _feeds(
    models: list[Model], data: str | None, batch: int, shapes: dict[str, tuple[int, ...]], seed: int
) -> dict[str, Array]:
    """Return one batch for the first model; the others must take the same inputs."""
    first = models[0]
    for other in models[1:]:
        if other.input_names != first.input_names:
            raise ModelError(
                f"The models cannot be compared: {str(first.path)!r} has the inputs {list(first.input_names)}, "
                f"{str(other.path)!r} has {list(other.input_names)}."
            )
    if data is not None:
        samples = load_samples(data, first)
        if samples.count < batch:
            raise DataError(f"The data {data!r} hold {samples.count} samples; --batch asks for {batch}.")
        return next(samples.batches(batch))
    types = infer_shapes(first, bind_inputs(first, None, shapes))
    return next(random_samples(first, types, batch, seed).batches(batch))


def _show(report: BenchReport, measured: Measurement) -> None:
    table = Table(title=None, header_style="bold")
    for column in ("Model", "p50", "p90", "p99", "Runs", "Against the first"):
        table.add_column(column, justify="left" if column in {"Model", "Against the first"} else "right")
    for number, entry in enumerate(report.models):
        found = entry.latency_ms
        against = measured.speedup(number).describe() if number else "reference"
        table.add_row(
            entry.path, f"{found.p50:.3f} ms", f"{found.p90:.3f} ms", f"{found.p99:.3f} ms", str(found.runs), against
        )
    output().print(table)
