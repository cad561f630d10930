"""The benchmark: models, their variants and the ways to run them in; a report with what makes it doubtful out."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import onnx

from oamip_onnx.bench import (
    BenchModel,
    BenchSettings,
    Configuration,
    ConfigurationResult,
    Environment,
    Inputs,
    Latency,
    describe_environment,
    frequency_warning,
    measure,
    misaligned_widths,
    rehearse,
    sweep,
    warnings,
)
from oamip_onnx.bench.environment import BUSY_LOAD_PER_CORE
from oamip_onnx.calibration import BATCH_SIZE, Samples, Source, load_samples, random_samples
from oamip_onnx.calibration.sources import runs_alone
from oamip_onnx.errors import DataError, ModelError, UsageError
from oamip_onnx.model import Array, Model, TensorType, bind_inputs, load_model, save_model
from oamip_onnx.preparation import ModelSource
from oamip_onnx.progress import Progress, Step, silent
from oamip_onnx.report import (
    BenchReport,
    bench_report,
    check_comparable,
    compare_with,
    configuration_labels,
    read_bench_report,
)
from oamip_onnx.report.bench_records import ConfigurationRecord

VARIANTS = ("int8", "float16")

# Samples that the ranges of int8 activations are measured on, real ones and drawn ones: of a draw, all are alike.
_CALIBRATION_SAMPLES, _RANDOM_SAMPLES = 200, 32

_LOG = logging.getLogger(__name__)

Shapes = Mapping[str, Sequence[int]]


def benchmark(
    models: ModelSource | Sequence[ModelSource],
    data: Source | None = None,
    *,
    batches: Sequence[int] = (),
    input_shapes: Shapes | Sequence[Shapes] = (),
    providers: Sequence[str] = ("cpu",),
    threads: Sequence[int] = (0,),
    variants: Sequence[str] = (),
    profile: bool = False,
    compare: str | Path | None = None,
    max_slow_down: float = 0.05,
    settings: BenchSettings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure models against each other in every combination of providers, threads, batches and input shapes.

    Parameters
    ----------
    models
        Paths, bytes or messages of ONNX models; the first is the reference. All must have the same inputs.
    data
        Samples, as in `prune`; drawn at random by default.
    batches
        Samples a run; by default what a model fixes, else what `input_shapes` say, else 1.
    input_shapes
        Shapes by input name, one mapping or several; only inputs with dynamic dimensions need one.
    providers, threads
        Short names of ONNX Runtime's execution providers; intra-operator threads, 0 for its own choice.
    variants
        Of ``int8`` and ``float16``: what is made of each model and measured beside it.
    profile
        Whether to record the time of each operator.
    compare, max_slow_down
        An earlier report, and the share by which a median may exceed the one in it.
    settings
        How long to measure, and in how many processes for the cold start.
    seed
        Seed of the samples, of the random turns, and of the bootstrap; 0 or more.
    progress
        Called with each step.

    Returns
    -------
    BenchReport
        Its `regressions` are empty without `compare`.

    Raises
    ------
    OamipError
        One sentence that says what is wrong, where, and what to do; what is impossible shows before the measurement.

    Examples
    --------
    >>> import oamip_onnx
    >>> from oamip_onnx.bench import BenchSettings
    >>> quick = BenchSettings(minimum_runs=5, minimum_seconds=0.01, warmup_seconds=0.0, cold_processes=0)
    >>> report = oamip_onnx.benchmark(["model.onnx", "model.onnx"], batches=[1, 4], settings=quick)
    >>> [(entry.name, entry.configuration.batch) for entry in report.models]
    [('model.onnx', 1), ('model.onnx #2', 1), ('model.onnx', 4), ('model.onnx #2', 4)]
    """
    if seed < 0:
        raise UsageError(f"The seed cannot be {seed}; give 0 or more.")
    before = None if compare is None else read_bench_report(Path(compare))
    settings = settings or BenchSettings()
    sources = [models] if isinstance(models, str | Path | bytes | onnx.ModelProto) else list(models)
    with tempfile.TemporaryDirectory(prefix="oamip-") as folder:
        loaded = _load(sources)
        samples = None if data is None else load_samples(data, loaded[0])
        shapes = [input_shapes] if isinstance(input_shapes, Mapping) else list(input_shapes)
        inputs = _inputs(loaded, samples, batches, shapes, seed)
        configurations = sweep(list(dict.fromkeys(providers)), list(dict.fromkeys(threads)), inputs)
        notes = [] if samples is None else list(samples.notes)
        if samples is None and "int8" in variants:
            samples = _drawn(loaded[0], inputs[0], seed)
            notes.append(
                "The int8 variants were calibrated on random samples: their outputs mean nothing, their time does."
            )
        tested = list(_with_variants(sources, loaded, variants, samples, Path(folder)))
        if before is not None:
            check_comparable(tested, configurations, before, str(compare))
        rehearse(tested, configurations)
        environment = describe_environment(configurations[0].options)
        results = _measure(tested, configurations, settings, profile=profile, seed=seed, progress=progress or silent)
        environment = environment.after()
    notes += _notes(loaded, tested, results, environment, settings)
    recorded = {**asdict(environment), **_varied(configurations)}
    report = bench_report(tested, results, recorded, {**asdict(settings), "seed": seed}, list(dict.fromkeys(notes)))
    return report if before is None else compare_with(report, before, str(compare), max_slow_down)


