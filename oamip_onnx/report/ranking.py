"""How the units of a model are ranked, for `explain`: by a file of scores, by a run, or by their weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oamip_onnx.calibration import Samples
from oamip_onnx.channels import BoolArray, ChannelAnalysis, ChannelGroup, IntArray
from oamip_onnx.errors import DataError
from oamip_onnx.importance import ImportanceContext, magnitude
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.model import Model
from oamip_onnx.report.read import Wording, load_json, read_result
from oamip_onnx.report.scores import read_scores
from oamip_onnx.runtime import RuntimeOptions

# The settings that decide which groups a model has.
_GROUPING = ("ignore", "only", "allow_inexact", "heads", "input_shapes")

_WORDING = Wording(
    noun="report",
    invalid="The file {file} holds no settings of a run; write it with oamip score --out or oamip prune --json "
    "({problem}).",
)


@dataclass(frozen=True)
class Ranking:
    """Scores of all units, and which ones a run kept.

    Attributes
    ----------
    source
        Where the scores come from, in words.
    values
        One score a unit, higher means keep; shape (units,).
    kept
        Whether a run kept each unit, shape (units,); None without a run.
    """

    source: str
    values: FloatArray
    kept: BoolArray | None = None

    def order(self, group: ChannelGroup) -> list[IntArray]:
        """Return the positions of each block's units in the order in which they go; ties as in `select_units`."""
        values = self.values[group.units]
        return [members[np.argsort(-values[members], kind="stable")[::-1]] for members in group.members()]

    def says_something(self, group: ChannelGroup) -> bool:
        """Return whether the group's units have scores: weights rank only what a weight produces."""
        return bool(self.values[group.units].any()) or self.kept is not None


def grouping_settings(path: Path) -> dict[str, object]:
    """Return the settings that a file of scores or of a run was made with, as far as they decide the groups.

    Raises
    ------
    DataError
        If the file is missing or is not what `oamip score --out` or `oamip prune --json` writes.
    """
    report = load_json(path, _WORDING)
    config = report.get("config") if isinstance(report, dict) else None
    if not isinstance(config, Mapping):
        raise _WORDING.refused(path, "it has no field config")
    return {name: config[name] for name in _GROUPING if name in config}


def find_ranking(model: Model, analysis: ChannelAnalysis, scores: Path | None, result: Path | None) -> Ranking:
    """Return the ranking of a file of scores, else of a run, else by weight magnitude, which needs no data.

    Raises
    ------
    DataError
        If a file does not belong to the model.
    """
    run = None if result is None else _of_run(result, analysis)
    if scores is not None:
        found = read_scores(scores, analysis)
        name = f"{found.criterion} ({found.form})" if found.form else found.criterion
        return Ranking(f"{name}, from {str(scores)!r}", found.values, None if run is None else run.kept)
    if run is not None:
        return run
    context = ImportanceContext(model, analysis, Samples({}), RuntimeOptions(), None, 0, "")
    return Ranking("weight magnitude (needs no data)", magnitude(context).values)


def _of_run(path: Path, analysis: ChannelAnalysis) -> Ranking:
    result = read_result(path)
    # By position: groups on one tensor share a name.
    stored = [(group.name, group.before) for group in result.groups]
    if stored != [(group.name, group.width) for group in analysis.groups]:
        raise DataError(
            f"The groups of the result {str(path)!r} are not those of the model; it belongs to another model, or to "
            "other settings of --ignore, --only, --heads or --allow-inexact."
        )
    values = np.zeros(analysis.unit_count)
    kept = np.zeros(analysis.unit_count, dtype=np.bool_)
    for group, found in zip(analysis.groups, result.groups, strict=True):
        values[group.units] = found.importance
        kept[group.first_unit + np.array(found.kept, dtype=np.int64)] = True
    return Ranking(f"{result.importance}, from the run of {str(path)!r}", values, kept)
