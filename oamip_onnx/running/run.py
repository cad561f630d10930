"""A pipeline from its file to its results: only what has changed runs again."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from oamip_onnx.errors import DataError, OutputError, UsageError
from oamip_onnx.exporting import check_possible
from oamip_onnx.model import check_writable, load_model, write_text
from oamip_onnx.progress import Progress, Step, silent
from oamip_onnx.report import BenchReport, RunReport, StageRecord, read_bench_report, regression_sentence
from oamip_onnx.running.definition import Definition, read_definition
from oamip_onnx.running.figures import Made, check, figures_of
from oamip_onnx.running.paths import resolved
from oamip_onnx.running.stages import ExportStage, Stage, Work, report_name, stages_of
from oamip_onnx.running.store import Done, Store, content_digest, stage_key
from oamip_onnx.runtime import RuntimeOptions, options_that_start
from oamip_onnx.training import require_torch

REPORT = "run.json"


def run_pipeline(
    source: str | Path | Mapping[str, Any], *, force: bool = False, progress: Progress | None = None
) -> RunReport:
    """Run the stages of a pipeline: import, prune, finetune, export, bench, in this order.

    A stage whose settings, files and versions are those of its last run is not run again. After an interruption the
    pipeline goes on with the stage that was interrupted.

    Parameters
    ----------
    source
        The path of a TOML file, or the same content as a mapping; `docs/pipelines.md` describes it.
    force
        Whether every stage runs, whatever has been done.
    progress
        Called with each step.

    Returns
    -------
    RunReport
        What ran and what it made; its `failures` tell what the file asks for in vain.

    Raises
    ------
    OamipError
        One sentence that says what is wrong, where, and what to do; stages that were done stay done.

    Examples
    --------
    >>> import oamip_onnx
    >>> settings = {"target": "macs=0.5", "importance": "magnitude"}
    >>> pipeline = {"model": "model.onnx", "data": "calibration.npz", "folder": ".", "prune": settings}
    >>> [stage.cached for stage in oamip_onnx.run_pipeline(pipeline).stages]
    [False]
    >>> [stage.cached for stage in oamip_onnx.run_pipeline(pipeline).stages]
    [True]
    """
    definition, base = read_definition(source)
    definition = resolved(definition, base)
    stages = stages_of(definition)
    if not stages:
        raise UsageError("The pipeline has no stage; add [prune], [[export]], [bench] or another.")
    work = _work(definition)
    known: dict[str, str] = {}
    _check(stages, work, known)
    tell, store = progress or silent, Store(work.folder)
    models = [] if definition.model is None else [Made("original", work.original)]
    records = []
    for number, stage in enumerate(stages):
        began, told = time.perf_counter(), _numbered(tell, stage.name, number, len(stages))
        key = stage_key(stage.name, stage.settings(), _digests(stage, work, known))
        done = None if force else store.find(stage.name, key)
        cached = done is not None
        if done is None:
            notes = stage.run(replace(work, key=key), told)
            files = [stage.result, *_more_files(stage, work)]
            done = store.add(stage.name, key, files, round(time.perf_counter() - began, 3), notes)
        told(Step(stage.name, 1.0))
        records.append(_record(stage, done, cached=cached))
        work, models = _after(stage, work, models)
    return _report(definition, work, models, records)


def _work(definition: Definition) -> Work:
    folder = Path(definition.folder)
    original = Path(definition.model) if definition.model else folder / "imported.onnx"
    return Work(
        folder=folder,
        original=original,
        model=original,
        models=(original,) if definition.model else (),
        data=definition.data,
        labels=definition.labels,
        evaluation=definition.evaluation,
        random_data=definition.random_data,
    )


def _check(stages: list[Stage], work: Work, known: dict[str, str]) -> None:
    """Raise before the work starts if a stage cannot succeed."""
    try:
        work.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {str(work.folder)!r} cannot be made: {error.strerror}.") from error
    check_writable(work.folder / REPORT)
    if work.models:
        load_model(work.original)
    for stage in stages:
        for role, file in stage.reads(work).items():
            if not role.startswith(("model", "original")):
                _digest(file, f"What the stage {stage.name!r} reads as {role},", known)
        if (work.folder / stage.result).resolve() == work.original.resolve() and work.models:
            raise OutputError(f"The stage {stage.name!r} would overwrite {str(work.original)!r}; set another folder.")
        if isinstance(stage, ExportStage):
            check_possible(stage.section.row, has_data=work.data is not None)
        if stage.name == "finetune":
            require_torch()
        if stage.name in {"prune", "finetune"} and "data" not in stage.reads(work) and not work.random_data:
            raise DataError(
                f"The stage {stage.name!r} needs samples; set data at the top of the pipeline, or in its section."
            )


def _digests(stage: Stage, work: Work, known: dict[str, str]) -> dict[str, str]:
    return {role: _digest(file, f"The {role}", known) for role, file in stage.reads(work).items()}


def _digest(file: str, what: str, known: dict[str, str]) -> str:
    """Return the digest of what a stage reads; once found it holds, since a stage reads only what is written."""
    if file not in known:
        known[file] = content_digest(file, what)
    return known[file]


def _more_files(stage: Stage, work: Work) -> list[str]:
    """Return the report of a stage, and what belongs to its result and lies beside it."""
    report, stem = report_name(stage.result), Path(stage.result)
    beside = [path.name for path in sorted(work.folder.glob(f"{stage.result}.*.data"))]
    weights = stem.with_suffix(".bin").name if stem.suffix == ".xml" else ""
    more = [report, *beside, *([weights] if weights and (work.folder / weights).is_file() else [])]
    return [name for name in more if name != stage.result]


def _after(stage: Stage, work: Work, models: list[Made]) -> tuple[Work, list[Made]]:
    """Return what the next stage works on, and the models so far."""
    path = work.folder / stage.result
    if isinstance(stage, ExportStage):
        made = Made(stage.name, path, stage.section.row)
        is_onnx = path.suffix.lower() == ".onnx"
        return replace(work, models=(*work.models, *([path] if is_onnx else []))), [*models, made]
    if path.suffix.lower() != ".onnx":
        return work, models
    name = "original" if stage.name == "import" else stage.name
    return replace(work, model=path, models=(*work.models, path)), [*models, Made(name, path)]


def _record(stage: Stage, done: Done, *, cached: bool) -> StageRecord:
    return StageRecord(
        name=stage.name, cached=cached, seconds=done.seconds, files=dict(done.files), notes=list(done.notes)
    )


def _report(definition: Definition, work: Work, models: list[Made], records: list[StageRecord]) -> RunReport:
    bench: BenchReport | None = None
    if definition.bench:
        bench = read_bench_report(work.folder / "bench.json")
    config = definition.prune.config if definition.prune else None
    options = RuntimeOptions() if config is None else RuntimeOptions(config.provider, config.threads)
    options, _ = options_that_start(options)
    samples = definition.evaluation or definition.data
    labels = None if definition.evaluation else definition.labels
    figures = figures_of(models, samples, labels, options, bench)
    exports = [str(one.path) for one in models if one.stage.startswith("export")]
    report = RunReport(
        folder=str(work.folder),
        stages=records,
        models=figures,
        requirements=check(figures, [str(work.model), *exports], definition.check),
        regressions=[] if bench is None or not bench.regressions() else [regression_sentence(bench)],
    )
    write_text(report.model_dump_json(indent=2) + "\n", work.folder / REPORT)
    return report


def _numbered(tell: Progress, name: str, number: int, count: int) -> Progress:
    """Return progress whose stages are those of the pipeline."""

    def told(step: Step) -> None:
        task = step.task if step.task == step.stage or not step.stage else f"{step.stage}: {step.task}"
        tell(replace(step, task=task, stage=name, stage_number=number + 1, stage_count=count))

    return told
