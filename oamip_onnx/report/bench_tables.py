"""What `bench` shows."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from oamip_onnx.bench import Speedup
from oamip_onnx.report.bench_records import BenchEntry, ComparisonEntry, ComparisonRecord, configuration_labels
from oamip_onnx.report.grid import Grid, Section
from oamip_onnx.report.shown import change, milliseconds

_MEBIBYTE = 2**20

Group = tuple[str, list[BenchEntry]]


def by_configuration(entries: Sequence[BenchEntry]) -> list[Group]:
    """Return the entries of each configuration with what tells it from the others, in their order."""
    labels = configuration_labels([entry.configuration for entry in entries])
    pairs = zip(labels, entries, strict=True)
    return [(label, [entry for _, entry in group]) for label, group in groupby(pairs, key=lambda pair: pair[0])]


def latency_grid(groups: Iterable[Group]) -> Grid:
    """Return a row for each model and configuration."""
    groups = list(groups)
    cold = any(entry.cold_start for _, entries in groups for entry in entries)
    return Grid(
        (
            *("Model", "p50\n(ms)", "p90\n(ms)", "p99\n(ms)", "Samples\na second"),
            *(("First output\n(ms)", "Memory\n(MiB)") if cold else ()),
            "Against the first",
        ),
        tuple(Section(label, tuple(_latency_row(entry, cold=cold) for entry in entries)) for label, entries in groups),
        frozenset({"Against the first"}),
    )


def operator_grid(entries: Sequence[BenchEntry], heading: str) -> Grid:
    """Return the milliseconds a run of each operator, a column for each model, in order of the first model's time."""
    columns = [
        {} if entry.profile is None else {one.operator: one.milliseconds for one in entry.profile.operators}
        for entry in entries
    ]
    operators = list(dict.fromkeys(operator for column in columns for operator in column))
    rows = [(operator, *(_optional(column.get(operator)) for column in columns)) for operator in operators]
    total = ("all", *(milliseconds(sum(column.values())) for column in columns))
    headers = ("Operator\n(ms a run)", *(entry.name.replace(" (", "\n(") for entry in entries))
    return Grid(headers, (Section(heading, tuple(rows)), Section("", (total,))))


def comparison_grid(comparison: ComparisonRecord) -> Grid:
    """Return a row for each model and configuration that both reports hold."""
    labels = configuration_labels([entry.configuration for entry in comparison.entries])
    beside = any(entry.yardstick_before_ms for entry in comparison.entries)
    title = "Change beside it" if beside else "Change of the time"
    sections = []
    for label, group in groupby(zip(labels, comparison.entries, strict=True), key=lambda pair: pair[0]):
        rows = (_comparison_row(entry, beside=beside) for _, entry in group)
        sections.append(Section(label, tuple(rows)))
    headers = ("Model", "Before\n(ms)", "Now\n(ms)", *(("The\nyardstick",) if beside else ()), title)
    return Grid(headers, tuple(sections), frozenset({title}))


def _comparison_row(entry: ComparisonEntry, *, beside: bool) -> tuple[str, ...]:
    before, now = entry.yardstick_before_ms, entry.yardstick_now_ms
    machine = "-" if before is None or now is None else change(now / before)
    found = f"{change(entry.slow_down)} (95 % interval {change(entry.low)} to {change(entry.high)})"
    return (
        entry.name,
        milliseconds(entry.before_ms),
        milliseconds(entry.now_ms),
        *((machine,) if beside else ()),
        found + (": too slow" if entry.regressed else ""),
    )


def caption(groups: Sequence[Group]) -> str:
    """Return a line on how the figures came about."""
    entries = [entry for _, group in groups for entry in group]
    runs = sorted({entry.latency_ms.runs for entry in entries})
    counted = f"{runs[0]} runs of each model" if len(runs) == 1 else f"{runs[0]} to {runs[-1]} runs of each model"
    configurations = {entry.configuration.model_dump_json(): entry.configuration for entry in entries}
    where = ", ".join(entries[0].configuration.parts()) if len(configurations) == 1 else f"{len(groups)} configurations"
    cold = next((entry.cold_start for entry in entries if entry.cold_start), None)
    started = f"; first output and memory: median of {cold.processes} fresh processes" if cold else ""
    return f"{where}; {counted} in random turns{_yardstick(entries)}{started}."


def _yardstick(entries: Sequence[BenchEntry]) -> str:
    """Return what the yardstick took, for the line on how the figures came about."""
    times = sorted({entry.yardstick.median_ms for entry in entries if entry.yardstick})
    if not times:
        return ""
    least, most = milliseconds(times[0]), milliseconds(times[-1])
    return f", the yardstick taking {least if least == most else f'{least} to {most}'} ms"


def _latency_row(entry: BenchEntry, *, cold: bool) -> tuple[str, ...]:
    found, start = entry.latency_ms, entry.cold_start
    against = "reference" if entry.speedup is None else Speedup(**entry.speedup.model_dump()).describe()
    memory = None if start is None or start.peak_memory_bytes is None else start.peak_memory_bytes / _MEBIBYTE
    started = (_optional(None if start is None else start.first_output_ms), "-" if memory is None else f"{memory:.1f}")
    return (
        entry.name,
        *(milliseconds(value) for value in (found.p50, found.p90, found.p99)),
        f"{entry.samples_per_second:,.0f}" if entry.samples_per_second >= 100 else f"{entry.samples_per_second:.2f}",
        *(started if cold else ()),
        against,
    )


def _optional(value: float | None) -> str:
    return "-" if value is None else milliseconds(value)
