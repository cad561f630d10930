"""Which architectures can be narrowed, how far, at what cost, and whether the result equals the masked model.

    python benchmarks/coverage.py [MODELS…] [--ratio 0.5] [--allow-inexact] [--peers] [--torch]
                                  [--json coverage.json] [--markdown docs/coverage.md]

`MODELS` are `.onnx` files, `.onnx.xz` skeletons (filled with random weights), folders of these, or globs; all
skeletons in `tests/zoo` by default. Half of every group goes, by magnitude, without repair or alignment. Each model has
a process of its own, so that its memory is measured apart and a crash costs one row. The exit code is 1 if the
result of any model does not equal the masked model.
"""

import argparse
import contextlib
import dataclasses
import glob
import importlib.util
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from rich.console import Console
from rich.table import Table

from oamip_onnx.bench import describe_environment
from oamip_onnx.budget import uniform_widths
from oamip_onnx.calibration import random_samples
from oamip_onnx.channels import BoolArray, ChannelAnalysis, analyse, select_units
from oamip_onnx.errors import first_line
from oamip_onnx.importance import ImportanceContext, find_logits, score
from oamip_onnx.model import Array, Costs, Model, bind_inputs, count_costs, infer_shapes, load_model, save_model
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.surgery import cut
from oamip_onnx.verify import check_result, compare_with_masked

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from zoo_models import refill  # noqa: E402 - the tests' folder is no package

QUICK = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5")
OPTIONS = RuntimeOptions(threads=1)

# An output that moves less than this with the input, or with the mask, would hide an error.
SMALLEST_EFFECT = 1e-3

Row = dict[str, Any]

EXPLANATION = """*Inexact* is the share of the MACs left with `--allow-inexact`, for the models that normalise over
channels; it is held against the masked model as well. *Error* and *bound* are the relative error to the masked model
and its tolerance; *input*, *cut's* and *mask* say how much the output moves with the input, the narrower model's with
the input, and with the mask: a check on a model that ignores its input would be empty. Times are in seconds; *surgery*
goes without graphsurgeon's import and export. *Memory* is the peak from reading to surgery, relative to the file.

Torch-Pruning needs the PyTorch code instead of the file; `--torch` adds its columns where it is installed. Version
1.6.1 at the same ratio prunes 69 of 80 torchvision classifiers from their code and leaves 28 % of the parameters on
average; it fails on Swin v1 and v2, ShuffleNet v2 and MaxViT.""".splitlines()

# Header, dotted key of the value in a row, format.
Column = tuple[str, str, str]

COLUMNS: tuple[Column, ...] = (
    ("model", "model", "{}"),
    ("result", "verdict", "{}"),
    ("MACs left", "macs_left", "{:.2f}"),
    ("params left", "parameters_left", "{:.2f}"),
    ("inexact", "inexact.macs_left", "{:.2f}"),
    ("groups", "groups", "{}"),
    ("pins", "pins", "{}"),
    ("error", "max_rel_error", "{:.0e}"),
    ("bound", "tolerance", "{:.0e}"),
    ("input", "input_effect", "{:.0e}"),
    ("cut's", "pruned_input_effect", "{:.0e}"),
    ("mask", "mask_effect", "{:.0e}"),
    ("nodes", "nodes", "{}"),
    ("read s", "seconds.read", "{:.2f}"),
    ("shapes", "seconds.shapes", "{:.2f}"),
    ("analysis", "seconds.analysis", "{:.2f}"),
    ("surgery", "seconds.surgery", "{:.2f}"),
    ("g'surgeon", "seconds.graphsurgeon", "{:.2f}"),
    ("write", "seconds.write", "{:.2f}"),
    ("memory", "memory_multiple", "{:.1f}×"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[str(TESTS / "zoo")], help="files, folders or globs")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of every group that goes")
    parser.add_argument("--allow-inexact", action="store_true", help="open channels under a normalisation as well")
    parser.add_argument("--peers", action="store_true", help="run onnxsim on the same files")
    parser.add_argument("--torch", action="store_true", help="run Torch-Pruning on torchvision's models of these names")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that one model may take")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--quick", action="store_true", help="three small models, as a smoke test")
    args = parser.parse_args()
    paths = [TESTS / "zoo" / f"{name}.onnx.xz" for name in QUICK] if args.quick else model_files(args.models)
    peers = wanted_peers(args)
    environment = describe_environment(OPTIONS)
    console = Console(width=None if sys.stdout.isatty() else 300, highlight=False)
    rows = []
    for number, path in enumerate(paths, 1):
        began = time.perf_counter()
        rows.append(row_of(path, args, peers))
        took = time.perf_counter() - began
        what = f"{rows[-1]['verdict']}{': ' + rows[-1]['error'] if 'error' in rows[-1] else ''}"
        console.print(f"{number} of {len(paths)} {rows[-1]['model']}: {what} ({took:.0f} s)", markup=False)
    columns = [*COLUMNS, *(column for peer in peers for column in peer_columns(peer))]
    console.print(terminal_table(columns, rows))
    lines = summary(rows)
    print("\n".join(lines))
    settings = {"ratio": args.ratio, "allow_inexact": args.allow_inexact, "importance": "magnitude", "round_to": 1}
    if args.json:
        record = {"environment": dataclasses.asdict(environment.after()), "settings": settings, "models": rows}
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text(page(columns, rows, lines, settings))
    sys.exit(any(row["verdict"] != "equal" for row in rows))


