"""The parts of what `bench` reports, as data."""

from collections.abc import Sequence
from typing import Self

from pydantic import PositiveFloat

from oamip_onnx.bench import Configuration
from oamip_onnx.report.schema import LatencyRecord, OperatorRecord, Record, SpeedupRecord


class ConfigurationRecord(Record):
    """How a model was run; `threads` are 0 where ONNX Runtime chose them, `batch` counts the samples of a run."""

    provider: str
    threads: int
    batch: int
    input_shapes: dict[str, list[int]]

    @classmethod
    def of(cls, configuration: Configuration) -> Self:
        """Return the record of a configuration."""
        return cls(
            provider=configuration.provider,
            threads=configuration.options.threads,
            batch=configuration.inputs.samples,
            input_shapes={name: list(shape) for name, shape in configuration.input_shapes.items()},
        )

    def parts(self) -> tuple[str, str, str, str]:
        """Return provider, threads, batch and shapes as text."""
        shapes = " ".join(f"{name}={','.join(map(str, shape))}" for name, shape in self.input_shapes.items())
        return self.provider, f"threads {self.threads or 'auto'}", f"batch {self.batch}", shapes


class ColdStartRecord(Record):
    """A start in a fresh process, medians over `processes`.

    The milliseconds are those to load the model, and to its first output with loading; `peak_memory_bytes` is by how
    much the peak of the process's resident memory exceeds what was resident before loading, None where the system does
    not tell.
    """

    load_ms: float
    first_output_ms: float
    peak_memory_bytes: int | None
    processes: int


class NodeRecord(Record):
    """The mean milliseconds that one node of the graph that ONNX Runtime ran takes in one run, and its calls."""

    node: str
    operator: str
    milliseconds: float
    calls: float


class ProfileRecord(Record):
    """Where the time of one run goes: all operators, largest first, and the ten slowest nodes.

    The times are means over the middle half of `runs`, by their length.
    """

    operators: list[OperatorRecord]
    slowest_nodes: list[NodeRecord]
    runs: int


class YardstickRecord(Record):
    """How long a model takes in times of the yardstick, a fixed network that is timed in the same turns.

    Attributes
    ----------
    version
        Which network; ratios to different ones are not comparable.
    median_ms
        The median of its own run time, in milliseconds.
    runs
        How often it ran.
    ratio
        The median, over the turns in which it ran, of the model's time divided by its time.
    low, high
        The interval that holds the true median of the ratio with 95 % confidence.
    """

    version: int
    median_ms: PositiveFloat
    runs: int
    ratio: PositiveFloat
    low: PositiveFloat
    high: PositiveFloat


class BenchEntry(Record):
    """One model in one configuration.

    `name` is `path` with the variant behind it, if any; `speedup` is against the first model in the same configuration,
    None for that model itself; `median_interval_ms` holds the true median with 95 % confidence; `yardstick` is None
    where the provider cannot run it.
    """

    name: str
    path: str
    variant: str | None
    size_bytes: int
    configuration: ConfigurationRecord
    latency_ms: LatencyRecord
    median_interval_ms: tuple[float, float]
    samples_per_second: float
    speedup: SpeedupRecord | None
    cold_start: ColdStartRecord | None
    profile: ProfileRecord | None
    yardstick: YardstickRecord | None = None


class ComparisonEntry(Record):
    """The median of one model in one configuration, in an earlier report and now.

    `slow_down` is how many times as long it takes now, `low` and `high` its 95 % interval. It `regressed` if the whole
    interval lies above the limit. Where both reports hold the median of the same yardstick, they are in `yardstick_*`,
    and `slow_down` is the ratio of the times in yardsticks; else it is the ratio of the medians themselves.
    """

    name: str
    configuration: ConfigurationRecord
    before_ms: float
    now_ms: float
    slow_down: float
    low: float
    high: float
    regressed: bool
    yardstick_before_ms: float | None = None
    yardstick_now_ms: float | None = None


class ComparisonRecord(Record):
    """A comparison with an earlier report; `max_slow_down` is the share that is allowed, 0.05 for 5 %."""

    file: str
    max_slow_down: float
    entries: list[ComparisonEntry]


def configuration_labels(configurations: Sequence[ConfigurationRecord]) -> list[str]:
    """Return for each configuration what tells it from the others: an empty text where all are equal."""
    parts = [configuration.parts() for configuration in configurations]
    batches = {part[2] for part in parts}
    # Shapes follow the batch; they only tell configurations of the same batch apart.
    shapes_vary = any(len({part[3] for part in parts if part[2] == batch}) > 1 for batch in batches)
    varying = [position for position in range(3) if len({part[position] for part in parts}) > 1]
    return [", ".join(part[position] for position in [*varying, *([3] if shapes_vary else [])]) for part in parts]
