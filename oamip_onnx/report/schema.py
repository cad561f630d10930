"""The result of a run as data: what `--json` prints and other programs read.

Fields are only added within a schema version; a field that changes its meaning or goes raises it.
"""

import math

from pydantic import BaseModel, ConfigDict, model_validator
from rich.table import Table

from oamip_onnx.report.shown import Shown

SCHEMA_VERSION = 1


class Record(BaseModel):
    """An immutable record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class LatencyRecord(Record):
    """Latency of one model.

    Attributes
    ----------
    p50, p90, p99
        Percentiles of the time of one run, in milliseconds.
    runs
        How many runs were timed.
    percentiles
        The 0th, 1st … 100th percentile, in milliseconds.
    """

    p50: float
    p90: float
    p99: float
    runs: int
    percentiles: list[float] = []


class OperatorRecord(Record):
    """The time of all nodes of one operator, as ONNX Runtime's profiler sees it after its fusions.

    Attributes
    ----------
    operator
        The operator's name, such as ``Conv`` or the fused ``FusedConv``.
    milliseconds
        What its nodes take together in one run.
    """

    operator: str
    milliseconds: float


class ModelRecord(Record):
    """Costs of one model.

    Attributes
    ----------
    parameters
        Number of weights.
    macs
        Multiply-accumulate operations of one run at the shapes of one sample.
    size_bytes
        Size of the model with its external data, in bytes.
    latency_ms
        Its latency; null where it was not measured.
    operators
        Where the time of one run goes, by operator; empty where it was not measured.
    """

    parameters: int
    macs: int
    size_bytes: int
    latency_ms: LatencyRecord | None = None
    operators: list[OperatorRecord] = []


class SpeedupRecord(Record):
    """How much faster the pruned model is.

    Attributes
    ----------
    median
        Median, over pairs of neighbouring runs, of the original's time over the pruned model's: 2 is twice as fast.
    low, high
        Its 95 % bootstrap interval, widened by 1 %: two loads of one model may differ by that much.
    significant
        Whether the interval lies on one side of 1.
    """

    median: float
    low: float
    high: float
    significant: bool


class VerificationRecord(Record):
    """Comparison with the masked model, after surgery and after repair; the figures are the worse of both.

    Attributes
    ----------
    passed
        Always true in a result that was written: a difference ends the run.
    max_abs_error
        Largest difference of an output value.
    max_rel_error
        The same, relative to the largest value of that output.
    tolerance
        What the relative error may be at most.
    samples
        How many samples were compared.
    """

    passed: bool
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    samples: int


class MetricRecord(Record):
    """A metric on labelled samples.

    Attributes
    ----------
    name
        What it is: ``accuracy``.
    original, pruned
        Its value for each model, from 0 to 1.
    """

    name: str
    original: float
    pruned: float


class DriftRecord(Record):
    """Distance between the outputs of both models.

    Attributes
    ----------
    cosine
        Mean cosine similarity over the samples, 1 for equal directions.
    sqnr_db
        Signal to noise: 10·log₁₀(Σ y² / Σ (y − y′)²), in decibels; more is closer.
    top1_agreement
        Share of the samples whose largest output is the same; null where the output is no vector of classes.
    metric
        A metric against labels; null without labels.
    samples
        How many samples were compared.
    data
        ``evaluation`` where samples of their own were given, else ``calibration``.
    """

    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    metric: MetricRecord | None
    samples: int
    data: str


class GroupRecord(Record):
    """One group of channels that have a common width.

    Attributes
    ----------
    name
        The first tensor that carries these channels; behind it ``#1``, ``#2`` … where several groups share one.
    tensors
        The tensors that layers produce with them.
    before, after
        Number of units in the original and in the pruned model.
    kept
        Positions of the units that stayed, in the original's numbering.
    importance
        Score of every unit before removal: higher means keep, comparable within the group.
    exact
        False for channels under a normalisation over them, which ``--allow-inexact`` opened.
    """

    name: str
    tensors: list[str]
    before: int
    after: int
    kept: list[int]
    importance: list[float]
    exact: bool

    @model_validator(mode="after")
    def _fits(self) -> "GroupRecord":
        """Refuse positions and scores that the group does not have."""
        if self.before < 1 or len(self.importance) != self.before or len(self.kept) != self.after:
            raise ValueError(f"the group {self.name!r} of {self.before} units has other numbers of scores or units")
        if any(not 0 <= unit < self.before for unit in self.kept):
            raise ValueError(f"the group {self.name!r} keeps units that it does not have")
        if not all(math.isfinite(value) for value in self.importance):
            raise ValueError(f"the scores of the group {self.name!r} are not all finite")
        return self


class LayerRecord(Record):
    """One node that data flow through.

    Attributes
    ----------
    name, operator, output
        The node, its operator, and the tensor that it makes.
    inputs
        Positions in the list of layers of those that it reads.
    groups
        The groups whose units its output carries.
    width_before, width_after
        Number of channels; null where the output has no axis of them, 0 where the layer vanished.
    macs_before, macs_after
        Its multiply-accumulate operations in one run.
    """

    name: str
    operator: str
    output: str
    inputs: list[int]
    groups: list[str]
    width_before: int | None
    width_after: int | None
    macs_before: int
    macs_after: int


class PinRecord(Record):
    """A tensor whose channels had to stay, and why.

    Attributes
    ----------
    tensor
        The tensor.
    code
        The reason for programs; the page of errors lists all.
    reason
        The reason as a sentence.
    """

    tensor: str
    code: str
    reason: str


class TraceRecord(Record):
    """Where a search stood.

    Attributes
    ----------
    seconds
        Seconds since it began.
    incumbent
        The best value found; null while there was none.
    bound
        The proven bound; null while there was none.
    """

    seconds: float
    incumbent: float | None
    bound: float | None


class SolverRecord(Record):
    """One program that was solved.

    Attributes
    ----------
    task
        What it was for.
    engine
        Solver and version.
    status
        How it ended, such as ``optimal``.
    objective
        Value of the solution; null without one.
    bound
        Proven bound on that value; null without one.
    gap
        Relative distance of the two: 0.01 is 1 %; null without a bound.
    nodes
        Nodes of the search; 0 where none was needed.
    seconds
        Time that it took.
    advice
        What to do where the end was not a good one; else empty.
    trace
        How value and bound came together, where an engine searched.
    """

    task: str
    engine: str
    status: str
    objective: float | None
    bound: float | None
    gap: float | None
    nodes: int
    seconds: float
    advice: str
    trace: list[TraceRecord] = []


class CertificateRecord(Record):
    """What a choice reaches, and the bound that no choice can go below.

    Attributes
    ----------
    task
        What was chosen.
    statement
        What the bound says, as a sentence.
    objective, bound
        Value of the choice, and the proven bound; the bound is null without one.
    gap
        Relative distance of the two: 0.01 is 1 %; null without a bound.
    engine
        The solver that proved it.
    """

    task: str
    statement: str
    objective: float
    bound: float | None
    gap: float | None
    engine: str


class MergeRecord(Record):
    """Units that are always active, merged into the next layer.

    Attributes
    ----------
    first, second
        The layer that had them, and the one that took them up.
    units
        How many.
    macs_before, macs_after
        Multiply-accumulate operations of both layers.
    """

    first: str
    second: str
    units: int
    macs_before: int
    macs_after: int


class LosslessRecord(Record):
    """What lossless removal has proven over the range of the inputs.

    Attributes
    ----------
    inactive, always_active, undecided
        Units proven to be zero always; units that no ReLU ever cuts off; units that nothing proves or refutes.
    by_interval, by_linear, by_integer
        How many were proven by interval arithmetic, with linear programs, with integer programs.
    seconds
        Time of the proofs.
    exhausted
        Whether their time was up before every question was answered.
    input_range
        The range, as it was given.
    merged
        The layers that were merged.
    skipped
        A sentence for every layer with always active units that was not merged.
    """

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
    """What the repair did at one layer with weights.

    Attributes
    ----------
    node
        The layer.
    error_before, error_after
        Squared error of its output on held-out samples, relative to the output's energy; null where not measured.
    ridge
        Weight of the pull towards the old weights, relative to the mean feature energy; null where nothing was refit.
    skipped
        Why the layer was left alone; else empty.
    """

    node: str
    error_before: float | None
    error_after: float | None
    ridge: float | None
    skipped: str


class PlanRecord(Record):
    """How the widths were found.

    Attributes
    ----------
    widths
        ``uniform``: the same share of every group; ``program``: by damages and costs; ``threshold``: by scores.
    predicted_latency_ms
        Latency that measured tables predict, as a share of the original's measured one, in milliseconds; null where
        the target limits none or nothing was measured at the end.
    latency_error
        That prediction relative to what was measured at the end, less 1: 0.1 is 10 % too slow; null without both.
    """

    widths: str
    predicted_latency_ms: float | None = None
    latency_error: float | None = None


class Result(Record, Shown):
    """Everything a run of `prune` reports.

    Attributes
    ----------
    schema_version
        Version of this format.
    original, pruned
        Costs of both models.
    speedup
        How much faster the pruned model is; null where latency was not measured.
    verification
        Comparison with the masked model.
    drift
        Distance between the outputs of both models.
    groups
        The groups of channels, in graph order.
    pinned
        The channels that had to stay.
    solver
        The programs that were solved; empty for criteria without one.
    certificates
        Bounds on the choice, where they were asked for.
    lossless
        What was proven; null unless removal was lossless.
    plan
        How the widths were found; null where removal was lossless.
    repair
        What the repair did, layer by layer.
    importance
        How units were ranked, with the form of the program.
    notes
        What a reader should know, as sentences.
    seconds
        Wall-clock seconds by stage.
    environment
        Machine and versions; nothing in it names the machine or its user.
    config
        The settings of the run, with the version of this package.
    layers
        The network as the report page draws it.
    command
        The command that does the run again; null where the model or the data came from memory.
    """

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
    plan: PlanRecord | None = None
    repair: list[RepairRecord]
    importance: str
    notes: list[str]
    seconds: dict[str, float]
    environment: dict[str, str | int | float]
    config: dict[str, object]
    layers: list[LayerRecord] = []
    command: str | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "Result":
        """Refuse layers that read what does not come before them."""
        for number, layer in enumerate(self.layers):
            if any(not 0 <= source < number for source in layer.inputs):
                raise ValueError(f"the layer {layer.name!r} reads one that does not come before it")
        return self

    def tables(self) -> list[Table]:
        """Return the before/after table."""
        from oamip_onnx.report.table import before_after_table  # noqa: PLC0415 - the table is made of this record

        return [before_after_table(self)]

    def __repr__(self) -> str:
        from oamip_onnx.report.table import headlines  # noqa: PLC0415 - as above

        return f"Result({', '.join(f'{line.name}: {line.value}' for line in headlines(self))})"
