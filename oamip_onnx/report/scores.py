"""What `score` reports: the importance of every unit, a front, or several subnetworks; and scores read back."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import Field
from rich.table import Table

from oamip_onnx.channels import ChannelAnalysis, select_units
from oamip_onnx.config import PruneConfig
from oamip_onnx.errors import DataError, closest
from oamip_onnx.importance import FrontPoint, Scores, Subnetwork
from oamip_onnx.report.read import Wording, load_report, validated
from oamip_onnx.report.records import group_records, importance_name, solver_records
from oamip_onnx.report.schema import SCHEMA_VERSION, CertificateRecord, GroupRecord, Record, SolverRecord
from oamip_onnx.report.shown import Shown, filled

_WORDING = Wording(
    noun="scores",
    invalid="The file {file} holds no scores; write them with oamip score MODEL --out SCORES ({problem}).",
    outdated="The scores {file} have the schema version {found}; this version reads {known}. Score the model again.",
)


class ScoreReport(Record, Shown):
    """Importance by group, and which units would stay at the target."""

    schema_version: int = SCHEMA_VERSION
    importance: str
    groups: list[GroupRecord]
    solver: list[SolverRecord]
    certificates: list[CertificateRecord] = Field(default_factory=list)
    notes: list[str]
    config: dict[str, object]

    def tables(self) -> list[Table]:
        """Return one row a group: widths, and the range of its scores."""
        rows = []
        for group in self.groups:
            ordered = sorted(group.importance)
            figures = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
            rows.append((group.name, str(group.before), str(group.after), *(f"{v:.4f}" for v in figures)))
        headers = ("Group", "Width", "Kept", "Lowest", "Median", "Highest")
        return [filled(headers, rows)]


class FrontRecord(Record):
    """One solve of the front: its λ, the share of units kept, the loss that the program expects, the one measured."""

    loss_weight: float
    share_kept: float
    program_loss: float
    measured_loss: float
    kept: dict[str, int]


class FrontReport(Record, Shown):
    """The front between the share of units kept and the loss."""

    schema_version: int = SCHEMA_VERSION
    importance: str
    points: list[FrontRecord]
    notes: list[str]
    config: dict[str, object]

    def tables(self) -> list[Table]:
        """Return one row a point."""
        rows = (
            (f"{p.loss_weight:.3g}", f"{p.share_kept:.1%}", f"{p.program_loss:.4f}", f"{p.measured_loss:.4f}")
            for p in self.points
        )
        return [filled(("λ", "Units kept", "Loss expected", "Loss measured"), rows)]


class SubnetworkRecord(Record):
    """One of several subnetworks: its draw, its loss, what it shares with the first, and the file of its scores."""

    seed: int
    measured_loss: float
    overlap: float
    file: str | None
    kept: dict[str, list[int]]


class SubnetworksReport(Record, Shown):
    """Several distinct subnetworks of the same widths."""

    schema_version: int = SCHEMA_VERSION
    importance: str
    subnetworks: list[SubnetworkRecord]
    notes: list[str]
    config: dict[str, object]

    def tables(self) -> list[Table]:
        """Return one row a subnetwork."""
        rows = (
            (str(one.seed), f"{one.measured_loss:.4f}", f"{one.overlap:.1%}", one.file or "")
            for one in self.subnetworks
        )
        return [filled(("Seed", "Loss", "Shared with the first", "File"), rows)]


def score_report(analysis: ChannelAnalysis, scores: Scores, widths: Sequence[int], config: PruneConfig) -> ScoreReport:
    """Return the report of one scoring."""
    kept = select_units(analysis, widths, scores.values)
    return ScoreReport(
        importance=importance_name(scores),
        groups=[
            # In full, so that the file gives the same selection as the scores themselves.
            record.model_copy(update={"importance": scores.values[group.units].tolist()})
            for record, group in zip(group_records(analysis, kept, scores), analysis.groups, strict=True)
        ],
        solver=solver_records(scores),
        certificates=[CertificateRecord(**asdict(c)) for c in scores.certificates],
        notes=list(scores.notes),
        config=config.model_dump(mode="json"),
    )


def front_report(analysis: ChannelAnalysis, points: Iterable[FrontPoint], config: PruneConfig) -> FrontReport:
    """Return the report of a front."""
    found = list(points)
    records = [
        FrontRecord(
            loss_weight=point.loss_weight,
            share_kept=point.share_kept,
            program_loss=point.program_loss,
            measured_loss=point.measured_loss,
            kept={group.name: int(point.kept[group.units].sum()) for group in analysis.groups},
        )
        for point in found
    ]
    return FrontReport(
        importance=importance_name(found[0].scores),
        points=records,
        notes=list(dict.fromkeys(found[-1].scores.notes)),
        config=config.model_dump(mode="json"),
    )


def subnetworks_report(
    analysis: ChannelAnalysis,
    found: Sequence[Subnetwork],
    files: Sequence[str | None],
    wanted: int,
    config: PruneConfig,
) -> SubnetworksReport:
    """Return the report of several subnetworks, of which `wanted` were asked for."""
    records = [
        SubnetworkRecord(
            seed=one.seed,
            measured_loss=one.measured_loss,
            overlap=one.overlap,
            file=file,
            kept={g.name: [int(u) for u in np.flatnonzero(one.kept[g.units])] for g in analysis.groups},
        )
        for one, file in zip(found, files, strict=True)
    ]
    few = f"{wanted} subnetworks were asked for; the draws of images give {len(found)} distinct."
    notes = [few] if len(found) < wanted else []
    return SubnetworksReport(
        importance=importance_name(found[0].scores),
        subnetworks=records,
        notes=notes,
        config=config.model_dump(mode="json"),
    )


def read_scores(path: Path, analysis: ChannelAnalysis) -> Scores:
    """Return the scores that a file of `oamip score --out` holds, for the groups of a model.

    Raises
    ------
    DataError
        If the file is missing, holds no finite scores, has another schema, or has other groups than the model.
    """
    report = validated(ScoreReport, load_report(path, _WORDING), path, _WORDING)
    stored = {group.name: group.importance for group in report.groups}
    values = np.zeros(analysis.unit_count)
    for group in analysis.groups:
        if group.name not in stored or len(stored[group.name]) != group.width:
            found = f"{len(stored[group.name])} units" if group.name in stored else "nothing"
            raise DataError(
                f"The scores {str(path)!r} hold {found} for the group {group.name!r} of {group.width} units"
                f"{closest(group.name, stored) if group.name not in stored else ''}; they belong to another model, or "
                "were made with other settings of ignore, only, heads or allow_inexact."
            )
        values[group.units] = stored[group.name]
        if not np.isfinite(values[group.units]).all():
            raise DataError(
                f"The scores {str(path)!r} of the group {group.name!r} are not all finite; score the model again."
            )
    note = f"The scores are those of {str(path)!r}: {report.importance}."
    name, _, rest = report.importance.partition(" (")
    return Scores(values, name, rest.rstrip(")"), (), (note, *report.notes))
