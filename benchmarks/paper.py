"""The experiments of the paper (ElAraby, Wolf, Carvalho 2020), one command each.

    python benchmarks/paper.py main        [--networks fc3 lenet5] [--data fashion-mnist digits] [--runs 3]
    python benchmarks/paper.py sensitivity [--draws 25]
    python benchmarks/paper.py decoupling
    python benchmarks/paper.py times
    python benchmarks/paper.py snip
    python benchmarks/paper.py transfer
                                           [--work DIR] [--json paper.json] [--plot paper.svg] [--methods NAME …]

Without an experiment, all of them. References are trained in PyTorch by fixed recipes, one a run, which seeds weights
and the order of images, and kept in `--work` as ONNX files. Networks: `fc3` (hidden layers of 300 and 100), `fc4`
(200, 100, 100), `lenet5` (6, 16, 120, 84; average pools), `vgg` (six convolutions with batch norm). Data sets:
`fashion-mnist` (from Debian's package, or `--data fashion-mnist=DIR`), `digits` (built in), and with their folders
`mnist=DIR`, `kmnist=DIR`, `cifar10=DIR`.

* `main`: test accuracy of the reference and of subnetworks that have the same number of units in every layer: `random`
  (with masks the mean of ten draws); `critical`, what the authors' program scores lowest; `magnitude`; `oamip-paper`,
  the authors' program (`--preset paper`, ten images). How many stay is what scores above the paper's threshold in the
  authors' program; in a second table it is an equal share of every layer, and this package's criteria join: `oamip`
  (response form, 200 unlabelled images), `oamip-rounds`, the same without its exchanges, and `reconstruction`, the
  default of `prune`. Accuracies are those with masks alone (the paper's setting), after the least-squares repair, after
  one epoch of fine-tuning on labels instead, and, of this package's, after both; of its default also with five epochs
  of labels and distillation, the default of `finetune`. The reference is fine-tuned too: what an epoch alone brings.
  The third table is what the commands make with their defaults, which plan a width for every layer: `prune`, and the
  same with 20 epochs behind it.
* `sensitivity`: the authors' program on other images, one of each class drawn at random, and at other weights λ.
* `decoupling`: the authors' program in one, by class, by layer with the paper's auxiliary network, and by both.
* `times`: seconds of scoring, and how the programs ended.
* `snip`: subnetworks at equal shares of every layer that are trained from the weights before any training, with the
  recipe's passes: those that SNIP chooses there, random ones, and those that magnitude and OAMIP keep of the trained
  network; beside the whole network.
* `transfer`: half of the parameters by `--importance oamip`, found on one data set and trained on the others of its
  shape, with units of all layers removed or with all feature maps kept; beside random units of the same widths and the
  unpruned network.

Figures are means ± standard deviations over the runs; differences are paired over the runs and have 95 % intervals
(Student's t). Rows that the JSON file holds already are not measured again, so that an interrupted run goes on.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from experiments.networks import DATA_SETS, RECIPES, Data, data_of
from experiments.plan import Experiment, Plan, Row, measured
from experiments.retraining import BEFORE, SNIP, snip_rows, transfer_rows
from experiments.rows import COMMANDS, METHODS, TIMED, decoupling_rows, main_rows, sensitivity_rows, times_rows
from experiments.tables import TABLES, plot
from importance import same, write

EXPERIMENTS: Mapping[str, Experiment] = {
    "main": main_rows,
    "decoupling": decoupling_rows,
    "sensitivity": sensitivity_rows,
    "times": times_rows,
    "snip": snip_rows,
    "transfer": transfer_rows,
}

NAMES = list(dict.fromkeys([*METHODS, *COMMANDS, *TIMED, *SNIP]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", choices=["all", *EXPERIMENTS], default="all")
    parser.add_argument("--networks", nargs="+", choices=list(RECIPES), default=["fc3", "lenet5"], metavar="NAME")
    parser.add_argument("--data", nargs="+", default=["fashion-mnist", "digits"], metavar="NAME[=DIR]")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--draws", type=int, default=25, help="draws of ten images")
    parser.add_argument("--samples", type=int, default=1000, help="training images that programs and repairs see")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--work", type=Path, default=Path("paper-networks"), metavar="DIR")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw the accuracies of the main table")
    parser.add_argument("--quick", action="store_true", help="a tiny network on a few digits, as a smoke test")
    args = parser.parse_args()
    args.epochs = None
    if args.quick:
        args.networks, args.data, args.runs, args.draws, args.samples = ["tiny"], ["digits"], 2, 2, 100
        # The others take several times as long as these together.
        chosen = ["critical", "magnitude", "oamip-paper", "by class", "oamip-rounds", "prune"]
        args.methods = ["reference", *BEFORE, *chosen]
        args.epochs = 10
    return args


def data_sets(args: argparse.Namespace) -> list[Data]:
    """Return the data sets that are asked for."""
    found = []
    for text in args.data:
        name, _, place = text.partition("=")
        if name not in DATA_SETS:
            raise SystemExit(f"There is no data set {name}; known: {', '.join(DATA_SETS)}.")
        data = data_of(name, place or None)
        found.append(data.quick(400, 200) if args.quick else data)
    return found


def run(plan: Plan, experiment: str, rows: list[Row], path: Path | None) -> list[Row]:
    """Measure what an experiment lacks, print its tables, and return its rows."""
    own: list[Row] = []
    for network in plan.networks:
        for data in plan.data:
            part = []
            for wanted, measure in EXPERIMENTS[experiment](plan, network, data):
                row = next((r for r in rows if same(r, wanted)), None)
                if row is None:
                    row = measured(wanted, measure)
                    rows.append(row)
                    write(rows, path)
                part.append(row)
            if part:
                print(f"\n{experiment}: {network}, {data.name}", *TABLES[experiment](part), sep="\n", flush=True)
            own += part
    return own


def main() -> None:
    args = arguments()
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, and references are trained in it: there is nothing to measure.")
        sys.exit(0)
    rows: list[Row] = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        # A smoke test leaves nothing behind.
        work = Path(folder) if args.quick else args.work
        data = data_sets(args)
        others = [one.mirrored() for one in data] if args.quick else []
        settings = (args.runs, args.methods, work, args.samples, args.draws, args.epochs)
        plan = Plan(args.networks, data, [*data, *others], *settings)
        found = [run(plan, name, rows, args.json) for name in EXPERIMENTS if args.experiment in ("all", name)]
    if args.plot:
        args.plot.write_text(plot([row for part in found for row in part]))


if __name__ == "__main__":
    main()
