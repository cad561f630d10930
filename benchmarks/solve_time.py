"""How long the programs of OAMIP take on one thread, against the time that each is meant to take.

    python benchmarks/solve_time.py [--runs 3] [--models benchmarks/networks/*.onnx]
                                    [--large MODEL.onnx --large-data random] [--json solve_time.json]

Medians over the runs, with half of every group planned to stay:

* the shift form, all layers in one program, 10 images: LeNet-5 and two fully connected networks;
* the response form, 200 images, 4 rounds, on each model; and once more with its exchanges, which have no target;
* the layer-wise form, 100 images, on each model, and on a large one with `--large`;
* undecided states: 784-64-32-10 with the authors' rows in a box of ε = 0.01, searched by SCIP to a gap of 1 %, and the
  valid shift form (trust region r = 0.1), whose gap after 60 s is reported.

The fully connected networks are fitted here, with scikit-learn, on the shipped calibration images. The seconds are
those of the criterion alone: programs built and solved, activations and responses measured, models loaded before.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from oamip_onnx.config import make_config
from oamip_onnx.errors import OamipError
from oamip_onnx.formulation import JointOptions, Program
from oamip_onnx.importance import ImportanceContext, Scores, authors_options, joint_scores, score
from oamip_onnx.preparation import prepare
from oamip_onnx.scoring import importance_context, planned_widths
from oamip_onnx.solvers import Solution, SolverOptions

FASHION = Path(__file__).resolve().parent.parent / "examples" / "fashion"
NETWORKS = Path(__file__).resolve().parent / "networks"
DATA = FASHION / "calibration.npz"

# Iterations of the fit.
ITERATIONS = 100

# Seconds of the joint form by hidden layers, and of the other forms on any model.
DENSE = {(300, 100): 5.0, (512, 256): 20.0}
LENET_SECONDS, RESPONSE_SECONDS, LAYERWISE_SECONDS, LARGE_SECONDS = 30.0, 90.0, 60.0, 600.0

# The search with undecided states: its network, box, trust region, time and gap.
UNDECIDED, RADIUS, TRUST_RADIUS, SEARCH_SECONDS, SEARCH_GAP = (64, 32), 1e-2, 0.1, 60.0, 0.01

# Weight decay of that network's fit: smaller weights leave fewer states open in the box, about 90.
UNDECIDED_DECAY = 4.0

# More nodes and binaries than a search of that time gets to.
UNLIMITED = 10**9

Source = Path | onnx.ModelProto


@dataclass(frozen=True)
class Counting(ImportanceContext):
    """A context that remembers how many binaries each of its programs had."""

    binaries: list[int] = field(default_factory=list)

    def solve(self, programs: Sequence[Program]) -> list[Solution]:
        """Return the solutions, having counted the binaries."""
        self.binaries.extend(program.binary_count for program in programs)
        return super().solve(programs)


@dataclass(frozen=True)
class Case:
    """A row of the table before it is measured.

    Attributes
    ----------
    network, form, images
        What is solved.
    ready
        Returns the context, models and samples loaded.
    target
        Seconds to stay below; None where only the time is reported.
    gap
        Gap to reach as well; None for a convex program or the engine's own.
    options
        Returns the joint program's options, where they are not the settings'.
    once
        Whether one run is enough.
    """

    network: str
    form: str
    images: int
    ready: Callable[[], Counting]
    target: float | None = None
    gap: float | None = None
    options: Callable[[ImportanceContext], JointOptions] | None = None
    once: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table; `passed` is None without a target, and the numbers without a solution."""

    network: str
    form: str
    images: int
    target: float | None
    passed: bool | None
    seconds: float | None = None
    runs: int = 0
    engine: str = ""
    status: str = ""
    objective: float | None = None
    bound: float | None = None
    binaries: int = 0
    gap: float | None = None
    nodes: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the line of the table."""
        aim = "" if self.target is None else f"< {self.target:g}"
        end = "" if self.passed is None else ("pass" if self.passed else "FAIL")
        numbers = (
            f"{_number(self.objective, '.4f'):>9s} {self.binaries:8d} {_number(self.gap, '.2%'):>7s} {self.nodes:6d} "
            f"{_number(self.seconds, '.1f'):>8s} {aim:>6s} {end:4s}"
        )
        return f"{self.network:15s} {self.form:22s} {self.images:6d} {numbers} {self.engine}: {self.status}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


@cache
def fully_connected(hidden: tuple[int, ...], decay: float = 1e-4) -> onnx.ModelProto:
    """Return a fully connected network fitted to the shipped calibration images with that weight decay."""
    with np.load(DATA) as data:
        images, labels = data["x"].reshape(len(data["x"]), -1).astype(np.float32) / 255, data["labels"]
    network = MLPClassifier(hidden, max_iter=ITERATIONS, random_state=0, early_stopping=True, alpha=decay)
    network.fit(images, labels)
    nodes, weights = [helper.make_node("Flatten", ["x"], ["h0"])], []
    for layer, (weight, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        weights += [numpy_helper.from_array(weight.astype(np.float32), f"w{layer}")]
        weights += [numpy_helper.from_array(bias.astype(np.float32), f"b{layer}")]
        last = layer == len(network.coefs_) - 1
        out = "y" if last else f"a{layer}"
        nodes.append(helper.make_node("Gemm", [f"h{layer}", f"w{layer}", f"b{layer}"], [out]))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"h{layer + 1}"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 28, 28])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])]
    graph = helper.make_graph(nodes, "fully_connected", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def context_of(
    source: Source, data: Path | None = DATA, solver: SolverOptions | None = None, **settings: object
) -> Counting:
    """Return the context of a network on one thread, half of every group planned to stay; data None: random."""
    fixed = {"target": "ratio=0.5", "round_to": 1, "repair": "none", "threads": 1, "workers": 1, "cache": False}
    config = make_config(fixed, settings)
    prepared = prepare(source, data, config, random_data=data is None)
    plain = importance_context(prepared, config, planned_widths(prepared, config))
    oamip = plain.oamip if solver is None else replace(plain.oamip, solver=solver)
    own = (plain.model, plain.analysis, plain.samples, plain.options, plain.widths, plain.seed, plain.logits)
    return Counting(*own, oamip=oamip)


def named(hidden: tuple[int, ...]) -> str:
    return "-".join(map(str, (784, *hidden, 10)))


def joint_cases() -> Iterator[Case]:
    """Yield the rows of the shift form."""
    ready = partial(context_of, FASHION / "lenet5.onnx", form="shift", images=10)
    yield Case("LeNet-5", "shift", 10, ready, LENET_SECONDS)
    for hidden, target in DENSE.items():

        def fitted(hidden: tuple[int, ...] = hidden) -> Counting:
            return context_of(fully_connected(hidden), form="shift", images=10)

        yield Case(named(hidden), "shift", 10, fitted, target)


def model_cases(paths: list[Path]) -> Iterator[Case]:
    """Yield the rows of the forms that take any model."""
    for path in paths:
        ready = partial(context_of, path, form="response", images=200, rounds=4)
        yield Case(path.stem, "response", 200, partial(ready, exchanges=0), RESPONSE_SECONDS)
        yield Case(path.stem, "response, exchanges", 200, ready)
        layerwise = partial(context_of, path, form="layerwise", images=100)
        yield Case(path.stem, "layerwise", 100, layerwise, LAYERWISE_SECONDS)


def undecided_cases() -> Iterator[Case]:
    """Yield the rows whose programs hold binaries: the authors' rows in a wide box, and the valid form."""

    def ready(gap: float) -> Counting:
        limits = SolverOptions(name="scip", nodes=UNLIMITED, seconds=SEARCH_SECONDS, gap=gap, largest_binary=UNLIMITED)
        return context_of(fully_connected(UNDECIDED, UNDECIDED_DECAY), solver=limits, form="shift", images=10)

    def authors(context: ImportanceContext) -> JointOptions:
        # Their sum of layer means of (s - 2) has its optimum near 0, where a relative gap says nothing.
        return replace(authors_options(context), radius=RADIUS, layer_rescale="mean", layer_sizes=None)

    def valid(context: ImportanceContext) -> JointOptions:
        return JointOptions(loss_weight=context.oamip.loss_weight, trust_radius=TRUST_RADIUS)

    name = named(UNDECIDED)
    yield Case(name, "shift, authors' rows", 10, partial(ready, SEARCH_GAP), SEARCH_SECONDS, SEARCH_GAP, authors)
    yield Case(name, "shift, valid", 10, partial(ready, SolverOptions.gap), options=valid, once=True)


