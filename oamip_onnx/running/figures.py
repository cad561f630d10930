"""The models of a pipeline side by side, and whether they reach what they must."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oamip_onnx.calibration import Samples, load_samples
from oamip_onnx.converters.formats import Format  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.exporting.comparison import runnable, verified
from oamip_onnx.model import load_model
from oamip_onnx.report import BenchEntry, BenchReport, ModelFigures, RequirementRecord
from oamip_onnx.running.definition import CheckSection
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.verify import Drift

# Digits of a drop: a difference of two shares should not miss its limit by the last bit.
_DIGITS = 12


@dataclass(frozen=True)
class Made:
    """A model of a pipeline.

    Attributes
    ----------
    stage
        What made it; ``original`` for the first.
    path
        Its file.
    format
        The format that it was exported to; None for a model that was not.
    """

    stage: str
    path: Path
    format: Format | None = None


def figures_of(
    models: Sequence[Made],
    data: str | None,
    labels: str | None,
    options: RuntimeOptions,
    bench: BenchReport | None,
) -> list[ModelFigures]:
    """Return size, accuracy, agreement and latency of each model, the first being the original.

    Parameters
    ----------
    models
        The models.
    data, labels
        Samples to compare on, and their classes; without samples, sizes and latencies are all there is.
    options
        Provider and threads.
    bench
        The benchmark of the ONNX files among them.

    Raises
    ------
    DataError
        If the samples do not fit.
    """
    original = load_model(models[0].path)
    samples = None if data is None else load_samples(data, original, labels=labels)
    timed = _timed(bench)
    session = Session(original.proto, options)
    drifts = [_drift(session, one, samples, options) for one in models]
    found = []
    for one, drift in zip(models, drifts, strict=True):
        is_original = one is models[0]
        entry = timed.get(one.path)
        found.append(
            ModelFigures(
                stage=one.stage,
                path=str(one.path),
                size_bytes=_size(one.path),
                accuracy=None if drift is None else drift.accuracy_pruned,
                agreement=None if drift is None or is_original else drift.top1_agreement,
                sqnr_db=None if drift is None or is_original else drift.sqnr_db,
                latency_ms=None if entry is None else entry.latency_ms.p50,
                speedup=None if entry is None else entry.speedup,
            )
        )
    return found


def _drift(original: Session, one: Made, samples: Samples | None, options: RuntimeOptions) -> Drift | None:
    if samples is None or (one.format is not None and not one.format.runs_here):
        return None
    after = Session(one.path, options) if one.format is None else runnable(one.format, one.path, options)
    return verified(original, after, samples, one.stage)


def _timed(bench: BenchReport | None) -> Mapping[Path, BenchEntry]:
    """Return the entries of the first configuration by the model's path."""
    found: dict[Path, BenchEntry] = {}
    for entry in [] if bench is None else bench.models:
        found.setdefault(Path(entry.path), entry)
    return found


def _size(path: Path) -> int:
    """Return the size of a model's file, or folder, with its weights beside it."""
    if path.suffix.lower() == ".onnx":
        return load_model(path).size_bytes
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    beside = path.with_suffix(".bin")  # OpenVINO's weights
    return path.stat().st_size + (beside.stat().st_size if path.suffix == ".xml" and beside.exists() else 0)


def check(figures: Sequence[ModelFigures], last: Sequence[str], wanted: CheckSection) -> list[RequirementRecord]:
    """Return whether the models at the end of a pipeline reach what they must.

    What is unknown about a model that ONNX Runtime does not run is not asked of it.

    Parameters
    ----------
    figures
        The models, the original first.
    last
        The paths of the models that are held to it.
    wanted
        The limits.
    """
    original = figures[0]
    found = []
    for one in figures:
        if one.path not in last:
            continue
        drop = None
        if original.accuracy is not None and one.accuracy is not None:
            drop = round(original.accuracy - one.accuracy, _DIGITS)
        # Only an interval that lies below the limit as a whole misses it: noise does not.
        speedup = None if one.speedup is None else one.speedup.high
        rows = (
            ("min_accuracy", wanted.min_accuracy, one.accuracy, 1),
            ("max_drop", wanted.max_drop, drop, -1),
            ("min_agreement", wanted.min_agreement, one.agreement, 1),
            ("min_speedup", wanted.min_speedup, speedup, 1),
            ("max_size_bytes", wanted.max_size_bytes, one.size_bytes, -1),
        )
        for name, limit, value, sign in rows:
            if limit is None or (value is None and not _runs_as_onnx(one)):
                continue
            passed = value is not None and sign * (value - limit) >= 0
            found.append(RequirementRecord(name=name, path=one.path, limit=limit, found=value, passed=passed))
    return found


def _runs_as_onnx(one: ModelFigures) -> bool:
    return Path(one.path).suffix.lower() == ".onnx"
