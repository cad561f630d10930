"""Latency benchmarks: fair turns, medians with an interval, and a record of where they were measured."""

from oamip_onnx.bench.alignment import Misaligned, misaligned_widths, vector_block
from oamip_onnx.bench.cold import ColdStart, measure_cold_start
from oamip_onnx.bench.configuration import MOST_CONFIGURATIONS, Configuration, Inputs, sweep
from oamip_onnx.bench.environment import Environment, describe_environment, frequency_warning, warnings
from oamip_onnx.bench.latency import BenchSettings, LatencyComparison, Measurement, compare_latency, measure_latency
from oamip_onnx.bench.profile import NodeTime, profile_nodes, times_by_operator
from oamip_onnx.bench.run import BenchModel, ConfigurationResult, measure, rehearse
from oamip_onnx.bench.statistics import (
    Latency,
    SlowDown,
    Speedup,
    compare,
    median_interval,
    slow_down,
    summarise,
)

__all__ = [
    "MOST_CONFIGURATIONS",
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
    "compare",
    "compare_latency",
    "describe_environment",
    "frequency_warning",
    "measure",
    "measure_cold_start",
    "measure_latency",
    "median_interval",
    "misaligned_widths",
    "profile_nodes",
    "rehearse",
    "slow_down",
    "summarise",
    "sweep",
    "times_by_operator",
    "vector_block",
    "warnings",
]
