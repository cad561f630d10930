"""Measures two models against each other: `python examples/benchmark_models.py`.

The models take turns in random order, so that a busy machine slows both alike; the interval says how sure the ratio is.
Here each runs for a fifth of a second, which is too short for figures to quote: leave `settings` out for those.
"""

# %% Two models with the same inputs; the first is the reference
from pathlib import Path

from rich import print as show

import oamip_onnx
from oamip_onnx.bench import BenchSettings

SAMPLE = Path(__file__).parent / "fashion"
MODELS = [SAMPLE / "resnet8.onnx", SAMPLE / "lenet5.onnx"]

# %% One thread, one sample and eight samples a run
quick = BenchSettings(minimum_runs=20, minimum_seconds=0.2, warmup_seconds=0.1, cold_processes=0)
report = oamip_onnx.benchmark(MODELS, SAMPLE / "calibration.npz", threads=[1], batches=[1, 8], settings=quick)

# %% The table, as `oamip bench` prints it
show(report)

# %% The same as data
for entry in report.models:
    if entry.speedup is not None:
        said = "surely" if entry.speedup.significant else "perhaps"
        print(f"batch {entry.configuration.batch}: {said} {entry.speedup.median:.2f} times as fast as the first")
