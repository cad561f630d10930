"""Latency benchmarks: fair turns, medians with an interval, and a record of where they were measured."""

from oamip_onnx.bench.alignment import MULTIPLES, Alignment, find_alignment, measure_alignment
from oamip_onnx.bench.cold import ColdStart, measure_cold_start
from oamip_onnx.bench.configuration import MOST_CONFIGURATIONS, Configuration, Inputs, sweep
from oamip_onnx.bench.environment import Environment, describe_environment, frequency_warning, package_version, warnings
from oamip_onnx.bench.latency import (
    BenchSettings,
    LatencyComparison,
    Measurement,
    compare_latency,
    compare_runners,
    measure_latency,
)
from oamip_onnx.bench.profile import NodeTime, profile_nodes, profiled_runs, times_by_operator
from oamip_onnx.bench.run import BenchModel, ConfigurationResult, measure, rehearse
from oamip_onnx.bench.sessions import check_feeds
from oamip_onnx.bench.statistics import (
    Latency,
    SlowDown,
    Speedup,
    compare,
    median_interval,
    slow_down,
    summarise,
)
from oamip_onnx.bench.vector_blocks import Misaligned, misaligned_widths, vector_block
from oamip_onnx.bench.yardstick import (
    YARDSTICK_VERSION,
    YardstickRatio,
    in_yardsticks,
    slow_down_in_yardsticks,
    yardstick_feeds,
    yardstick_model,
)

__all__ = [
    "MOST_CONFIGURATIONS",
    "MULTIPLES",
    "YARDSTICK_VERSION",
    "Alignment",
    "BenchModel",
    "BenchSettings",
    "ColdStart",
    "Configuration",
    "ConfigurationResult",
    "Environment",
    "Inputs",
    "Latency",
    "LatencyComparison",
    "Measurement",
    "Misaligned",
    "NodeTime",
    "SlowDown",
    "Speedup",
    "YardstickRatio",
    "check_feeds",
    "compare",
    "compare_latency",
    "compare_runners",
    "describe_environment",
    "find_alignment",
    "frequency_warning",
    "in_yardsticks",
    "measure",
    "measure_alignment",
    "measure_cold_start",
    "measure_latency",
    "median_interval",
    "misaligned_widths",
    "package_version",
    "profile_nodes",
    "profiled_runs",
    "rehearse",
    "slow_down",
    "slow_down_in_yardsticks",
    "summarise",
    "sweep",
    "times_by_operator",
    "vector_block",
    "warnings",
    "yardstick_feeds",
    "yardstick_model",
]
