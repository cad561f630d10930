"""The stages of a pipeline: what each reads, what it writes, and how it runs."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from oamip_onnx.bench import BenchSettings, describe_environment
from oamip_onnx.benching import benchmark
from oamip_onnx.config import PruneConfig
from oamip_onnx.exporting import export
from oamip_onnx.finetuning import finetune
from oamip_onnx.importing import import_model
from oamip_onnx.model import write_text
from oamip_onnx.pipeline import prune
from oamip_onnx.progress import Progress
from oamip_onnx.report.schema import Record
from oamip_onnx.running.definition import (
    BenchSection,
    Definition,
    ExportSection,
    FinetuneSection,
    ImportSection,
    PruneSection,
)
from oamip_onnx.runtime import RuntimeOptions

# Digits of a key that tell two trainings apart.
_KEY_DIGITS = 12

# The machine decides latencies, and nothing else.
_MACHINE = ("cpu", "logical_cores", "operating_system", "frequency_governor", "frequency_boost")


@dataclass(frozen=True)
class Work:
    """What stages work on.

    Attributes
    ----------
    folder
        Where results go.
    original
        The model that all others are compared with.
    model
        The model that a stage reads: what the stage before it wrote.
    models
        Every ONNX model so far, the original first.
    data, labels, evaluation
        Samples; empty where the pipeline names none.
    random_data
        Whether samples may be drawn at random.
    key
        What the stage that runs is made from; see `stage_key`.
    """

    folder: Path
    original: Path
    model: Path
    models: tuple[Path, ...]
    data: str | None
    labels: str | None
    evaluation: str | None
    random_data: bool
    key: str = ""


class Stage(Protocol):
    """A stage of a pipeline."""

    @property
    def name(self) -> str:
        """What users see."""

    @property
    def result(self) -> str:
        """The file that it writes, beside a report of the same stem."""

    def settings(self) -> Mapping[str, object]:
        """Return all that shapes the result, beside the content of files."""

    def reads(self, work: Work) -> dict[str, str]:
        """Return the files, folders and scripts that it reads, by role."""

    def run(self, work: Work, progress: Progress) -> list[str]:
        """Write the result and its report, and return notes."""


def report_name(result: str) -> str:
    """Return the name of the report beside a result."""
    return f"{Path(result).name}.json" if not result.endswith(".json") else result


@dataclass(frozen=True)
class ImportStage:
    """From a framework to ONNX."""

    section: ImportSection
    name: str = field(default="import", init=False)
    result: str = field(default="imported.onnx", init=False)

    def settings(self) -> Mapping[str, object]:
        """Return the section; of its paths, the content counts, and the name of the function."""
        own = self.section.model_dump(exclude={"state", "data"})
        return own | {"source": Path(self.section.source).name}

    def reads(self, work: Work) -> dict[str, str]:
        """Return the source, its weights and samples."""
        data = self.section.data or work.data
        files = {"source": self.section.source, "state": self.section.state, "data": data}
        return {role: file for role, file in files.items() if file is not None}

    def run(self, work: Work, progress: Progress) -> list[str]:
        """Import."""
        own = self.section
        report = import_model(
            own.source,
            work.folder / self.result,
            converter=own.converter,
            inputs=own.inputs,
            state=own.state,
            data=own.data or work.data,
            opset=own.opset,
            fixed_batch=own.fixed_batch,
            tolerance=own.tolerance,
            progress=progress,
        )
        _write(report, work.folder, self.result)
        return report.notes


@dataclass(frozen=True)
class PruneStage:
    """Narrower, repaired, verified."""

    section: PruneSection
    name: str = field(default="prune", init=False)
    result: str = field(default="pruned.onnx", init=False)

    def settings(self) -> Mapping[str, object]:
        """Return the settings; of the metric's path, the content counts, and the name of the function."""
        metric = self.section.config.metric
        return self.section.config.model_dump(mode="json") | {"metric": metric and Path(metric).name}

    def reads(self, work: Work) -> dict[str, str]:
        """Return model, samples and metric."""
        metric = self.section.config.metric
        more = {"model": str(work.model)} | ({} if metric is None else {"metric": metric})
        return _samples(work, self.section.data, self.section.labels) | more

    def run(self, work: Work, progress: Progress) -> list[str]:
        """Prune."""
        data = self.section.data or work.data
        result = prune(
            work.model,
            data,
            labels=self.section.labels or work.labels,
            evaluation=work.evaluation,
            random_data=data is None and work.random_data,
            config=self.section.config,
            progress=progress,
        )
        result.save(work.folder / self.result)
        _write(result.report, work.folder, self.result)
        return result.report.notes


