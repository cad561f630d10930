"""What `bench` reports, and its comparison with an earlier report."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

from rich.text import Text

from oamip_onnx.bench import (
    YARDSTICK_VERSION,
    BenchModel,
    Configuration,
    ConfigurationResult,
    YardstickRatio,
    median_interval,
    slow_down,
    slow_down_in_yardsticks,
    times_by_operator,
)
from oamip_onnx.bench.environment import BUSY_LOAD_PER_CORE
from oamip_onnx.errors import DataError
from oamip_onnx.report.bench_records import (
    BenchEntry,
    ColdStartRecord,
    ComparisonEntry,
    ComparisonRecord,
    ConfigurationRecord,
    NodeRecord,
    ProfileRecord,
    YardstickRecord,
    configuration_labels,
)
from oamip_onnx.report.bench_tables import (
    by_configuration,
    caption,
    comparison_grid,
    latency_grid,
    operator_grid,
)
from oamip_onnx.report.read import Wording, load_report, validated
from oamip_onnx.report.records import latency_record
from oamip_onnx.report.schema import SCHEMA_VERSION, OperatorRecord, Record, SpeedupRecord
from oamip_onnx.report.shown import Part, ShownInParts, change

_SLOWEST_NODES = 10

# What makes times of two benchmarks differ without a change of the model.
_DECISIVE = (
    *("cpu", "logical_cores", "operating_system", "onnxruntime", "python"),
    *("frequency_governor", "frequency_boost"),
)
# What a report that does not hold the load is taken to have had.
_LOAD = {"load_before": 0.0, "logical_cores": 1}

_WORDING = Wording(
    noun="report",
    invalid="{file} is no report of oamip bench --json: {problem}. Give a file that it has written.",
    outdated="The report {file} has the schema version {found}; this version reads {known}. Run the benchmark again.",
)


class BenchReport(Record, ShownInParts):
    """Models measured together: an entry for each model and configuration, the first model being the reference."""

    schema_version: int = SCHEMA_VERSION
    models: list[BenchEntry]
    environment: dict[str, str | int | float]
    settings: dict[str, int | float]
    notes: list[str]
    comparison: ComparisonRecord | None = None

    def regressions(self) -> list[ComparisonEntry]:
        """Return what runs slower than in the report it was compared with, by more than is allowed."""
        return [] if self.comparison is None else [entry for entry in self.comparison.entries if entry.regressed]

    def parts(self) -> list[Part]:
        """Return latencies, operators and the comparison, with captions."""
        groups = by_configuration(self.models)
        parts: list[Part] = [latency_grid(groups), Text(caption(groups))]
        parts += [operator_grid(entries, label) for label, entries in groups if entries[0].profile]
        if self.comparison is not None:
            parts += [Text(f"Against {self.comparison.file}:"), comparison_grid(self.comparison)]
        return parts


def bench_report(
    models: Sequence[BenchModel],
    results: Sequence[ConfigurationResult],
    environment: Mapping[str, str | int | float],
    settings: Mapping[str, int | float],
    notes: Sequence[str],
) -> BenchReport:
    """Return the report of a benchmark."""
    entries = [_entry(models, result, number) for result in results for number in range(len(models))]
    return BenchReport(models=entries, environment=dict(environment), settings=dict(settings), notes=list(notes))


def _entry(models: Sequence[BenchModel], result: ConfigurationResult, number: int) -> BenchEntry:
    model, measured = models[number], result.latency
    found, ratio = measured.latencies[number], measured.in_yardsticks(number)
    low, high = median_interval(measured.samples_ms[number], seed=measured.seed)
    return BenchEntry(
        name=model.name,
        path=model.path,
        variant=model.variant or None,
        size_bytes=model.size_bytes,
        configuration=ConfigurationRecord.of(result.configuration),
        latency_ms=latency_record(found),
        # The median is interpolated in another way than there, and may differ in the last digit.
        median_interval_ms=(min(low, found.p50_ms), max(high, found.p50_ms)),
        samples_per_second=result.configuration.inputs.samples / found.p50_ms * 1e3,
        speedup=SpeedupRecord(**asdict(measured.speedup(number))) if number else None,
        cold_start=ColdStartRecord(**asdict(result.cold_starts[number])) if result.cold_starts else None,
        profile=_profile(result, number) if result.profiles else None,
        yardstick=None if ratio is None else YardstickRecord(**asdict(ratio)),
    )


def _profile(result: ConfigurationResult, number: int) -> ProfileRecord:
    times = result.profiles[number]
    slowest = sorted(times, key=lambda time: -time.milliseconds)[:_SLOWEST_NODES]
    return ProfileRecord(
        operators=[OperatorRecord(operator=o, milliseconds=ms) for o, ms in times_by_operator(times).items()],
        slowest_nodes=[NodeRecord(**asdict(time)) for time in slowest],
        runs=result.profile_runs,
    )


def read_bench_report(path: Path) -> BenchReport:
    """Return a report that `oamip bench --json` wrote.

    Raises
    ------
    DataError
        If the file is missing, is no JSON, has another schema version, or holds something else or impossible values.
    """
    report = validated(BenchReport, load_report(path, _WORDING), path, _WORDING)
    problem = next(_impossible(report), "")
    if problem:
        raise _WORDING.refused(path, problem)
    return report


def _impossible(report: BenchReport) -> Iterator[str]:
    """Yield what no benchmark writes and a comparison cannot use."""
    load, cores = (report.environment.get(key, usual) for key, usual in _LOAD.items())
    if isinstance(load, str) or not 0 <= load < math.inf:
        yield f"environment.load_before is {load!r}, which is no load"
    if not isinstance(cores, int) or cores < 1:
        yield f"environment.logical_cores is {cores!r}, which is no number of cores"
    for number, entry in enumerate(report.models):
        low, high = entry.median_interval_ms
        if not 0 < low <= entry.latency_ms.p50 <= high < math.inf:
            yield f"models.{number}: the median of {entry.latency_ms.p50} ms is not inside its interval {low} to {high}"
        beat = entry.yardstick
        if beat is not None and not (beat.low <= beat.ratio <= beat.high < math.inf and beat.median_ms < math.inf):
            yield f"models.{number}.yardstick: {beat.ratio} is not inside its interval {beat.low} to {beat.high}"


def check_comparable(
    models: Sequence[BenchModel], configurations: Sequence[Configuration], before: BenchReport, file: str
) -> None:
    """Raise unless an earlier report has a model and configuration of those to be measured.

    Raises
    ------
    DataError
        If it has none.
    """
    records = [ConfigurationRecord.of(configuration).model_dump_json() for configuration in configurations]
    if {_key(entry) for entry in before.models}.isdisjoint(product([model.name for model in models], records)):
        have = [f"{entry.name} on {', '.join(entry.configuration.parts())}" for entry in before.models]
        raise DataError(
            f"The report {file!r} holds none of the models in the configurations asked for; it holds "
            f"{'; '.join(have) or 'nothing'}. Run the benchmark with the same paths and options as then."
        )


def compare_with(report: BenchReport, before: BenchReport, file: str, max_slow_down: float) -> BenchReport:
    """Return the report with a comparison with an earlier one, in times of the yardstick where both have it, and notes.

    Parameters
    ----------
    report, before
        The report and the earlier one.
    file
        Where the earlier one came from, for the sentences.
    max_slow_down
        The share by which a model may have become slower.
    """
    earlier = {_key(entry): entry for entry in before.models}
    shared = [(entry, earlier[_key(entry)]) for entry in report.models if _key(entry) in earlier]
    entries = [_compare(entry, old, max_slow_down) for entry, old in shared]
    notes = [*report.notes]
    missing = len(report.models) - len(shared)
    if missing:
        notes.append(f"{missing} of {len(report.models)} rows have no counterpart in {file!r} and were not compared.")
    notes += _without_yardstick(shared, file)
    changed = _changed(before.environment, report.environment)
    if changed:
        notes.append(
            f"The environments of this benchmark and of {file!r} differ, so that a change of the time need not be the "
            f"model's: {'; '.join(changed)}."
        )
    comparison = ComparisonRecord(file=file, max_slow_down=max_slow_down, entries=entries)
    return report.model_copy(update={"comparison": comparison, "notes": notes})


def _without_yardstick(shared: Sequence[tuple[BenchEntry, BenchEntry]], file: str) -> list[str]:
    """Return a sentence about the rows that are compared in milliseconds, pairs of now and then; none without any."""
    plain = [(now, before) for now, before in shared if _ratios(now, before) is None]
    if not plain:
        return []
    reason = f"{file!r} holds no times of the present yardstick (version {YARDSTICK_VERSION})"
    remedy = "make a new report to compare with"
    missing = [now.configuration.provider for now, _ in plain if now.yardstick is None]
    if missing:
        reason, remedy = f"the yardstick does not run on {missing[0]}", "leave room for that with --max-slowdown"
    which = "The medians" if len(plain) == len(shared) else f"The medians of {len(plain)} of {len(shared)} rows"
    sentence = (
        f"{which} were compared in milliseconds, since {reason}: a change of the machine's speed looks like one of the "
        f"model; {remedy}."
    )
    return [sentence]


def _changed(before: Mapping[str, str | int | float], now: Mapping[str, str | int | float]) -> list[str]:
    """Return what of the environment differs enough to change run times."""
    changed = [
        f"{key} was {before.get(key, 'not recorded')!r} and is {now.get(key)!r}"
        for key in _DECISIVE
        if before.get(key) != now.get(key)
    ]
    loads = [_load_per_core(one) for one in (before, now)]
    if abs(loads[0] - loads[1]) > BUSY_LOAD_PER_CORE:
        changed.append(f"the load per core was {loads[0]:.2f} and is {loads[1]:.2f}")
    return changed


def _load_per_core(environment: Mapping[str, str | int | float]) -> float:
    load, cores = (float(environment.get(key, usual)) for key, usual in _LOAD.items())
    return load / cores


def regression_sentence(report: BenchReport) -> str:
    """Return a sentence that names what became too slow, or an empty text."""
    found, comparison = report.regressions(), report.comparison
    if not found or comparison is None:
        return ""
    labels = configuration_labels([entry.configuration for entry in comparison.entries])
    named = [
        f"{entry.name}{f' ({label})' if label else ''} by {change(entry.slow_down)}"
        for label, entry in zip(labels, comparison.entries, strict=True)
        if entry.regressed
    ]
    return (
        f"Slower than in {comparison.file!r} by more than the {100 * comparison.max_slow_down:g} % allowed: "
        f"{', '.join(named)}. If that is intended, make a new report to compare with."
    )


def _key(entry: BenchEntry) -> tuple[str, str]:
    return entry.name, entry.configuration.model_dump_json()


def _ratios(now: BenchEntry, before: BenchEntry) -> tuple[YardstickRatio, YardstickRatio] | None:
    """Return both times in yardsticks, now and then; None unless both have those of the same yardstick."""
    if now.yardstick is None or before.yardstick is None or now.yardstick.version != before.yardstick.version:
        return None
    return YardstickRatio(**now.yardstick.model_dump()), YardstickRatio(**before.yardstick.model_dump())


def _compare(now: BenchEntry, before: BenchEntry, max_slow_down: float) -> ComparisonEntry:
    ratios = _ratios(now, before)
    if ratios is None:
        found = slow_down(before.latency_ms.p50, before.median_interval_ms, now.latency_ms.p50, now.median_interval_ms)
    else:
        found = slow_down_in_yardsticks(ratios[1], ratios[0])
    return ComparisonEntry(
        name=now.name,
        configuration=now.configuration,
        before_ms=before.latency_ms.p50,
        now_ms=now.latency_ms.p50,
        slow_down=found.ratio,
        low=found.low,
        high=found.high,
        regressed=found.exceeds(max_slow_down),
        yardstick_before_ms=None if ratios is None else ratios[1].median_ms,
        yardstick_now_ms=None if ratios is None else ratios[0].median_ms,
    )