def _load(sources: Sequence[ModelSource]) -> list[Model]:
    if not sources:
        raise UsageError("A benchmark needs at least one model; name one.")
    models = [load_model(source) for source in sources]
    for number, model in enumerate(models, start=1):
        if not model.input_names:
            raise ModelError(
                f"{_title(model, number)} has no inputs, so that there is nothing to run it on; give a model with at "
                "least one input."
            )
    first, *others = models
    for number, other in enumerate(others, start=2):
        if other.input_names != first.input_names:
            raise ModelError(
                f"The models cannot be compared: {_title(first, 1)} has the inputs {list(first.input_names)}, "
                f"{_title(other, number)} has {list(other.input_names)}."
            )
    return models


def _title(model: Model, number: int) -> str:
    return f"model {number}" if model.path is None else str(model.path)


def _inputs(
    models: Sequence[Model], samples: Samples | None, batches: Sequence[int], shapes: Sequence[Shapes], seed: int
) -> list[Inputs]:
    """Return what to run the models on: every batch at every shape."""
    if samples is not None and shapes:
        raise UsageError("The samples have shapes of their own; leave out --input-shape, or --data.")
    # By what the models get: shapes that differ in the batch alone are the same once --batch sets it.
    found: dict[object, Inputs] = {}
    for shape in shapes or [{}]:
        for batch in _batches(models, batches, shape):
            if samples is None:
                feeds = next(_random(models[0], shape, batch, seed).batches(batch))
            elif samples.count < batch:
                raise DataError(f"The data hold {samples.count} samples, but a batch of {batch} was asked for.")
            else:
                feeds = next(samples.batches(batch))
            distinct = (batch, *((name, array.shape) for name, array in feeds.items()))
            found.setdefault(distinct, Inputs(feeds, batch))
    return list(found.values())


