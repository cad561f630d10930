"""Which units the criteria choose: Fashion-MNIST test accuracy at equal widths, so at equal MACs.

    python benchmarks/importance.py [--models benchmarks/networks/*.onnx] [--macs 0.7 0.5 0.3 | --keep 0.6 0.5]
                                    [--draws 3] [--samples 1000] [--criteria NAME …] [--repair none least-squares]
                                    [--full DIR] [--json importance.json] [--plot importance.svg]

Every criterion scores the same unlabelled images of each draw and keeps the same number of units of every group.
Accuracies are means ± standard errors over the draws: with masks alone, which is what a criterion is worth, and after
the least-squares repair. The seconds are those of the criterion alone, on one thread. Criteria:

* `auto` (the default of `prune`: OAMIP or the reconstruction, whichever the repair makes most of);
* `oamip` (the response form), `oamip-auto` (the form that the repair makes most of), `oamip-layerwise`, and
  `oamip-shift` (the authors' program; its scores rank, the widths stay equal);
* `reconstruction` (group optimal brain surgery), `removal`, `activation`, `magnitude`, `random`;
* `onnxsim-l2` and `onnxsim-wanda`, the rules by which onnxsim 0.8 ranks channels: ‖W_g‖ of the weights that produce the
  channel, which is `magnitude` and shares its row, and ‖W_g‖·‖X_g‖ with the activations X_g that flow through it;
* `fisher`, `taylor` and `snip` by gradients, where PyTorch is installed.

`--full` names the folder of the Fashion-MNIST IDX files (Debian: dataset-fashion-mnist): the draws then come from the
60,000 training images, and all 10,000 test images serve; without it 1,000 and 2,000 images that ship with the example.
Rows that the JSON file holds already are not measured again.
"""

import argparse
import importlib.util
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from oamip_onnx.budget import costs_of
from oamip_onnx.calibration import ActivationStream, Samples, load_samples
from oamip_onnx.calibration.datasets import read_dataset
from oamip_onnx.channels import BoolArray, select_units
from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.errors import OamipError
from oamip_onnx.importance import ImportanceContext, magnitude, score
from oamip_onnx.masking import MaskedSession
from oamip_onnx.model import Array, load_model
from oamip_onnx.preparation import Prepared, prepare
from oamip_onnx.repair import REPAIRS, RepairContext
from oamip_onnx.scoring import importance_context, planned_widths
from oamip_onnx.surgery import cut
from oamip_onnx.verify import run_output

FASHION = Path(__file__).resolve().parent.parent / "examples" / "fashion"
NETWORKS = Path(__file__).resolve().parent / "networks"

FloatArray = npt.NDArray[np.float64]
Row = dict[str, Any]

# What the criteria of the package are set to.
SETTINGS: dict[str, dict[str, object]] = {
    "auto": {"importance": "auto"},
    "oamip": {"importance": "oamip", "form": "response"},
    "oamip-auto": {"importance": "oamip", "form": "auto"},
    "oamip-layerwise": {"importance": "oamip", "form": "layerwise"},
    "oamip-shift": {"preset": "paper"},
    "reconstruction": {"importance": "reconstruction"},
    "removal": {"importance": "removal"},
    "activation": {"importance": "activation"},
    "magnitude": {"importance": "magnitude"},
    "random": {"importance": "random"},
    "fisher": {"importance": "fisher"},
    "taylor": {"importance": "taylor"},
    "snip": {"importance": "snip"},
}
# The others score the units of a draw once for all widths.
READ_WIDTHS = ("auto", "oamip", "oamip-auto", "oamip-layerwise", "reconstruction")
# Those that need PyTorch.
GRADIENTS = ("fisher", "taylor", "snip")
SAME_AS = {"onnxsim-l2": "magnitude"}
_MISSING = () if importlib.util.find_spec("torch") else GRADIENTS
AVAILABLE = [name for name in [*SETTINGS, *SAME_AS, "onnxsim-wanda"] if name not in _MISSING]

# Images of one run of the masked model on the test set.
TEST_BATCH = 500


