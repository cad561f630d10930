"""What `score` reports: the importance of every unit."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from oamip_onnx.channels import ChannelAnalysis, select_units
from oamip_onnx.config import PruneConfig
from oamip_onnx.importance import Scores
from oamip_onnx.report.records import group_records, solver_records
from oamip_onnx.report.schema import SCHEMA_VERSION, GroupRecord, SolverRecord


class ScoreReport(BaseModel):
    """Importance by group, and which units would stay at the target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    importance: str
    groups: list[GroupRecord]
    solver: list[SolverRecord]
    notes: list[str]
    config: dict[str, object]


def score_report(analysis: ChannelAnalysis, scores: Scores, widths: Sequence[int], config: PruneConfig) -> ScoreReport:
    """Return the report of one scoring."""
    kept = select_units(analysis, widths, scores.values)
    return ScoreReport(
        importance=f"{scores.criterion} ({scores.form})" if scores.form else scores.criterion,
        groups=group_records(analysis, kept, scores),
        solver=solver_records(scores),
        notes=list(scores.notes),
        config=config.model_dump(mode="json"),
    )
