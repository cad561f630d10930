"""Accuracy without training, ours beside other tools: Fashion-MNIST test accuracy and latency at equal MACs.

    python benchmarks/accuracy.py [--models benchmarks/networks/*.onnx] [--macs 0.6 0.35] [--draws 3] [--samples 1000]
                                  [--methods NAME … | all] [--round-to 1] [--full DIR] [--json accuracy.json]
                                  [--plot accuracy.svg] [--latency 0.9 0.8 0.7] [--figure latency.svg]

Every method gets the same unlabelled images of each draw and has to leave at most the same share of the MACs, which are
counted on the ONNX file that it leaves. Ours are named by what they are made of, importance+repair+widths:

* the importance `auto`, `oamip`, `reconstruction`, `magnitude`, `activation` or `random`;
* the repair `none`, `bias` or `least-squares`;
* widths that are `uniform`, the same share of every layer, `program`, chosen by a program over damages and costs, or
  `auto`, the better of both. `auto+least-squares+auto` is what `prune` does by default, apart from the rounding.

With `--latency`, `auto+least-squares+latency` is added at those shares of the original's latency: what `prune` does by
default for `--target latency=F`. `--figure` draws accuracies against latencies alone.

The others are onnxsim with its own recovery and Torch-Pruning, by their default of one share for every layer and, as
`…-global`, ranking over all layers; see `other_tools.py`. Those that are not installed are left out. Their number that
says how much goes is searched; the seconds leave the search out, but for ours they are all that planning takes. Widths
are multiples of `--round-to`, save those of onnxsim, which has no such option; convolutions run fastest at multiples of
8 or 16, so that the latency of widths rounded to 1 says little about what rounding reaches.

Accuracies are means ± standard deviations over the draws. The latency is that of one image on one thread, relative to
the original's, all models of the first draw taking turns with it: the median over several loads, and the range of the
loads' 95 % intervals. Rows that come from the JSON file are not measured again.

`--full` names the folder of the Fashion-MNIST IDX files (Debian: dataset-fashion-mnist): the draws then come from the
60,000 training images, and all 10,000 test images serve; without it 1,000 and 2,000 images that ship with the example.
"""

import argparse
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from importance import FASHION, NETWORKS, Draw, Row, configuration, draws_of, same, write
from other_tools import PEERS, PeerError, make_peer, missing
from threadpoolctl import threadpool_limits

from oamip_onnx.bench import BenchSettings, measure_latency
from oamip_onnx.channels import select_units
from oamip_onnx.config import make_config
from oamip_onnx.errors import OamipError
from oamip_onnx.judging import repaired
from oamip_onnx.model import bind_inputs, count_costs, infer_shapes, load_model
from oamip_onnx.scoring import score
from oamip_onnx.surgery import cut
from oamip_onnx.verify import run_output

IMPORTANCES = ("auto", "oamip", "reconstruction", "magnitude", "activation", "random")
DEFAULT = "auto+least-squares+auto"
BY_LATENCY = "auto+least-squares+latency"
OURS = [f"{importance}+{repair}+uniform" for importance in IMPORTANCES for repair in ("none", "bias", "least-squares")]
OURS += [f"{importance}+least-squares+{w}" for importance in ("reconstruction", "auto") for w in ("program", "auto")]
OURS += [BY_LATENCY]
METHODS = [*OURS, *PEERS]
USUAL = [
    DEFAULT,
    "reconstruction+least-squares+program",
    "reconstruction+least-squares+uniform",
    "oamip+least-squares+uniform",
    "magnitude+least-squares+uniform",
    "oamip+none+uniform",
    "magnitude+none+uniform",
    *PEERS,
]

ORDER = list(dict.fromkeys([BY_LATENCY, *USUAL, *METHODS]))
# Colours of the others; ranked over all layers, a tool keeps its colour.
WARM = {"onnxsim-l2": "#d62728", "onnxsim-wanda": "#ff9f1c", "tp-magnitude": "#8c564b", "tp-taylor": "#d45fb0"}

# All models of a network and a share take turns: each runs so often, or so long.
TIMING = BenchSettings(minimum_runs=100, minimum_seconds=0.5, warmup_seconds=0.2, maximum_seconds=30, maximum_runs=2000)

# What a method left of the model of a draw, and the seconds it took.
Outcome = tuple[onnx.ModelProto, float]