@dataclass(frozen=True)
class FinetuneStage:
    """Trained further."""

    section: FinetuneSection
    name: str = field(default="finetune", init=False)
    result: str = field(default="finetuned.onnx", init=False)

    def settings(self) -> Mapping[str, object]:
        """Return the settings."""
        return self.section.settings.model_dump(mode="json")

    def reads(self, work: Work) -> dict[str, str]:
        """Return the models and samples."""
        models = {"model": str(work.model), "original": str(work.original)}
        return _samples(work, self.section.data, self.section.labels) | models

    def run(self, work: Work, progress: Progress) -> list[str]:
        """Fine-tune; an interrupted training of the same content goes on from its last epoch."""
        result = finetune(
            work.model,
            self.section.data or work.data or "",
            labels=self.section.labels or work.labels,
            original=work.original,
            evaluation=work.evaluation,
            checkpoint=work.folder / f"checkpoint-{work.key[:_KEY_DIGITS]}",
            settings=self.section.settings,
            progress=progress,
        )
        result.save(work.folder / self.result)
        _write(result.report, work.folder, self.result)
        for checkpoint in work.folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return result.report.notes


@dataclass(frozen=True)
class ExportStage:
    """To a runtime."""

    section: ExportSection
    config: PruneConfig

    @property
    def name(self) -> str:
        """What users see."""
        return f"export {self.section.file.removeprefix('exported-').rpartition('.')[0]}"

    @property
    def result(self) -> str:
        """The file."""
        return self.section.file

    def settings(self) -> Mapping[str, object]:
        """Return the section, and the settings of the run."""
        return self.section.model_dump() | self.config.model_dump(mode="json")

    def reads(self, work: Work) -> dict[str, str]:
        """Return model and samples."""
        return _samples(work, None, None) | {"model": str(work.model)}

    def run(self, work: Work, progress: Progress) -> list[str]:
        """Export."""
        report = export(
            work.model,
            work.folder / self.result,
            format=self.section.format,
            data=work.data,
            evaluation=work.evaluation,
            min_sqnr_db=self.section.min_sqnr,
            config=self.config,
            progress=progress,
        )
        _write(report, work.folder, self.result)
        return report.notes


@dataclass(frozen=True)
class BenchStage:
    """All ONNX models side by side."""

    section: BenchSection
    name: str = field(default="bench", init=False)
    result: str = field(default="bench.json", init=False)

    def settings(self) -> Mapping[str, object]:
        """Return the section, and the machine."""
        machine = asdict(describe_environment(RuntimeOptions(self.section.providers[0])))
        return self.section.model_dump(exclude={"compare"}) | {name: machine[name] for name in _MACHINE}

    def reads(self, work: Work) -> dict[str, str]:
        """Return the models, samples, and an earlier report."""
        models = {f"model {number}": str(path) for number, path in enumerate(work.models)}
        before = {} if self.section.compare is None else {"compare": self.section.compare}
        return _samples(work, None, None) | models | before

    def run(self, work: Work, progress: Progress) -> list[str]:
        """Measure."""
        own, plain = self.section, BenchSettings()
        report = benchmark(
            list(work.models),
            work.data,
            providers=own.providers,
            threads=own.threads,
            batches=own.batches,
            compare=own.compare,
            max_slow_down=own.max_slow_down,
            settings=BenchSettings(
                minimum_runs=own.runs,
                minimum_seconds=own.seconds,
                maximum_seconds=max(plain.maximum_seconds, 2 * own.seconds * len(work.models)),
                maximum_runs=max(plain.maximum_runs, own.runs),
                cold_processes=plain.cold_processes if own.cold_start else 0,
            ),
            progress=progress,
        )
        _write(report, work.folder, self.result)
        return report.notes


def stages_of(definition: Definition) -> list[Stage]:
    """Return the stages of a pipeline in the order in which they run."""
    config = definition.prune.config if definition.prune else PruneConfig(bench=False)
    # What an export takes of the settings: provider, threads, seed, samples, shapes.
    taken = {name: getattr(config, name) for name in ("provider", "threads", "seed", "samples", "input_shapes")}
    stages: list[Stage] = []
    if definition.import_:
        stages.append(ImportStage(definition.import_))
    if definition.prune:
        stages.append(PruneStage(definition.prune))
    if definition.finetune:
        stages.append(FinetuneStage(definition.finetune))
    stages += [ExportStage(section, PruneConfig(bench=False, **taken)) for section in definition.export]
    if definition.bench:
        stages.append(BenchStage(definition.bench))
    return stages


def _samples(work: Work, data: str | None, labels: str | None) -> dict[str, str]:
    files = {"data": data or work.data, "labels": labels or work.labels, "evaluation": work.evaluation}
    return {role: file for role, file in files.items() if file is not None}


def _write(report: Record, folder: Path, result: str) -> None:
    write_text(report.model_dump_json(indent=2) + "\n", folder / report_name(result))
