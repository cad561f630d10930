"""The result of a run as data: what `--json` prints and other programs read.

Fields are only added within a schema version; a field that changes its meaning or goes raises it.
"""

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class Record(BaseModel):
    """An immutable record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class LatencyRecord(Record):
    """Latency of one model: percentiles in milliseconds, and how many runs they come from."""

    p50: float
    p90: float
    p99: float
    runs: int


class ModelRecord(Record):
    """Costs of one model; MACs are those of one run at the shapes of one sample."""

    parameters: int
    macs: int
    size_bytes: int
    latency_ms: LatencyRecord | None = None


class SpeedupRecord(Record):
    """Median latency of the original over that of the pruned model, with a 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    significant: bool


class VerificationRecord(Record):
    """Comparison with the masked model, after surgery and after repair; the figures are the worse of both."""

    passed: bool
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    samples: int


class MetricRecord(Record):
    """A metric on labelled samples, before and after."""

    name: str
    original: float
    pruned: float


class DriftRecord(Record):
    """Distance between the outputs of both models."""

    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    metric: MetricRecord | None
    samples: int
    data: str


class GroupRecord(Record):
    """One group of channels: widths, which units stayed, and the importance of each unit before removal."""

    name: str
    tensors: list[str]
    before: int
    after: int
    kept: list[int]
    importance: list[float]
    exact: bool


class PinRecord(Record):
    """A tensor whose channels had to stay, and why."""

    tensor: str
    code: str
    reason: str


class SolverRecord(Record):
    """One program that was solved."""

    task: str
    engine: str
    status: str
    objective: float | None
    bound: float | None
    gap: float | None
    nodes: int
    seconds: float
    advice: str


class CertificateRecord(Record):
    """What a choice reaches, and the bound that no choice can go below."""

    task: str
    statement: str
    objective: float
    bound: float | None
    gap: float | None
    engine: str


class MergeRecord(Record):
    """Units that are always active, merged into the next layer; MACs of both layers before and after."""

    first: str
    second: str
    units: int
    macs_before: int
    macs_after: int


class LosslessRecord(Record):
    """What lossless removal has proven over the range of the inputs: units, by which method, and what was merged."""

    inactive: int
    always_active: int
    by_interval: int
    by_linear: int
    by_integer: int
    undecided: int
    seconds: float
    exhausted: bool
    input_range: list[str]
    merged: list[MergeRecord]
    skipped: list[str]


class RepairRecord(Record):
    """What the repair did at one contraction; errors are relative to the output's energy, on held-out samples."""

    node: str
    error_before: float | None
    error_after: float | None
    ridge: float | None
    skipped: str


class Result(Record):
    """Everything a run of `prune` reports."""

    schema_version: int = SCHEMA_VERSION
    original: ModelRecord
    pruned: ModelRecord
    speedup: SpeedupRecord | None
    verification: VerificationRecord
    drift: DriftRecord
    groups: list[GroupRecord]
    pinned: list[PinRecord]
    solver: list[SolverRecord]
    certificates: list[CertificateRecord] = []
    lossless: LosslessRecord | None = None
    repair: list[RepairRecord]
    importance: str
    notes: list[str]
    seconds: dict[str, float]
    environment: dict[str, str | int | float]
    config: dict[str, object]