@dataclass(frozen=True)
class Draw:
    """A model prepared on one draw of images.

    Attributes
    ----------
    prepared
        The model, its samples and its channels.
    test
        Labelled test samples.
    seed
        Number of the draw.
    known
        Scores and seconds of the criteria that do not read the planned widths: they serve every share.
    """

    prepared: Prepared
    test: Samples
    seed: int
    known: dict[str, tuple[FloatArray, float]] = field(default_factory=dict)

    @cached_property
    def masked(self) -> MaskedSession:
        """The masked model."""
        return MaskedSession(self.prepared.model, self.prepared.analysis, self.prepared.options, [self.prepared.logits])

    def config(self, share: str, criterion: str = "random") -> PruneConfig:
        """Return the settings of a criterion of the package at a share such as ``macs=0.5``."""
        return make_config(configuration(target_of(share), self.seed), SETTINGS[criterion])

    def context(self, share: str, criterion: str = "random") -> ImportanceContext:
        """Return what a criterion works on."""
        config = self.config(share, criterion)
        return importance_context(self.prepared, config, planned_widths(self.prepared, config))

    def masked_accuracy(self, kept: BoolArray) -> float:
        """Return the test accuracy with masks alone."""
        name = self.prepared.logits
        values = [self.masked.run(feeds, kept)[name] for feeds in self.test.batches(TEST_BATCH)]
        return self._accuracy(np.concatenate(values))

    def repaired_accuracy(self, kept: BoolArray) -> float:
        """Return the test accuracy of the narrower model after the least-squares repair."""
        own = self.prepared
        narrow = cut(own.model, own.analysis, kept)
        context = RepairContext(own.model, own.analysis, kept, narrow, own.samples, own.options, self.seed)
        repaired = REPAIRS["least-squares"](context)
        return self._accuracy(run_output(repaired.proto, own.compared, self.test, own.options))

    def _accuracy(self, values: Array) -> float:
        return float((values.argmax(axis=1) == self.test.labels).mean())


def configuration(target: str, seed: int) -> dict[str, object]:
    """Return the settings that all criteria share."""
    return {"target": target, "seed": seed, "round_to": 1, "threads": 1, "workers": 1, "cache": False, "bench": False}


def target_of(share: str) -> str:
    """Return the target of ``macs=0.5``, or of ``keep=0.6``, which is the ratio 0.4."""
    kind, _, value = share.partition("=")
    return share if kind == "macs" else f"ratio={1 - float(value):g}"


def images_of(folder: Path | None, part: str) -> tuple[Array, Array]:
    """Return images and labels, of the IDX files in a folder or of the example; `part` is ``train`` or ``t10k``."""
    if folder is None:
        with np.load(FASHION / ("calibration.npz" if part == "train" else "test.npz")) as data:
            return data["x"], data["labels"]

    found = read_dataset(f"{folder}:{'train' if part == 'train' else 'test'}")
    if found is None:
        raise ValueError(f"The folder {str(folder)!r} holds no data set.")
    return found.images, found.labels


def draws_of(path: Path, args: argparse.Namespace) -> list[Draw]:
    """Return the model prepared on each draw."""
    model = load_model(path)
    (name,) = model.input_names
    pool, _ = images_of(args.full, "train")
    images, labels = images_of(args.full, "t10k")
    test = load_samples({name: images, "labels": labels}, model)
    draws = []
    for seed in range(args.draws):
        rows = np.random.default_rng(seed).choice(len(pool), min(args.samples, len(pool)), replace=False)
        config = make_config(configuration("ratio=0.5", seed))
        draws.append(Draw(prepare(path, {name: pool[rows]}, config), test, seed))
    return draws


def onnxsim_wanda(context: ImportanceContext) -> FloatArray:
    """Return ‖W_g‖·‖X_g‖: the weights that produce a unit, and its values where they are read, on all samples."""
    units = {c.tensor: c.units for c in context.analysis.contractions if not context.model.is_constant(c.tensor)}
    width = context.analysis.unit_count + 1  # FIXED is -1, the last entry
    energy = np.zeros(width)
    for batch in ActivationStream(context.model.proto, sorted(units), context.options).batches(context.samples):
        for name, cells in units.items():
            spread = np.broadcast_to(cells[:1], batch[name].shape) % width
            energy += np.bincount(spread.ravel(), batch[name].astype(np.float64).ravel() ** 2, width)
    # Within a group `magnitude` is ‖W_g‖ up to a factor.
    return magnitude(context).values * np.sqrt(energy[:-1])


def scorer(draw: Draw, share: str, criterion: str) -> Callable[[], FloatArray]:
    """Return the call that scores the units; what it needs is made ready here."""
    if criterion in GRADIENTS:
        import torch  # noqa: PLC0415 - an extra; loaded here, so that its seconds do not count

        torch.set_num_threads(1)
    if criterion == "onnxsim-wanda":
        return partial(onnxsim_wanda, draw.context(share))
    context, name = draw.context(share, criterion), draw.config(share, criterion).importance
    return lambda: score(name, context).values


