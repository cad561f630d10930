"""What `run` reports: stages, the models that they made side by side, and what had to be reached."""

from rich.text import Text

from oamip_onnx.report.grid import Grid, Section
from oamip_onnx.report.schema import SCHEMA_VERSION, Record, SpeedupRecord
from oamip_onnx.report.shown import Part, ShownInParts, byte_size, milliseconds


class StageRecord(Record):
    """One stage of a pipeline.

    Attributes
    ----------
    name
        The stage.
    cached
        Whether its results were there already, made from the same content by the same versions.
    seconds
        How long it took, now or when it ran.
    files
        What it wrote, relative to the folder of the pipeline, with SHA-256 digests.
    notes
        What it had to say, as sentences.
    """

    name: str
    cached: bool
    seconds: float
    files: dict[str, str]
    notes: list[str]


class ModelFigures(Record):
    """One model of a pipeline beside the original.

    Attributes
    ----------
    stage, path
        The stage that made it, ``original`` for the first, and its file.
    size_bytes
        Size of its files, in bytes.
    accuracy
        Accuracy on the evaluation samples, from 0 to 1; null without labels, or where ONNX Runtime does not run it.
    agreement
        Share of the samples whose largest output is the original's; null as above, or where outputs are no classes.
    sqnr_db
        Signal to noise of its output against the original's, in decibel; null for the original, and as above.
    latency_ms
        Median of the first configuration of the benchmark, in milliseconds; null where it was not timed.
    speedup
        How much faster than the original it is there; null for the original, and as above.
    """

    stage: str
    path: str
    size_bytes: int
    accuracy: float | None
    agreement: float | None
    sqnr_db: float | None
    latency_ms: float | None
    speedup: SpeedupRecord | None


class RequirementRecord(Record):
    """What a model had to reach: the name in ``[check]``, its limit, and what was found; null where it is unknown."""

    name: str
    path: str
    limit: float
    found: float | None
    passed: bool

    def describe(self) -> str:
        """Return a clause about a requirement that was missed."""
        found = "unknown" if self.found is None else f"{self.found:.6g}"
        return f"{self.path} misses {self.name.replace('_', '-')} = {self.limit:g} (found: {found})"


class RunReport(Record, ShownInParts):
    """What a pipeline did.

    Attributes
    ----------
    schema_version
        Version of this format.
    folder
        Where the results are.
    stages, models, requirements
        What ran, what it made, and what had to be reached.
    regressions
        Models that run slower than in the report of an earlier run, by more than is allowed, as sentences.
    """

    schema_version: int = SCHEMA_VERSION
    folder: str
    stages: list[StageRecord]
    models: list[ModelFigures]
    requirements: list[RequirementRecord]
    regressions: list[str]

    def failures(self) -> list[str]:
        """Return what was missed, as clauses."""
        return [one.describe() for one in self.requirements if not one.passed] + self.regressions

    def parts(self) -> list[Part]:
        """Return the stages, and the models side by side."""
        parts: list[Part] = [self._stage_grid(), self._model_grid()]
        passed = sum(one.passed for one in self.requirements)
        if self.requirements:
            parts.append(Text(f"{passed} of {len(self.requirements)} requirements are met."))
        return parts

    def _stage_grid(self) -> Grid:
        rows = tuple(
            (one.name, "cached" if one.cached else f"{one.seconds:.1f} s", ", ".join(one.files)) for one in self.stages
        )
        return Grid(("Stage", "Time", "Files"), (Section("", rows),), frozenset({"Files"}))

    def _model_grid(self) -> Grid:
        rows = tuple(
            (
                one.stage,
                byte_size(one.size_bytes),
                *("" if value is None else f"{value:.4f}" for value in (one.accuracy, one.agreement)),
                "" if one.latency_ms is None else f"{milliseconds(one.latency_ms)} ms",
                "" if one.speedup is None else f"{one.speedup.median:.2f}",
            )
            for one in self.models
        )
        return Grid(("Model", "Size", "Accuracy", "Agreement", "Latency p50", "Speed-up"), (Section("", rows),))