def large_case(path: Path, data: str) -> Case:
    """Return the row of a large model."""
    source = None if data == "random" else Path(data)
    ready = partial(context_of, path, source, form="layerwise", images=100, samples=100)
    return Case(path.stem, "layerwise", 100, ready, LARGE_SECONDS, once=True)


def measure(case: Case, runs: int) -> Row:
    """Return the row of a case."""
    head = (case.network, case.form, case.images, case.target)
    seconds = []
    try:
        for _ in range(1 if case.once else runs):
            context = case.ready()
            options = None if case.options is None else case.options(context)
            began = time.perf_counter()
            # One thread for the solvers' linear algebra, whatever the machine has.
            with threadpool_limits(1):
                scores = score("oamip", context) if options is None else joint_scores(context, options)
            seconds.append(time.perf_counter() - began)
    except OamipError as error:
        return Row(*head, None if case.target is None else False, status=f"failed: {error}")
    return _row(case, head, seconds, scores, context)


def _row(
    case: Case,
    head: tuple[str, str, int, float | None],
    seconds: list[float],
    scores: Scores,
    context: Counting,
) -> Row:
    last, median = scores.solver[-1], statistics.median(seconds)
    gap = last.gap if len(scores.solver) == 1 else None
    reached = case.gap is None or (gap is not None and gap <= case.gap)
    return Row(
        *head,
        passed=None if case.target is None else median < case.target and reached,
        seconds=median,
        runs=len(seconds),
        engine=last.engine,
        status=", ".join(sorted({str(s.status) for s in scores.solver})),
        objective=last.objective,
        bound=last.bound,
        binaries=max(context.binaries),
        gap=gap,
        nodes=sum(s.nodes for s in scores.solver),
        notes=scores.notes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--models", type=Path, nargs="*", default=sorted(NETWORKS.glob("*.onnx")))
    parser.add_argument("--large", type=Path, metavar="MODEL", help="a large model for the layer-wise form, one run")
    parser.add_argument("--large-data", default="random", metavar="DATA", help="its samples, or random")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one run of the shift form on LeNet-5, as a smoke test")
    args = parser.parse_args()
    if args.quick:
        cases, args.runs = [next(joint_cases())], 1
    else:
        cases = [*joint_cases(), *model_cases(args.models), *undecided_cases()]
        cases += [large_case(args.large, args.large_data)] if args.large else []
    print(
        f"{'network':15s} {'form':22s} {'images':>6s} {'objective':>9s} {'binaries':>8s} {'gap':>7s} {'nodes':>6s} "
        f"{'seconds':>8s} {'target':>6s} {'':4s} engine: status"
    )
    rows = []
    for case in cases:
        rows.append(measure(case, args.runs))
        print(rows[-1], flush=True)
        if args.json:
            args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    missed = [f"{row.network} {row.form}" for row in rows if row.passed is False]
    print(f"Missed: {'; '.join(missed)}." if missed else "All targets are met.")


if __name__ == "__main__":
    main()