def model_files(arguments: list[str]) -> list[Path]:
    """Return the model files that the arguments name, in their order, those of a folder by name."""
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.name.endswith((".onnx", ".onnx.xz")))
        else:
            found += [path] if path.exists() else sorted(map(Path, glob.glob(argument, recursive=True)))  # noqa: PTH207
    if not found:
        raise SystemExit(f"There are no models at {', '.join(arguments)}.")
    return found


def wanted_peers(args: argparse.Namespace) -> list[str]:
    """Return the peers that were asked for and are installed; say which are not."""
    wanted = {"onnxsim": ["onnxsim"]} if args.peers else {}
    wanted |= {"Torch-Pruning": ["torch", "torchvision", "torch_pruning"]} if args.torch else {}
    missing = {peer: [m for m in needs if importlib.util.find_spec(m) is None] for peer, needs in wanted.items()}
    for peer, modules in missing.items():
        if modules:
            print(f"The columns of {peer} are left out: {', '.join(modules)} is not installed.")
    return [peer for peer in wanted if not missing[peer]]


def row_of(path: Path, args: argparse.Namespace, peers: list[str]) -> Row:
    """Return all that is measured of one model."""
    row: Row = {"model": path.name.removesuffix(".xz").removesuffix(".onnx")}
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        filled = path
        if path.name.endswith(".xz"):
            filled = Path(folder) / path.name.removesuffix(".xz")
            row |= isolated(args.limit, write_filled, path, filled)
        if "error" not in row:
            row |= isolated(args.limit, measure, filled, args.ratio, args.allow_inexact)
        row["verdict"] = "error" if "error" in row else row["verdict"]
        if row.get("layer_normalisation") and not args.allow_inexact:
            opened = row["inexact"] = isolated(args.limit, measure, filled, args.ratio, True)
            if row["verdict"] == "equal":
                row["verdict"] = "error" if "error" in opened else opened["verdict"]
        for peer in peers:
            row[peer] = isolated(args.limit, PEERS[peer], filled, row["model"], args.ratio)
            row[peer]["verdict"] = "error" if "error" in row[peer] else row[peer].get("verdict")
    return row


def isolated(limit: float, function: Callable[..., None], *arguments: object) -> Row:
    """Return the row that a function fills in a process of its own; what went wrong there under `error`."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_isolated, args=(sender, function, arguments))
    process.start()
    sender.close()
    row: Row
    try:
        row = receiver.recv() if receiver.poll(limit) else {"error": f"There was no result after {limit:.0f} s."}
    except EOFError:
        process.join()
        row = {"error": f"The process ended with the code {process.exitcode}."}
    process.kill()
    process.join()
    return row


def run_isolated(sender: Connection, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Send the row that a function fills, as far as it came."""
    row: Row = {}
    try:
        function(row, *arguments)
    except Exception as error:  # noqa: BLE001 - whatever a model or a peer does is its row's result
        last = traceback.extract_tb(error.__traceback__)[-1]
        row["error"] = f"{type(error).__name__}: {first_line(error)} ({Path(last.filename).name}:{last.lineno})"
    sender.send(row)


def write_filled(_row: Row, skeleton: Path, target: Path) -> None:
    """Write a skeleton's model with random weights."""
    onnx.save(refill(skeleton), target)


def measure(row: Row, path: Path, ratio: float, allow_inexact: bool) -> None:  # noqa: FBT001 - passed on by position
    """Fill a row with the times, the memory, what is left, and whether it equals the masked model."""
    at_first = peak_bytes()
    seconds = row["seconds"] = {}
    with timed(seconds, "read"):
        model = load_model(path)
    row |= {"size_bytes": model.size_bytes, "nodes": len(model.nodes)}
    row["layer_normalisation"] = any(node.op_type == "LayerNormalization" for node in model.nodes)
    with timed(seconds, "shapes"):
        types = infer_shapes(model, bind_inputs(model))
    with timed(seconds, "analysis"):
        analysis = analyse(model, types, allow_inexact=allow_inexact)
    row |= {"groups": len(analysis.groups), "units": analysis.unit_count, "pins": len(analysis.pinned)}
    with timed(seconds, "score"):
        kept = choose(model, analysis, ratio)
    narrow = timed_cut(model, analysis, kept, seconds)
    row["peak_bytes"] = peak_bytes() - at_first
    row["memory_multiple"] = row["peak_bytes"] / model.size_bytes
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder, timed(seconds, "write"):
        save_model(narrow, Path(folder) / "narrow.onnx")
    before = count_costs(model, types)
    row |= {"macs": before.macs, "parameters": before.parameters} | shares_left(costs_of_file(narrow), before)
    with timed(seconds, "verify"):
        verify(row, model, analysis, kept, narrow)