def scored(draw: Draw, share: str, criterion: str) -> tuple[FloatArray, float]:
    """Return the scores of the units and the seconds that they took."""
    if criterion in draw.known:
        return draw.known[criterion]
    call = scorer(draw, share, criterion)
    began = time.perf_counter()
    with threadpool_limits(1):
        values = call()
    seconds = time.perf_counter() - began
    if criterion not in READ_WIDTHS:
        draw.known[criterion] = values, seconds
    return values, seconds


def measure(row: Row, draws: Sequence[Draw], repair: Sequence[str]) -> None:
    """Fill a row with one accuracy and one time a draw."""
    masks, repaired, seconds = [], [], []
    for draw in draws:
        widths = planned_widths(draw.prepared, draw.config(row["share"]))
        if widths is None:
            raise ValueError(f"The share {row['share']} plans no widths.")
        values, took = scored(draw, row["share"], row["criterion"])
        seconds.append(took)
        kept = select_units(draw.prepared.analysis, widths, values)
        if "none" in repair:
            masks.append(draw.masked_accuracy(kept))
        if "least-squares" in repair:
            repaired.append(draw.repaired_accuracy(kept))
    every = np.ones_like(kept)
    original, analysis = draws[0].prepared.original, draws[0].prepared.analysis
    row["macs"] = costs_of(original, analysis, kept).macs / costs_of(original, analysis, every).macs
    row["base"] = draws[0].masked_accuracy(every)
    row |= {"masks": masks, "repaired": repaired, "seconds": seconds}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; of a single value the error is unknown, NaN."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), error


def printed(values: Sequence[float]) -> str:
    """Return accuracies as mean ± standard error."""
    if not values:
        return f"{'-':>15s}"
    mean, error = mean_and_error(values)
    return f"{mean:.4f} ± {'?     ' if math.isnan(error) else f'{error:.4f}'}"


def line_of(row: Row) -> str:
    """Return a row of the table."""
    head = f"{row['model']:12s} {row['share']:9s} "
    name = " = ".join([row["criterion"], *(alias for alias, of in SAME_AS.items() if of == row["criterion"])])
    if row.get("error"):
        return f"{head}{'':5s} {name:22s} failed: {row['error']}"
    times = f"{np.mean(row['seconds']):8.2f}"
    return f"{head}{row['macs']:5.3f} {name:22s} {printed(row['masks'])} {printed(row['repaired'])} {times}"


def verdict(rows: Sequence[Row], column: str) -> str:
    """Return whether `oamip` is ahead of the others in a column, by paired differences over the draws."""
    own = next((r for r in rows if r["criterion"] == "oamip" and r.get(column)), None)
    others = [r for r in rows if r["criterion"] != "oamip" and r.get(column)]
    if own is None or not others:
        return "no comparison"
    better, ties = [], []
    for other in others:
        mean, error = mean_and_error(np.subtract(own[column], other[column]).tolist())
        # Of one draw the error is unknown: any difference counts.
        limit = 0.0 if math.isnan(error) else 2 * error
        spread = "" if math.isnan(error) else f" ± {100 * error:.2f}"
        text = f"{other['criterion']} ({100 * mean:+.2f}{spread} points)"
        if abs(mean) <= limit:
            ties.append(text)
        elif mean < 0:
            better.append(text)
    if better:
        return f"beaten by {', '.join(better)}" + (f"; ties with {', '.join(ties)}" if ties else "")
    return f"ties with {', '.join(ties)}, ahead of the others" if ties else "best"