def macs_of(proto: onnx.ModelProto) -> float:
    """Return the MACs of one sample."""
    model = load_model(proto)
    return count_costs(model, infer_shapes(model, bind_inputs(model))).macs


def accuracy_of(proto: onnx.ModelProto, draw: Draw) -> float:
    """Return the accuracy on the test images."""
    logits = run_output(proto, draw.prepared.original.output_names[0], draw.test, draw.prepared.options)
    return float((logits.argmax(axis=1) == draw.test.labels).mean())


def pruned_by_ours(method: str, draw: Draw, share: float, round_to: int) -> Outcome:
    """Return the model that a method of this package leaves of a share of the MACs."""
    importance, repair, widths = method.split("+")
    settings = {"importance": importance, "repair": repair, "widths": widths, "round_to": round_to}
    target = f"macs={share:g}"
    if method == BY_LATENCY:
        target, settings["widths"] = f"latency={share:g}", "auto"
    config, prepared = make_config(configuration(target, draw.seed), settings), draw.prepared
    began = time.perf_counter()
    scores, plan = score(prepared, config)
    kept = select_units(prepared.analysis, plan.widths, scores.values)
    proto = repaired(prepared, config, kept, cut(prepared.model, prepared.analysis, kept)).proto
    return proto, time.perf_counter() - began


def pruned_by_peer(method: str, draw: Draw, share: float, round_to: int) -> Outcome:
    """Return the model that another tool leaves of a share of the MACs."""
    whole = macs_of(draw.prepared.original.proto)
    found = make_peer(method, draw.prepared, round_to).prune(share, lambda proto: macs_of(proto) / whole)
    return found.proto, found.seconds


def measure(row: Row, draws: Sequence[Draw]) -> onnx.ModelProto:
    """Fill a row with the accuracy, the share of the MACs and the seconds of each draw; return the first one's model.

    Raises
    ------
    PeerError, OamipError
        If the method leaves no such model.
    """
    method = row["method"]
    prune = pruned_by_peer if method in PEERS else pruned_by_ours
    original = draws[0].prepared.original.proto
    protos, seconds = [], []
    for draw in draws:
        with threadpool_limits(1):
            proto, took = prune(method, draw, row["share"], row["round_to"])
        protos.append(proto)
        seconds.append(took)
    row["base"] = accuracy_of(original, draws[0])
    row["macs"] = [macs_of(proto) / macs_of(original) for proto in protos]
    row["accuracy"] = [accuracy_of(proto, draw) for proto, draw in zip(protos, draws, strict=True)]
    row["seconds"] = seconds
    return protos[0]


def measured(wanted: Row, draws: Sequence[Draw]) -> tuple[Row, onnx.ModelProto | None]:
    """Return a row and the model of its first draw, or a row that says why there is none."""
    row = dict(wanted)
    try:
        return row, measure(row, draws)
    except (OamipError, PeerError) as error:
        return wanted | {"error": str(error)}, None
    except Exception as error:
        if wanted["method"] not in PEERS:
            raise
        # Whatever a peer does is its row's result.
        return wanted | {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}, None


def time_models(rows: Sequence[Row], protos: Sequence[onnx.ModelProto], draw: Draw, loads: int) -> None:
    """Fill rows with the latencies of their models relative to the original's: the median, low and high.

    Where the memory of a session lies makes one load of a small model faster than another, so that each is loaded
    several times, in another order; the median of the medians counts, and the widest of the intervals around it.
    """
    prepared = draw.prepared
    feeds, models = prepared.samples.one_run(), [prepared.original.proto, *protos]
    found = np.empty((loads, len(rows), 3))
    for load in range(loads):
        order = np.random.default_rng(load).permutation(len(models))
        measurement = measure_latency([models[i] for i in order], feeds, prepared.options, settings=TIMING, seed=load)
        place = np.argsort(order)
        for number in range(len(rows)):
            speedup = measurement.speedup(int(place[number + 1]), int(place[0]))
            found[load, number] = 1 / speedup.median, 1 / speedup.high, 1 / speedup.low
    for number, row in enumerate(rows):
        medians, lows, highs = found[:, number].T
        row["latency"] = [float(np.median(medians)), float(lows.min()), float(highs.max())]