def choose(model: Model, analysis: ChannelAnalysis, ratio: float) -> BoolArray:
    """Return which units stay, the largest ones."""
    widths = uniform_widths(analysis.groups, ratio)
    samples = random_samples(model, analysis.types, 1, 0)
    context = ImportanceContext(model, analysis, samples, OPTIONS, widths, 0, find_logits(model, analysis.types))
    return select_units(analysis, widths, score("magnitude", context).values)


def timed_cut(model: Model, analysis: ChannelAnalysis, kept: BoolArray, seconds: dict[str, float]) -> onnx.ModelProto:
    """Return the cut model; graphsurgeon's import and export are timed apart from the rest of the surgery."""

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object, **settings: object) -> object:
            with timed(seconds, "graphsurgeon"):
                return function(*arguments, **settings)

        return call

    taken, put = clocked(gs.import_onnx), clocked(gs.export_onnx)
    with mock.patch.multiple(gs, import_onnx=taken, export_onnx=put), timed(seconds, "surgery"):
        narrow = cut(model, analysis, kept)
    seconds["surgery"] -= seconds["graphsurgeon"]
    return narrow


def verify(row: Row, model: Model, analysis: ChannelAnalysis, kept: BoolArray, narrow: onnx.ModelProto) -> None:
    """Fill a row with the comparison to the masked model and with what input and mask change of the output."""
    inputs = [next(random_samples(model, analysis.types, 1, seed).batches(1)) for seed in (1, 2)]
    sessions = [Session(proto, OPTIONS) for proto in (model.proto, narrow)]
    wide, small = ([session.run(feeds) for feeds in inputs] for session in sessions)
    row["input_effect"] = effect(wide[0], wide[1])
    row["pruned_input_effect"] = effect(small[0], small[1])
    row["mask_effect"] = effect(wide[0], small[0])
    check_result(narrow, model.proto, OPTIONS)
    samples = random_samples(model, analysis.types, 2, 0)
    verification = compare_with_masked(model, analysis, kept, narrow, samples, OPTIONS)
    row |= {"max_rel_error": verification.max_rel_error, "tolerance": verification.tolerance}
    visible = min(row[name] for name in ("input_effect", "pruned_input_effect", "mask_effect")) >= SMALLEST_EFFECT
    row["verdict"] = "differs" if not verification.passed else "equal" if visible else "empty"


def effect(left: dict[str, Array], right: dict[str, Array]) -> float:
    """Return the largest difference over the outputs, each relative to its largest value; 0 where one is not finite."""
    shares = []
    for name, values in left.items():
        one, other = values.astype(np.float64), right[name].astype(np.float64)
        if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
            return 0.0
        scale = max(np.abs(one).max(initial=0), np.finfo(np.float64).tiny)
        shares.append(float(np.abs(one - other).max(initial=0) / scale))
    return max(shares)


def costs_of_file(proto: onnx.ModelProto) -> Costs:
    """Return the costs of a model as it would be read."""
    model = load_model(proto)
    return count_costs(model, infer_shapes(model, bind_inputs(model)))


def shares_left(after: Costs, before: Costs) -> Row:
    """Return the shares of the costs that are left."""
    return {
        "macs_left": after.macs / max(before.macs, 1),
        "parameters_left": after.parameters / max(before.parameters, 1),
    }


def run_onnxsim(row: Row, path: Path, _name: str, ratio: float) -> None:
    """Fill a row with what onnxsim's structured pruning leaves of the same file, and whether that is usable."""
    import onnxsim  # noqa: PLC0415 - a peer that few have

    model = load_model(path)
    types = infer_shapes(model, bind_inputs(model))
    with timed(row, "seconds"):
        pruned = onnxsim.apply_structured_pruning(onnx.load(path), sparsity=ratio)
    row |= shares_left(costs_of_file(pruned), count_costs(model, types))
    feeds = next(random_samples(model, types, 1, 1).batches(1))
    wanted, got = ({k: v.shape for k, v in Session(p, OPTIONS).run(feeds).items()} for p in (model.proto, pruned))
    row["verdict"] = "loads" if wanted == got else "outputs changed"


