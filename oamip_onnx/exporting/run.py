"""From a model to the format of a runtime: converted, loaded back, compared with the original, timed."""

import math
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from oamip_onnx.bench import check_feeds, compare_runners, describe_environment, warnings
from oamip_onnx.calibration import BATCH_SIZE, Samples, Source, load_samples, random_samples
from oamip_onnx.config import PruneConfig, make_config, shaping_options
from oamip_onnx.converters.formats import (  # type: ignore[import-not-found,unused-ignore]
    Exported,
    ExportTask,
    Format,
    find_format,
)
from oamip_onnx.errors import DataError, OutputError, TargetError, UsageError
from oamip_onnx.exporting.comparison import first, judge, loaded, runnable, verified
from oamip_onnx.model import (
    Array,
    Model,
    bind_inputs,
    check_writable,
    history_entry,
    infer_shapes,
    load_model,
    save_model,
    with_metadata,
)
from oamip_onnx.preparation import ModelSource
from oamip_onnx.progress import Progress, StageClock
from oamip_onnx.report import ExportedFile, ExportReport, SpeedupRecord, drift_record
from oamip_onnx.report.records import latency_record
from oamip_onnx.runtime import RuntimeOptions, Session, options_that_start
from oamip_onnx.verify import Drift, check_validity

# Samples that the ranges of int8 activations are measured on, that are drawn for want of data, and that layers are
# compared on: their tensors are held.
_CALIBRATION_SAMPLES, _RANDOM_SAMPLES, _LAYER_SAMPLES = 512, 64, 16