def _batches(models: Sequence[Model], asked: Sequence[int], shape: Shapes) -> list[int]:
    """Return how many samples the runs hold.

    Raises
    ------
    UsageError
        If a model cannot run such a batch.
    """
    if min(asked, default=1) < 1:
        raise UsageError(f"A batch cannot hold {min(asked)} samples; give at least 1.")
    alone = [_title(model, number) for number, model in enumerate(models, start=1) if runs_alone(model)]
    if alone:
        if any(batch != 1 for batch in asked):
            raise UsageError(
                f"The inputs of {alone[0]} share no axis of samples, so --batch {max(asked)} is "
                "impossible; leave --batch out and give whole runs with --input-shape or --data."
            )
        return [1]
    first = models[0].input_names[0]
    default = shape[first][0] if shape.get(first) else 1
    if default < 1:
        raise UsageError(f"The shape of input {first!r} holds {default} samples; give at least 1.")
    for number, model in enumerate(models, start=1):
        fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        wrong = [batch for batch in asked if fixed > 0 and batch != fixed]
        if wrong:
            raise UsageError(
                f"--batch {wrong[0]} is impossible: {_title(model, number)} fixes its batch at {fixed}; leave --batch "
                "out, or export the model with a free batch."
            )
        default = fixed or default
    return list(dict.fromkeys(asked)) or [default]


def _random(model: Model, shape: Shapes, count: int, seed: int) -> Samples:
    bound = bind_inputs(model, None, shape)
    kinds = {v.name: TensorType(bound[v.name], v.type.tensor_type.elem_type) for v in model.graph.input}
    return random_samples(model, kinds, count, seed)


def _drawn(model: Model, inputs: Inputs, seed: int) -> Samples:
    """Return random samples to calibrate on, of the shapes of some inputs."""
    shape = {name: array.shape for name, array in inputs.feeds.items()}
    return _random(model, shape, _RANDOM_SAMPLES, seed)


def _with_variants(
    sources: Sequence[ModelSource],
    models: Sequence[Model],
    variants: Sequence[str],
    samples: Samples | None,
    folder: Path,
) -> Iterator[BenchModel]:
    """Yield each model and behind it its variants, written to the folder."""
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        raise UsageError(f"There is no variant {unknown[0]!r}; choose from {', '.join(VARIANTS)}.")
    titles: list[str] = []
    for number, (source, model) in enumerate(zip(sources, models, strict=True), start=1):
        path = _title(model, number)
        titles.append(path)
        # The same file twice is a fair question: it shows what the measurement itself makes of no difference.
        title = path if titles.count(path) == 1 else f"{path} #{titles.count(path)}"
        file, size = model.path or folder / f"{number}.onnx", model.size_bytes
        given = onnx.load_from_string(source) if isinstance(source, bytes) else source
        if isinstance(given, onnx.ModelProto):
            size = save_model(given, file)
        yield BenchModel(title, path, "", file, size)
        for variant in dict.fromkeys(variants):
            target = folder / f"{number}-{variant}.onnx"
            size = save_model(_converted(model, variant, samples, path), target)
            yield BenchModel(f"{title} ({variant})", path, variant, target, size)


def _converted(model: Model, variant: str, samples: Samples | None, title: str) -> onnx.ModelProto:
    # ONNX Runtime's converters take a second to import, and few runs need them.
    from oamip_onnx.converters.to_float16 import to_float16  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415
    from oamip_onnx.converters.to_int8 import to_int8  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415

    feeds: Iterable[dict[str, Array]] = ()
    if samples is not None:
        feeds = samples.take(slice(0, _CALIBRATION_SAMPLES)).batches(BATCH_SIZE)
    try:
        found: onnx.ModelProto = to_float16(model.proto) if variant == "float16" else to_int8(model.proto, feeds)
    except ModelError as error:
        raise ModelError(f"{title} has no {variant} variant. {error}") from error
    return found


def _measure(
    models: Sequence[BenchModel],
    configurations: Sequence[Configuration],
    settings: BenchSettings,
    *,
    profile: bool,
    seed: int,
    progress: Progress,
) -> list[ConfigurationResult]:
    results = []
    labels = _labels(configurations)
    for number, (configuration, label) in enumerate(zip(configurations, labels, strict=True)):

        def started(part: str, number: int = number, label: str = label) -> None:
            progress(Step(f"{part}, {label}" if label else part, number, len(configurations), stage="bench"))

        results.append(measure(models, configuration, settings, profile=profile, seed=seed, started=started))
        for model, times in zip(models, results[-1].profiles, strict=False):
            slowest = sorted(times, key=lambda time: -time.milliseconds)[:10]
            named = ", ".join(f"{time.node} ({time.operator}) {time.milliseconds:.3f} ms" for time in slowest)
            _LOG.info("slowest nodes of %s: %s", _named(model.name, label), named)
    progress(Step("bench", len(configurations), len(configurations), stage="bench"))
    return results