def run_torch_pruning(row: Row, path: Path, name: str, ratio: float) -> None:
    """Fill a row with what Torch-Pruning leaves of torchvision's model of the same name."""
    import torch  # noqa: PLC0415 - as above
    import torch_pruning  # noqa: PLC0415
    import torchvision  # noqa: PLC0415

    if name not in torchvision.models.list_models():
        row["verdict"] = "unknown"
        return
    network = torchvision.models.get_model(name).eval()
    example = torch.zeros(*bind_inputs(load_model(path)).popitem()[1])
    classes = {"out_features": 1000, "out_channels": 1000}
    ignored = [m for m in network.modules() if any(getattr(m, k, 0) == v for k, v in classes.items())]
    macs, parameters = torch_pruning.utils.count_ops_and_params(network, example)
    with timed(row, "seconds"):
        importance = torch_pruning.importance.MagnitudeImportance(p=2)
        torch_pruning.pruner.BasePruner(
            network, example, importance=importance, pruning_ratio=ratio, ignored_layers=ignored
        ).step()
    wanted, got = (1, 1000), tuple(network(example).shape)
    left = torch_pruning.utils.count_ops_and_params(network, example)
    row |= {"macs_left": left[0] / macs, "parameters_left": left[1] / parameters}
    row["verdict"] = "runs" if got == wanted else "outputs changed"


PEERS = {"onnxsim": run_onnxsim, "Torch-Pruning": run_torch_pruning}


@contextlib.contextmanager
def timed(seconds: dict[str, Any], name: str) -> Iterator[None]:
    """Add the seconds that a block takes."""
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def peak_bytes() -> int:
    """Return the most memory that this process has had; the unit of the operating system's answer depends on it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peer_columns(peer: str) -> list[Column]:
    """Return the columns of a peer."""
    columns = [(f"{peer} MACs", f"{peer}.macs_left", "{:.2f}"), (f"{peer} params", f"{peer}.parameters_left", "{:.2f}")]
    return [*columns, (peer, f"{peer}.verdict", "{}")]


def cells(columns: list[Column], row: Row) -> list[str]:
    """Return the texts of a row; empty where it has no such value."""
    texts = []
    for _, key, form in columns:
        value: Any = row
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        texts.append("" if value is None else form.format(value))
    return texts


def summary(rows: list[Row]) -> list[str]:
    """Return how many models passed, and what is left on average of those with and without layer normalisation."""
    lines = [f"{sum(row['verdict'] == 'equal' for row in rows)} of {len(rows)} equal to the masked model."]
    for normalised, what in ((False, "without"), (True, "with")):
        left = [row["macs_left"] for row in rows if row.get("layer_normalisation") is normalised and "macs_left" in row]
        if left:
            mean = statistics.mean(left)
            lines.append(f"MACs left, mean of {len(left)} models {what} a normalisation over channels: {mean:.3f}")
    opened = [row["inexact"]["macs_left"] for row in rows if "macs_left" in row.get("inexact", {})]
    if opened:
        mean, most = statistics.mean(opened), max(opened)
        lines.append(f"With channels under a normalisation opened these {len(opened)}: {mean:.3f}, at most {most:.3f}")
    for peer in PEERS:
        left = [row[peer]["macs_left"] for row in rows if "macs_left" in row.get(peer, {})]
        if left:
            loads = sum(row[peer].get("verdict") in {"loads", "runs"} for row in rows if peer in row)
            lines.append(
                f"{peer}: {loads} of {len(rows)} usable; MACs left, mean of {len(left)}: {statistics.mean(left):.3f}"
            )
    return lines


def terminal_table(columns: list[Column], rows: list[Row]) -> Table:
    """Return the table for a terminal."""
    table = Table(header_style="bold")
    for header, *_ in columns:
        table.add_column(
            header, justify="left" if header in {"model", "result"} else "right", no_wrap=header == "model"
        )
    for row in rows:
        table.add_row(*cells(columns, row))
    return table


def page(columns: list[Column], rows: list[Row], lines: list[str], settings: dict[str, Any]) -> str:
    """Return the table as a page of the documentation."""
    table = [[header for header, *_ in columns], ["---"] * len(columns), *(cells(columns, row) for row in rows)]
    opened = ", channels under a normalisation opened" if settings["allow_inexact"] else ""
    how = (
        f"Whole architectures with random weights, {settings['ratio']:.0%} of each group removed by magnitude{opened}, "
        "no repair; one thread of a shared server. Made by "
        "`python benchmarks/coverage.py --peers --markdown docs/coverage.md`."
    )
    body = ["| " + " | ".join(line) + " |" for line in table]
    text = ["# Coverage", "", how, "", *(f"* {line}" for line in lines), "", *EXPLANATION, "", *body]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