def plot(rows: Sequence[Row]) -> str:
    """Return accuracies against the MACs left as SVG: a column a network, masks alone above, repaired below."""
    import matplotlib as mpl  # noqa: PLC0415 - only here
    from matplotlib.figure import Figure  # noqa: PLC0415 - only here

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(3.1 * len(models), 5.4), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharex=True)
    for column, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        for line, (key, title) in enumerate((("masks", "masks only"), ("repaired", "after repair"))):
            axes = panels[line][column]
            for criterion in dict.fromkeys(row["criterion"] for row in own):
                points = sorted((r for r in own if r["criterion"] == criterion and r[key]), key=lambda r: r["macs"])
                spread = [mean_and_error(r[key]) for r in points]
                means, errors = [m for m, _ in spread], [0.0 if math.isnan(e) else e for _, e in spread]
                style = {"linewidth": 2.2, "zorder": 3} if criterion == "oamip" else {"linewidth": 1.0}
                axes.errorbar([r["macs"] for r in points], means, errors, marker="o", ms=3, label=criterion, **style)
            axes.set_title(f"{model}, {title}", fontsize=9)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        panels[1][column].set_xlabel("share of the MACs left")
    panels[0][0].set_ylabel("test accuracy")
    panels[1][0].set_ylabel("test accuracy")
    panels[0][0].legend(fontsize=7, frameon=False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "oamip", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def same(row: Row, wanted: Row) -> bool:
    """Return whether a row of the file is of the same measurement."""
    return all(row.get(key) == value for key, value in wanted.items())


def write(rows: Sequence[Row], path: Path | None) -> None:
    """Write the rows in one step, so that an interruption leaves the file as it was."""
    if path is not None:
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(rows, indent=2) + "\n")
        new.replace(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", default=sorted(NETWORKS.glob("*.onnx")))
    shares = parser.add_mutually_exclusive_group()
    shares.add_argument("--macs", type=float, nargs="+", default=[0.7, 0.5, 0.3], help="shares of the MACs left")
    shares.add_argument("--keep", type=float, nargs="+", help="shares of the units of every layer that stay")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1000, help="unlabelled images of a draw")
    parser.add_argument("--criteria", nargs="+", choices=AVAILABLE, default=AVAILABLE, metavar="NAME")
    parser.add_argument("--repair", nargs="+", choices=["none", "least-squares"], default=["none", "least-squares"])
    parser.add_argument("--full", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw accuracy against MACs")
    parser.add_argument("--quick", action="store_true", help="one small draw of LeNet-5, as a smoke test")
    args = parser.parse_args()
    if args.quick:
        args.models, args.macs, args.keep = [FASHION / "lenet5.onnx"], [0.5], None
        args.draws, args.samples = 1, 200
        # The authors' program takes longer than all the others together.
        args.criteria = [c for c in args.criteria if c not in {"oamip-shift", "oamip-auto"}]
    args.criteria = list(dict.fromkeys(SAME_AS.get(c, c) for c in args.criteria))
    args.shares = [f"keep={k:g}" for k in args.keep] if args.keep else [f"macs={m:g}" for m in args.macs]
    return args


def key_of(path: Path, share: str, criterion: str, args: argparse.Namespace) -> Row:
    """Return what tells a measurement from others."""
    data = "shipped" if args.full is None else "full"
    settings = {"draws": args.draws, "samples": args.samples, "data": data, "repair": sorted(args.repair)}
    return {"model": path.stem, "share": share, "criterion": criterion, **settings}


def row_of(wanted: Mapping[str, Any], draws: Callable[[], Sequence[Draw]]) -> Row:
    """Return a measured row, or one that says why there is none."""
    row = dict(wanted)
    try:
        measure(row, draws(), wanted["repair"])
    except (OamipError, ValueError) as error:
        row["error"] = str(error)
    return row


def main() -> None:
    args = arguments()
    rows: list[Row] = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    print(f"{'model':12s} {'share':9s} {'MACs':5s} {'criterion':22s} {'masks only':15s} {'repaired':15s}  seconds")
    of_run: dict[tuple[str, str], list[Row]] = {}
    for path in args.models:
        prepared = cache(partial(draws_of, path, args))  # not at all where the file holds every row
        for share in args.shares:
            for criterion in args.criteria:
                wanted = key_of(path, share, criterion, args)
                row = next((r for r in rows if same(r, wanted)), None)
                if row is None:
                    row = row_of(wanted, prepared)
                    rows.append(row)
                    write(rows, args.json)
                of_run.setdefault((path.stem, share), []).append(row)
                print(line_of(row), flush=True)
    print("\noamip against the others, differences paired over the draws, ties within 2 standard errors:")
    for (model, share), own in of_run.items():
        bases = [r["base"] for r in own if "base" in r]
        print(f"{model} (base {bases[0]:.4f}), {share}" if bases else f"{model}, {share}")
        print(f"  masks only: {verdict(own, 'masks')}\n  repaired:   {verdict(own, 'repaired')}")
    if args.plot:
        args.plot.write_text(plot([row for own in of_run.values() for row in own if not row.get("error")]))


if __name__ == "__main__":
    main()
