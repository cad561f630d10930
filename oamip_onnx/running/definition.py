"""What a pipeline file says: its stages, their settings, and what the result must reach."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.converters.formats import FORMATS, Format, find_format  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import UsageError, closest
from oamip_onnx.training import FinetuneSettings, make_finetune_settings


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ImportSection(_Section):
    """``[import]``: the arguments of `import_model`.

    Attributes
    ----------
    source
        What is read: a file or folder, or ``file.py:factory``.
    converter, inputs, state, data, opset, fixed_batch, tolerance
        As in `import_model`; ``from`` is another name for `converter`.
    """

    source: str
    converter: str | None = Field(default=None, alias="from")
    inputs: dict[str, str] = {}
    state: str | None = None
    data: str | None = None
    opset: int | None = None
    fixed_batch: bool = False
    tolerance: float | None = None


class PruneSection(_Section):
    """``[prune]``: files of its own, in place of those at the top, and the settings of `PruneConfig`."""

    data: str | None = None
    labels: str | None = None
    config: PruneConfig


class FinetuneSection(_Section):
    """``[finetune]``: training samples, and the settings of `FinetuneSettings`."""

    data: str | None = None
    labels: str | None = None
    settings: FinetuneSettings


class ExportSection(_Section):
    """One of ``[[export]]``: a format, the name of its file without folder, and what it has to come close to."""

    format: str
    name: str = ""
    min_sqnr: float | None = None

    @property
    def row(self) -> Format:
        """The format."""
        return find_format(self.format)

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.name or f"exported-{self.format}{self.row.suffix}"


class BenchSection(_Section):
    """``[bench]``: provider, threads and batches of the benchmark, how long each model runs, an earlier report.

    Attributes
    ----------
    providers, threads, batches
        Every combination is measured.
    seconds, runs
        Each model runs at least so long and so often.
    cold_start
        Whether fresh processes are timed.
    compare, max_slow_down
        A report of an earlier run, and the share by which a median may exceed the one in it.
    """

    providers: tuple[str, ...] = ("cpu",)
    threads: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = ()
    seconds: float = Field(default=3.0, ge=0)
    runs: int = Field(default=50, ge=2)
    cold_start: bool = False
    compare: str | None = None
    max_slow_down: float = Field(default=0.05, ge=0)


class CheckSection(_Section):
    """``[check]``: what the last model and every export must reach, or the run ends with exit code 1.

    Attributes
    ----------
    min_accuracy
        Least accuracy on the evaluation samples, from 0 to 1.
    max_drop
        Largest drop of the accuracy below the original's, from 0 to 1.
    min_agreement
        Least share of samples whose largest output is the original's.
    min_speedup
        Least speed-up over the original; it is missed if the whole interval lies below. Only ONNX files are timed.
    max_size_bytes
        Largest file.
    """

    min_accuracy: float | None = Field(default=None, ge=0, le=1)
    max_drop: float | None = Field(default=None, ge=0, le=1)
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    min_speedup: float | None = Field(default=None, gt=0)
    max_size_bytes: int | None = Field(default=None, ge=1)


class Definition(_Section):
    """A pipeline: where models and samples are, and the stages in the order in which they run.

    Attributes
    ----------
    model
        The ONNX model, where nothing is imported.
    folder
        Where the results go.
    data, labels, evaluation
        Samples for calibration, their classes, and samples for accuracy and drift, as in `prune`.
    random_data
        Whether samples are drawn at random for want of real ones.
    import_, prune, finetune, export, bench, check
        The stages; those that are not named do not run.
    """

    model: str | None = None
    folder: str = "build"
    data: str | None = None
    labels: str | None = None
    evaluation: str | None = None
    random_data: bool = False
    import_: ImportSection | None = Field(default=None, alias="import")
    prune: PruneSection | None = None
    finetune: FinetuneSection | None = None
    export: tuple[ExportSection, ...] = ()
    bench: BenchSection | None = None
    check: CheckSection = CheckSection()

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.model is None) == (self.import_ is None):
            raise ValueError('name the model with model = "…", or where it comes from in [import]; one of both')
        files = [section.file for section in self.export]
        if len(set(files)) < len(files):
            raise ValueError("two exports would go to one file; give each a name")
        if self.check.min_speedup is not None and self.bench is None:
            raise ValueError("min-speedup needs a measurement; add [bench]")
        return self


def read_definition(source: str | Path | Mapping[str, Any]) -> tuple[Definition, Path]:
    """Return a pipeline, and the folder that its paths start from.

    Parameters
    ----------
    source
        The path of a TOML file, whose paths start from its own folder; or the same content as a mapping, whose paths
        start from the working directory.

    Raises
    ------
    UsageError
        If the file is missing or no TOML, or a section, name or value is not allowed.
    """
    if isinstance(source, Mapping):
        return make_definition(source, "The pipeline"), Path()
    path = Path(source)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The pipeline {str(path)!r} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The pipeline {str(path)!r} is no TOML: {error}.") from error
    return make_definition(content, f"The pipeline {str(path)!r}"), path.parent


def make_definition(content: Mapping[str, Any], what: str) -> Definition:
    """Return the pipeline that a mapping describes.

    Raises
    ------
    UsageError
        If a section, name or value is not allowed; the sentence calls the pipeline `what`.
    """
    values = _sections(content, what)
    try:
        found = Definition(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        where = f" at {place!r}" if place else ""
        raise UsageError(f"{what} cannot be used{where}: {reason}.") from error
    for section in found.export:
        _check_export(section, what)
    return found


def _sections(content: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the sections with the settings of stages made from their tables."""
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    known = [field.alias or name for name, field in Definition.model_fields.items()]
    for name in values:
        if name not in known:
            raise UsageError(f"{what} has no place for {name!r}{closest(name, known)}.")
    for name, make in (("prune", _prune), ("finetune", _finetune), ("import", dict), ("bench", dict), ("check", dict)):
        if name in values:
            values[name] = make(_table(values[name], name, what))
    if "export" in values:
        exports = values["export"] if isinstance(values["export"], list | tuple) else [values["export"]]
        values["export"] = [_table(one, "export", what) for one in exports]
    return values


def _check_export(section: ExportSection, what: str) -> None:
    if section.format not in FORMATS:
        find_format(section.format)  # says what there is
    if Path(section.file).name != section.file or Path(section.file).suffix.lower() != section.row.suffix:
        raise UsageError(
            f"{what} names the export {section.file!r}; give a file name without a folder that ends in "
            f"{section.row.suffix}."
        )


def _table(value: object, name: str, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} has {name} = {value!r}; write a table: [{name}], and its settings below.")
    return {str(key).replace("-", "_"): one for key, one in value.items()}


def _prune(table: dict[str, Any]) -> dict[str, Any]:
    files: dict[str, Any] = {name: table.pop(name) for name in ("data", "labels") if name in table}
    # Latency is what [bench] measures, beside all other models.
    return {**files, "config": make_config({"bench": False}, table)}


def _finetune(table: dict[str, Any]) -> dict[str, Any]:
    files: dict[str, Any] = {name: table.pop(name) for name in ("data", "labels") if name in table}
    return {**files, "settings": make_finetune_settings(table)}
