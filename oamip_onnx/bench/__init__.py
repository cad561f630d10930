"""Latency benchmarks: fair turns, medians with an interval, and a record of where they were measured."""

from oamip_onnx.bench.environment import Environment, describe_environment, warnings
from oamip_onnx.bench.latency import BenchSettings, LatencyComparison, Measurement, compare_latency, measure_latency
from oamip_onnx.bench.statistics import Latency, Speedup, compare, summarise

__all__ = [
    "BenchSettings",
    "Environment",
    "Latency",
    "LatencyComparison",
    "Measurement",
    "Speedup",
    "compare",
    "compare_latency",
    "describe_environment",
    "measure_latency",
    "summarise",
    "warnings",
]
