"""The before/after table."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from oamip_onnx.report.schema import DriftRecord, LosslessRecord, Result, SpeedupRecord
from oamip_onnx.report.shown import byte_size, milliseconds


@dataclass(frozen=True)
class Row:
    """One quantity, before and after, as text."""

    quantity: str
    original: str
    pruned: str
    change: str


def rows(result: Result) -> list[Row]:
    """Return the rows of the table, in the order in which they are read."""
    before, after = result.original, result.pruned
    table = [
        Row(
            "Parameters",
            f"{before.parameters:,}",
            f"{after.parameters:,}",
            _change(before.parameters, after.parameters),
        ),
        Row("MACs", f"{before.macs:,}", f"{after.macs:,}", _change(before.macs, after.macs)),
        Row(
            "Size",
            byte_size(before.size_bytes),
            byte_size(after.size_bytes),
            _change(before.size_bytes, after.size_bytes),
        ),
    ]
    if before.latency_ms and after.latency_ms and result.speedup:
        first, second = before.latency_ms, after.latency_ms
        table.append(Row("Latency p50", _ms(first.p50), _ms(second.p50), speedup_text(result.speedup)))
        table.append(Row("Latency p99", _ms(first.p99), _ms(second.p99), ""))
    table += drift_rows(result.drift)
    check = result.verification
    table.append(Row("Equals masked model", "", "yes" if check.passed else "NO", f"error {check.max_rel_error:.1e}"))
    return table


def speedup_text(speedup: SpeedupRecord) -> str:
    """Return a speed-up with its interval, as the column *Change* has it."""
    if not speedup.significant:
        return f"no significant change [{speedup.low:.2f}, {speedup.high:.2f}]"
    if speedup.median < 1:
        return f"{1 / speedup.median:.2f}× slower [{1 / speedup.high:.2f}, {1 / speedup.low:.2f}]"
    return f"{speedup.median:.2f}× faster [{speedup.low:.2f}, {speedup.high:.2f}]"


def drift_rows(drift: DriftRecord) -> list[Row]:
    """Return the rows of a drift: the metric where there is one, the agreement, the distance."""
    table = []
    if drift.metric:
        points = 100 * (drift.metric.pruned - drift.metric.original)
        name = drift.metric.name.capitalize()
        table.append(Row(name, f"{drift.metric.original:.4f}", f"{drift.metric.pruned:.4f}", f"{points:+.2f} points"))
    if drift.top1_agreement is not None:
        table.append(Row("Top-1 agreement", "", f"{drift.top1_agreement:.4f}", ""))
    return [*table, Row("Drift: cosine", "", f"{drift.cosine:.4f}", f"SQNR {drift.sqnr_db:.1f} dB")]


@dataclass(frozen=True)
class Headline:
    """One figure in large type; `bad` marks what a reader should not overlook."""

    name: str
    value: str
    bad: bool = False


def headlines(result: Result) -> list[Headline]:
    """Return the figures that a reader looks for first."""
    before, after = result.original, result.pruned
    found = [
        Headline("Parameters left", f"{after.parameters / before.parameters:.0%}" if before.parameters else "none"),
        Headline("MACs left", f"{after.macs / before.macs:.0%}" if before.macs else "none"),
    ]
    speedup = result.speedup
    if speedup is not None:
        value = f"{speedup.median:.2f}×" if speedup.significant else "no change"
        found.append(Headline("Speed-up", value, bad=speedup.significant and speedup.median < 1))
    metric, agreement = result.drift.metric, result.drift.top1_agreement
    if metric is not None:
        found.append(Headline(metric.name.capitalize(), f"{100 * (metric.pruned - metric.original):+.1f} points"))
    elif agreement is not None:
        found.append(Headline("Top-1 agreement", f"{agreement:.1%}"))
    else:
        found.append(Headline("Cosine", f"{result.drift.cosine:.4f}"))
    passed = result.verification.passed
    return [*found, Headline("Equals masked model", "yes" if passed else "NO", bad=not passed)]


def before_after_table(result: Result) -> Table:
    """Return the table for a terminal."""
    table = Table(title=None, header_style="bold")
    table.add_column("")
    table.add_column("Original", justify="right")
    table.add_column("Pruned", justify="right")
    table.add_column("Change")
    for row in rows(result):
        table.add_row(*(Text(cell) for cell in (row.quantity, row.original, row.pruned, row.change)))
    return table


def _change(before: float, after: float) -> str:
    return f"{100 * after / before:.1f} % left" if before else ""


def _ms(value: float) -> str:
    return f"{milliseconds(value)} ms"


def summary_lines(result: Result) -> list[str]:
    """Return what stands under the table: how units were chosen, or what was proven, and the certificates."""
    if result.lossless is not None:
        return [_lossless(result.lossless)]
    config = result.config
    repair, target = (config.get(name, "unknown") for name in ("repair", "target"))
    lines = [f"Importance {result.importance}, repair {repair}, target {target}."]
    plan = result.plan
    if plan is not None and plan.predicted_latency_ms is not None:
        compared = "" if plan.latency_error is None else f", {plan.latency_error:+.1%} from what was measured"
        lines.append(f"Predicted latency {_ms(plan.predicted_latency_ms)}{compared}.")
    for one in result.certificates:
        if one.bound is not None and one.gap is not None:
            found = f"value {one.objective:.4g}, proven bound {one.bound:.4g}, gap {one.gap:.1%}"
            lines.append(f"Certificate of the {one.task} by {one.engine}: {found}.")
    return lines


def _lossless(found: LosslessRecord) -> str:
    merged = sum(layer.units for layer in found.merged)
    return (
        f"Over the inputs' range {', '.join(found.input_range)}: {found.inactive} units proven inactive and dropped, "
        f"{found.always_active} proven always active of which {merged} merged, {found.undecided} undecided."
    )