def add_rows(
    known: list[Row], wanted: Sequence[Row], draws: Callable[[], Sequence[Draw]], args: argparse.Namespace
) -> None:
    """Add to the rows known those of one network and share that are wanted and not among them."""
    new, protos = [], []
    for key in wanted:
        if any(same(row, key) for row in known):
            continue
        row, proto = measured(key, draws())
        if proto is None:
            known.append(row)
        else:
            new.append(row)
            protos.append(proto)
    if new:
        time_models(new, protos, draws()[0], args.loads)
    known += new
    write(known, args.json)


def label_of(method: str) -> str:
    """Return the name of a method for a reader."""
    if method in PEERS:
        return PEERS[method][1]
    importance, repair, widths = method.split("+")
    return f"{importance} + {repair}, {widths} {'target' if method == BY_LATENCY else 'widths'}"


def line_of(row: Row) -> str:
    """Return a row of the table."""
    head = f"{row['model']:8s} {row['share']:5g}  {label_of(row['method']):46s}"
    if row.get("error"):
        return f"{head} none: {row['error']}"
    median, low, high = row["latency"]
    accuracy = f"{np.mean(row['accuracy']):.4f} ± {deviation(row['accuracy']):6s}"
    return (
        f"{head} {np.mean(row['macs']):5.3f}  {accuracy}  {median:5.3f} ({low:5.3f} to {high:5.3f})"
        f"  {np.mean(row['seconds']):7.2f}"
    )


def deviation(values: Sequence[float]) -> str:
    """Return the standard deviation as text, which is unknown of a single value."""
    return f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else "?"


def plot(rows: Sequence[Row], *, latency_only: bool = False) -> str:
    """Return accuracies as SVG: a line of two panels a network, against the MACs and against the latency left.

    With `latency_only` there is one panel a network, two in a line.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only here
    from matplotlib.figure import Figure  # noqa: PLC0415 - only here
    from matplotlib.lines import Line2D  # noqa: PLC0415 - only here

    models = list(dict.fromkeys(row["model"] for row in rows))
    methods = sorted(dict.fromkeys(row["method"] for row in rows), key=lambda m: (m in PEERS, ORDER.index(m)))
    styles = styles_of(methods)
    # One column of the legend for ours, one for the others.
    columns = [[m for m in methods if m not in PEERS], [m for m in methods if m in PEERS]]
    entries = max(map(len, columns))
    keys = ("latency",) if latency_only else ("MACs", "latency")
    lines = -(-len(models) * len(keys) // 2)
    figure = Figure(figsize=(8.0, 2.4 * lines + 0.17 * entries + 0.2), layout="constrained")
    panels = figure.subplots(lines, 2, squeeze=False, sharey="row").ravel()
    for axes in panels[len(models) * len(keys) :]:
        axes.set_visible(False)
    handles: dict[str, Any] = {}
    for line, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        for axes, key in zip(panels[line * len(keys) :], keys, strict=False):
            for method in methods:
                points = sorted((r for r in own if r["method"] == method), key=lambda r: r["share"])
                if not points:
                    continue
                left = [float(np.mean(r["macs"])) if key == "MACs" else r["latency"][0] for r in points]
                means = [float(np.mean(r["accuracy"])) for r in points]
                spread = [float(np.std(r["accuracy"], ddof=1)) if len(r["accuracy"]) > 1 else 0.0 for r in points]
                handles[method] = axes.errorbar(left, means, spread, elinewidth=0.8, **styles[method])
            axes.axhline(own[0]["base"], color="black", linestyle="--", linewidth=0.9, zorder=1)
            axes.set_xlabel(f"{key} left", fontsize=8)
            axes.set_title(f"{model}: accuracy against {key} left", fontsize=9)
            axes.set_ylim(0, min(1.0, own[0]["base"] + 0.05))
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        panels[line * len(keys)].set_ylabel("test accuracy", fontsize=8)
    padded = [method for column in columns if column for method in [*column, *[""] * (entries - len(column))]]
    blank = Line2D([], [], linestyle="none")
    figure.legend(
        [handles.get(method, blank) for method in padded],
        [label_of(method) if method else "" for method in padded],
        loc="outside lower center",
        ncols=sum(map(bool, columns)),
        fontsize=7.5,
        frameon=False,
    )
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "oamip", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def styles_of(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the styles of methods: ours in cold colours with solid lines, others in warm ones with dotted lines."""
    import matplotlib as mpl  # noqa: PLC0415 - only here

    ours = [method for method in methods if method not in PEERS]
    shades = mpl.colormaps["YlGnBu"](np.linspace(1.0, 0.4, max(len(ours), 2)))
    styles: dict[str, dict[str, Any]] = {}
    for number, method in enumerate(ours):
        width = 2.0 if method in (DEFAULT, BY_LATENCY) else 1.1
        marker = "oDv^<>PX"[number % 8]
        styles[method] = {"color": shades[number], "marker": marker, "ms": 4.0, "linewidth": width, "zorder": 3}
    for method in methods:
        if method in PEERS:
            kind = method.removesuffix("-global")
            face = WARM[kind] if method == kind else "white"
            styles[method] = {"color": WARM[kind], "markerfacecolor": face, "marker": "s", "ms": 4.0, "zorder": 2}
            styles[method] |= {"linestyle": ":", "linewidth": 1.1}
    return styles


