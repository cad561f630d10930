"""Whether `oamip bench` says "no significant change" where there is none, and finds a tenth where there is one.

    python benchmarks/significance.py [--models A.onnx B.onnx] [--repetitions 100] [--seconds 1] [--runs 50]
                                      [--threads 1] [--seed 0] [--json significance.json]

Two pairs for each model, each measured again and again with new sessions, as the command measures them:

* equal: the model against itself, in two sessions. What is wanted: no significant change, in 90 of 100.
* a tenth slower: the same, but each run of the second is followed by a busy wait of a tenth of the model's median,
  which a measurement before tells. What is wanted: significantly slower, in 90 of 100.

The command measures each model for at least 3 s; here it is 1 s by default, so that all of it takes a quarter of an
hour, and the task is the harder one.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from oamip_onnx.bench import BenchSettings, Measurement, Speedup
from oamip_onnx.bench.latency import interleave
from oamip_onnx.calibration import random_samples
from oamip_onnx.model import TensorType, bind_inputs, load_model
from oamip_onnx.runtime import RuntimeOptions, Session

ROOT = Path(__file__).resolve().parent.parent
MODELS = (ROOT / "examples" / "fashion" / "resnet8.onnx", ROOT / "benchmarks" / "networks" / "vgg.onnx")

# The share of the verdicts that must be right, and by how much the slower one is slower.
TARGET, SLOWER = 0.9, 0.1

# Runs that tell a model's median beforehand.
PILOT_RUNS = 200

Runner = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """A row of the table: how often the verdict was what, medians of the speed-up and of its interval's width."""

    network: str
    pair: str
    repetitions: int
    no_change: int
    slower: int
    faster: int
    median: float
    width: float
    runs: float
    load: float
    seconds: float

    @property
    def right(self) -> int:
        """How often the verdict was right."""
        return self.no_change if self.pair == "equal" else self.slower

    @property
    def passed(self) -> bool:
        """Whether it was so often enough."""
        return self.right >= TARGET * self.repetitions

    def __str__(self) -> str:
        """Return the line of the table."""
        return (
            f"{self.network:12s} {self.pair:14s} {self.no_change:9d} {self.slower:6d} {self.faster:6d} "
            f"{self.median:8.3f} {self.width:8.3f} {self.runs:6.0f} {self.load:5.1f} {self.seconds:8.0f} "
            f"{'pass' if self.passed else 'FAIL'}"
        )


def runner_of(path: Path, options: RuntimeOptions) -> Runner:
    """Return a call that runs a model once on a sample, in a session of its own."""
    model = load_model(path)
    shapes = bind_inputs(model)
    kinds = {v.name: TensorType(shapes[v.name], v.type.tensor_type.elem_type) for v in model.graph.input}
    return Session(path, options).bind(random_samples(model, kinds, 1, 0).one_run())


def with_wait(run: Runner, seconds: float) -> Runner:
    """Return a call that takes so much longer."""

    def slower() -> None:
        run()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return slower


def verdicts(
    path: Path, options: RuntimeOptions, settings: BenchSettings, repetitions: int, seed: int, *, slower: bool
) -> Iterator[tuple[Speedup, int]]:
    """Yield the verdict of each repetition, and the number of its runs."""
    for repetition in range(repetitions):
        first, second = runner_of(path, options), runner_of(path, options)
        if slower:
            pilot = replace(settings, minimum_runs=PILOT_RUNS, minimum_seconds=0.0)
            median = np.median(interleave([second], pilot, np.random.default_rng(seed))) / 1e3
            second = with_wait(second, SLOWER * float(median))
        generator = np.random.default_rng(seed + repetition)
        measured = Measurement(interleave([first, second], settings, generator), seed + repetition)
        yield measured.speedup(1), measured.samples_ms.shape[1]


def measure(
    path: Path, options: RuntimeOptions, settings: BenchSettings, repetitions: int, seed: int, pair: str
) -> Row:
    """Return the row of a pair."""
    began = time.perf_counter()
    found = list(verdicts(path, options, settings, repetitions, seed, slower=pair != "equal"))
    speedups = [speedup for speedup, _ in found]
    return Row(
        path.stem,
        pair,
        repetitions,
        no_change=sum(not s.significant for s in speedups),
        slower=sum(s.significant and s.median < 1 for s in speedups),
        faster=sum(s.significant and s.median > 1 for s in speedups),
        median=float(np.median([s.median for s in speedups])),
        width=float(np.median([s.high - s.low for s in speedups])),
        runs=float(np.median([runs for _, runs in found])),
        load=psutil.getloadavg()[0],
        seconds=time.perf_counter() - began,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="*", default=list(MODELS))
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0, help="measure each model at least so long")
    parser.add_argument("--runs", type=int, default=50, help="and at least so often")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="three repetitions on one model, as a smoke test")
    args = parser.parse_args()
    if args.quick:
        args.models, args.repetitions, args.seconds = args.models[:1], 3, 0.1
    settings = BenchSettings(minimum_runs=args.runs, minimum_seconds=args.seconds, warmup_seconds=args.seconds / 6)
    options = RuntimeOptions(threads=args.threads)
    print(
        f"{'network':12s} {'pair':14s} {'no change':>9s} {'slower':>6s} {'faster':>6s} {'speed-up':>8s} {'width':>8s} "
        f"{'runs':>6s} {'load':>5s} {'seconds':>8s}"
    )
    rows = []
    for path in args.models:
        for pair in ("equal", "a tenth slower"):
            rows.append(measure(path, options, settings, args.repetitions, args.seed, pair))
            print(rows[-1], flush=True)
            if args.json:
                args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    missed = [f"{row.network}, {row.pair}" for row in rows if not row.passed]
    print(f"Missed: {'; '.join(missed)}." if missed else "All targets are met.")


if __name__ == "__main__":
    main()