def export(
    source: ModelSource,
    out: str | Path,
    *,
    format: str,  # noqa: A002 - what users call it
    data: Source | None = None,
    evaluation: Source | None = None,
    min_sqnr_db: float | None = None,
    config: PruneConfig | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> ExportReport:
    """Write a model in the format of a runtime, compared with the original and timed against it.

    Parameters
    ----------
    source
        The model: a path, its bytes, or a message; it is not modified.
    out
        The file to write.
    format
        ``ort``, ``ort-native``, ``fp16``, ``int8``, ``int8-dynamic``, ``openvino``, ``tensorrt``, ``coreml``,
        ``tflite``.
    data
        Samples (see `oamip_onnx.calibration.load_samples`): int8 measures the ranges of activations on them. Without
        any, the other formats are compared on random samples.
    evaluation
        Samples on which drift and accuracy are measured; `data` by default.
    min_sqnr_db
        How close the output has to come to the original's, in decibel; nothing is written that does not. By default
        each format has a bound that it aims at, and a note says where it was missed.
    config, settings
        Settings as a whole or by name (`PruneConfig`): provider, threads, seed, samples, input_shapes, bench.
    progress
        Called with the stage and the share of it that is done.

    Returns
    -------
    ExportReport
        What was written, and how it compares.

    Raises
    ------
    OamipError
        One sentence that says what is wrong, where, and what to do; nothing is written.

    Examples
    --------
    >>> from oamip_onnx.exporting import export
    >>> report = export("model.onnx", "half.onnx", format="fp16", data="calibration.npz", bench=False)
    >>> report.exported.size_bytes < report.original.size_bytes
    True
    >>> report.kept_float32
    []
    """
    config = make_config(config.model_dump() if config else {}, settings)
    chosen: Format = find_format(format)
    target = Path(out)
    _check(chosen, source, target, data, min_sqnr_db)
    options, fallback = options_that_start(RuntimeOptions(config.provider, config.threads))
    bound = chosen.min_sqnr_db if min_sqnr_db is None else min_sqnr_db
    timed = config.bench and chosen.runs_here
    clock = StageClock(progress, ["load", "convert", "verify", *(["bench"] if timed else [])])
    environment = describe_environment(options)
    with clock.stage("load"):
        model = load_model(source)
        chosen.require_types(model.proto, f"The model {str(model.path)!r}" if model.path else "The model")
        samples = _samples(model, data, config)
        compared = samples if evaluation is None else load_samples(evaluation, model)
    notes = [*([fallback] if fallback else []), *model.notes, *(samples.notes if chosen.runs_here else ())]
    drift, latency = None, None
    with _folder_beside(target) as folder:
        path = Path(folder) / target.name
        with clock.stage("convert"):
            told = ["--format", chosen.name, *([] if min_sqnr_db is None else ["--min-sqnr", f"{min_sqnr_db:g}"])]
            told += shaping_options(config)
            task = _task(model, chosen, target, samples, options, bound, told)
            made: Exported = chosen.converter()(task, path)
            if made.model is not None:
                proto = _with_metadata(made.model, task.model.metadata_props)
                save_model(proto, path, external_data=model.external_data)
        notes += made.notes
        with clock.stage("verify"):
            if made.model is not None:
                check_validity(proto, model.proto)
            if chosen.runs_here:
                before, after = Session(model.proto, options), runnable(chosen, path, options)
                drift = verified(before, after, compared, chosen.name)
            notes += _drift_notes(drift, chosen, bound, asked=min_sqnr_db is not None)
        if timed:
            with clock.stage("bench"):
                feeds = compared.one_run()
                check_feeds(before, feeds, "the model")
                latency = compare_runners(before.bind(feeds), after.bind(feeds), seed=config.seed)
        if made.model is None:
            size_bytes = _move(path, target)
        else:
            size_bytes = save_model(proto, target, external_data=model.external_data)
    environment = environment.after()
    if latency is not None:
        notes += warnings(environment, {"original": latency.original, chosen.name: latency.pruned})
    times = (None, None) if latency is None else (latency_record(latency.original), latency_record(latency.pruned))
    return ExportReport(
        format=chosen.name,
        original=ExportedFile(
            path=None if model.path is None else str(model.path), size_bytes=model.size_bytes, latency_ms=times[0]
        ),
        exported=ExportedFile(path=str(target), size_bytes=size_bytes, latency_ms=times[1]),
        speedup=None if latency is None else SpeedupRecord(**asdict(latency.speedup)),
        drift=None if drift is None else drift_record(drift, "calibration" if evaluation is None else "evaluation"),
        min_sqnr_db=None if drift is None else bound,
        kept_float32=list(made.kept_float32),
        notes=list(dict.fromkeys(notes)),
        seconds=dict(clock.seconds),
        environment=asdict(environment),
    )


def _check(chosen: Format, source: ModelSource, target: Path, data: Source | None, min_sqnr_db: float | None) -> None:
    """Raise before the work starts if the export cannot succeed."""
    if target.suffix.lower() != chosen.suffix:
        raise UsageError(
            f"The format {chosen.name!r} is kept in files that end in {chosen.suffix}; "
            f"give {str(target)!r} that ending."
        )
    if min_sqnr_db is not None and not math.isfinite(min_sqnr_db):
        raise UsageError(f"The least SQNR cannot be {min_sqnr_db} dB; give a number such as 30.")
    if min_sqnr_db is not None and not chosen.runs_here:
        raise UsageError(f"Nothing here runs {chosen.name}, so no SQNR can be measured; leave --min-sqnr out.")
    check_writable(target)
    if isinstance(source, str | Path) and Path(source).resolve() == target.resolve():
        raise OutputError(f"The result would overwrite {str(target)!r}, which is read; choose another name.")
    check_possible(chosen, has_data=data is not None)


def check_possible(chosen: Format, *, has_data: bool) -> None:
    """Raise unless a format has what it needs.

    Raises
    ------
    DataError, MissingExtraError
        If samples or packages are missing.
    """
    chosen.require_packages()
    if chosen.needs_data and not has_data:
        raise DataError(
            f"The format {chosen.name!r} measures the ranges of activations on samples; give real ones with --data, or "
            "take int8-dynamic, which needs none."
        )


def _samples(model: Model, data: Source | None, config: PruneConfig) -> Samples:
    if data is not None:
        return load_samples(data, model, limit=config.samples)
    types = infer_shapes(model, bind_inputs(model, None, config.input_shapes))
    return random_samples(model, types, config.samples or _RANDOM_SAMPLES, config.seed)


def _task(
    model: Model,
    chosen: Format,
    target: Path,
    samples: Samples,
    options: RuntimeOptions,
    bound: float,
    told: list[str],
) -> ExportTask:
    """Return what the converter works on; the model carries the metadata of the result, which name what was `told`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    step = history_entry(model.proto, "export", told, model.sha256)
    entries = with_metadata(model.proto.metadata_props, {"oamip.export": chosen.name, **step})
    real = () if samples.is_random else tuple(first(samples, _CALIBRATION_SAMPLES).batches(BATCH_SIZE))
    example = next(first(samples, _LAYER_SAMPLES).batches(_LAYER_SAMPLES))

    def run(which: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
        return loaded(which, options, chosen.name).run(feeds)

    return ExportTask(
        model=_with_metadata(proto, entries),
        source=str(model.path or "MODEL.onnx"),
        target=target,
        feeds=real,
        example=example,
        run=run,
        sqnr_db=judge(model.proto, chosen.name, samples, options) if chosen.needs_float32 else None,
        min_sqnr_db=bound,
    )


def _drift_notes(drift: Drift | None, chosen: Format, bound: float, *, asked: bool) -> list[str]:
    """Return what to say about the drift.

    Raises
    ------
    TargetError
        If the bound was asked for, and is missed or cannot be measured.
    """
    if not chosen.runs_here:
        return [f"Nothing here runs {chosen.name}, so the file was neither compared nor timed; test it there."]
    if drift is None:
        missing = "No floating-point output of a fixed shape is finite on all samples, so no drift was measured"
        if asked:
            raise TargetError(f"{missing}, and nothing was written; leave --min-sqnr out.")
        return [f"{missing}."]
    if drift.sqnr_db >= bound:
        return []
    missed = f"As {chosen.name} the output comes to an SQNR of {drift.sqnr_db:.1f} dB, not to {bound:g} dB"
    if asked:
        raise TargetError(f"{missed}, so nothing was written; lower --min-sqnr, or choose another format.")
    return [f"{missed}; check the accuracy with labels in --eval, or choose another format."]


def _with_metadata(proto: onnx.ModelProto, entries: Iterable[onnx.StringStringEntryProto]) -> onnx.ModelProto:
    """Return the model, which nobody else holds, with these metadata and no others."""
    kept = list(entries)
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    return proto


def _folder_beside(target: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a folder on the file system of the target, from which finished files move there: all or nothing."""
    try:
        return tempfile.TemporaryDirectory(prefix=".oamip-", dir=target.parent)
    except OSError as error:
        raise _not_written(target, error) from error


def _move(path: Path, target: Path) -> int:
    """Put a file in its place, what belongs to it first, and return the size of all in bytes.

    Raises
    ------
    OutputError
        If the target cannot be written.
    """
    files = [file for file in path.parent.iterdir() if file != path] + [path]
    sizes = [inner.stat().st_size for file in files for inner in [file, *file.rglob("*")] if inner.is_file()]
    try:
        for file in files:
            file.replace(target.parent / file.name)
    except OSError as error:
        raise _not_written(target, error) from error
    return sum(sizes)


def _not_written(target: Path, error: OSError) -> OutputError:
    return OutputError(f"The model cannot be written to {str(target)!r}: {error.strerror or error}.")