def installed(methods: Sequence[str]) -> list[str]:
    """Return the methods that can run here; say of which tools there are none."""
    absent = {PEERS[m][0].install for m in methods if m in PEERS and missing(PEERS[m][0])}
    for install in sorted(absent):
        names = [m for m in methods if m in PEERS and PEERS[m][0].install == install]
        print(f"Left out, since not installed: {', '.join(names)}. To have them: {install}")
    return [m for m in methods if m not in PEERS or PEERS[m][0].install not in absent]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", default=sorted(NETWORKS.glob("*.onnx")))
    parser.add_argument("--macs", type=float, nargs="+", default=[0.6, 0.35], help="shares of the MACs left")
    parser.add_argument("--latency", type=float, nargs="+", default=[], help="shares of the latency left, ours alone")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1000, help="unlabelled images of a draw")
    parser.add_argument("--methods", nargs="+", choices=["all", *METHODS], default=USUAL, metavar="NAME")
    parser.add_argument("--round-to", type=int, default=1, help="multiple of the widths, but for onnxsim")
    parser.add_argument("--loads", type=int, default=5, help="how often each model is loaded to be timed")
    parser.add_argument("--full", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw accuracy against MACs and latency")
    parser.add_argument("--figure", type=Path, metavar="SVG", help="draw accuracy against latency alone")
    parser.add_argument("--quick", action="store_true", help="one small draw of LeNet-5, as a smoke test")
    args = parser.parse_args()
    if args.quick:
        args.models, args.macs = [FASHION / "lenet5.onnx"], [0.5]
        args.draws, args.samples, args.loads = 1, 200, 1
        # The programs of OAMIP take longer than all the others together.
        args.methods = [method for method in args.methods if not method.startswith("oamip")]
    args.methods = installed(METHODS if "all" in args.methods else list(dict.fromkeys(args.methods)))
    if not args.methods:
        raise SystemExit("There is nothing to compare.")
    return args


def key_of(path: Path, share: float, method: str, args: argparse.Namespace) -> Row:
    """Return what tells a measurement from others."""
    data = "shipped" if args.full is None else "full"
    settings = {"draws": args.draws, "samples": args.samples, "data": data, "round_to": args.round_to}
    return {"model": path.stem, "share": share, "method": method, **settings}


def heading(base: Mapping[str, Any]) -> str:
    """Return the line above the rows of a network and a share."""
    return (
        f"\n{'model':8s} {'share':5s}  {'method (base accuracy ' + format(base['base'], '.4f') + ')':46s} {'MACs':5s}"
        f"  {'test accuracy':15s}  {'latency left':23s}  {'seconds':>7s}"
    )


def main() -> None:
    args = arguments()
    rows: list[Row] = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    of_run: list[Row] = []
    for path in args.models:
        prepared = cache(partial(draws_of, path, args))  # not at all where the file holds every row
        by_macs = [m for m in args.methods if m != BY_LATENCY]
        for share, methods in [*((s, by_macs) for s in args.macs), *((s, [BY_LATENCY]) for s in args.latency)]:
            wanted = [key_of(path, share, method, args) for method in methods]
            add_rows(rows, wanted, prepared, args)
            own = [next(row for row in rows if same(row, key)) for key in wanted]
            print(heading(next((row for row in own if not row.get("error")), {"base": math.nan})))
            for row in own:
                print(line_of(row), flush=True)
            of_run += own
    found = [row for row in of_run if not row.get("error")]
    if args.plot and found:
        args.plot.write_text(plot(found))
    if args.figure and found:
        args.figure.write_text(plot(found, latency_only=True))


if __name__ == "__main__":
    main()