def _labels(configurations: Sequence[Configuration]) -> list[str]:
    return configuration_labels([ConfigurationRecord.of(one) for one in configurations])


def _named(name: str, label: str) -> str:
    return f"{name} ({label})" if label else name


def _varied(configurations: Sequence[Configuration]) -> dict[str, str | int]:
    """Return provider and threads for the environment: as text where they vary."""
    providers = ", ".join(dict.fromkeys(one.provider for one in configurations))
    threads = list(dict.fromkeys(one.options.threads for one in configurations))
    return {"provider": providers, "threads": threads[0] if len(threads) == 1 else ", ".join(map(str, threads))}


def _notes(
    loaded: Sequence[Model],
    models: Sequence[BenchModel],
    results: Sequence[ConfigurationResult],
    environment: Environment,
    settings: BenchSettings,
) -> list[str]:
    """Return what a reader of the figures should know."""
    labels = _labels([result.configuration for result in results])
    latencies: dict[str, Latency] = {}
    for result, label in zip(results, labels, strict=True):
        for model, latency in zip(models, result.latency.latencies, strict=True):
            latencies[_named(model.name, label)] = latency
    notes = warnings(environment, latencies, minimum_runs=settings.minimum_runs)
    notes += filter(None, [_threads_note(models, results, environment), frequency_warning(environment)])
    if any(result.configuration.provider == "cpu" for result in results):
        widths = (misaligned_widths(m.proto).describe(_title(m, n)) for n, m in enumerate(loaded, start=1))
        notes += filter(None, widths)
    notes += _float16_notes(models, results, labels)
    if settings.cold_processes and not all(result.cold_starts for result in results):
        notes.append(
            "The cold start was left out: inputs that are no plain numbers, such as texts, cannot be handed to a fresh "
            "process."
        )
    if any(start.peak_memory_bytes is None for result in results for start in result.cold_starts):
        notes.append("This system does not tell the peak memory of a process, so none is given.")
    devices = {result.configuration.provider for result in results if result.profiles} - {"cpu"}
    if devices:
        notes.append(
            f"The profiles on {', '.join(sorted(devices))} hold the time to hand each operator over, not the time that "
            "the device computes."
        )
    return notes


def _threads_note(
    models: Sequence[BenchModel], results: Sequence[ConfigurationResult], environment: Environment
) -> str:
    """Return what the intervals do not cover where sessions of several threads ran on a busy machine, or nothing."""
    several = any(result.configuration.options.threads != 1 for result in results)
    load_per_core = environment.load_before / environment.logical_cores
    if len(models) < 2 or not several or load_per_core <= BUSY_LOAD_PER_CORE:
        return ""
    return (
        "On a busy machine, sessions of several threads can differ lastingly by more than the intervals cover, even of "
        "one and the same model; end other programs, or compare with --threads 1."
    )


def _float16_notes(
    models: Sequence[BenchModel], results: Sequence[ConfigurationResult], labels: Sequence[str]
) -> Iterator[str]:
    """Yield why a float16 variant is slower than the model it was made of, where it is."""
    for result, label in zip(results, labels, strict=True):
        own = 0
        for number, model in enumerate(models):
            if not model.variant:
                own = number
            elif model.variant == "float16" and result.configuration.provider == "cpu":
                speedup = result.latency.speedup(number, reference=own)
                if speedup.significant and speedup.median < 1:
                    yield (
                        f"{_named(model.name, label)} is slower than in float32: the CPU has no float16 kernels for "
                        "most operators, so that ONNX Runtime casts to float32 before them and back behind them."
                    )
