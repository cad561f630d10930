"""Accuracy against seconds, with training: ours and Torch-Pruning, with the same training behind both.

    python benchmarks/peers.py [--models benchmarks/networks/*.onnx] [--macs 0.35] [--epochs 0 1 2] [--draws 1]
                               [--full DIR] [--json FILE]

Each tool narrows a network to the same share of the MACs on 1,000 images: `oamip prune` with its defaults, by its
repair and, as ``ours, no repair``, without it; Torch-Pruning by magnitude and by the first-order Taylor term
(`other_tools.py`). What is left is trained by `oamip finetune` on the labels and the original's outputs, with the same
settings, images and seeds for all. Epoch 0 is no training: the repair by itself is a point on the curve.

The seconds are those of pruning and training together, on one thread; the search for Torch-Pruning's number that
reaches the share is left out. Rows that are in the JSON file are not measured again.

`--full` names the folder of the Fashion-MNIST IDX files; without it 1,000 and 2,000 images that ship with the example.
Training needs PyTorch: `pip install 'oamip-onnx[torch]' 'torch-pruning>=1.6'`.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy import accuracy_of, macs_of, pruned_by_ours, pruned_by_peer
from importance import Draw, draws_of, images_of
from other_tools import PEERS, PeerError, missing
from threadpoolctl import threadpool_limits

from oamip_onnx.finetuning import finetune

NETWORKS = Path(__file__).resolve().parent / "networks"

OURS = {"ours": "auto+least-squares+auto", "ours, no repair": "auto+none+auto"}
METHODS = (*OURS, "tp-magnitude", "tp-taylor")

Row = dict[str, Any]
Key = tuple[str, float, str, int, int]


def key_of(row: Row) -> Key:
    """Return what a row is about."""
    return row["model"], row["share"], row["method"], row["epochs"], row["seed"]


def narrowed(method: str, draw: Draw, share: float) -> tuple[onnx.ModelProto, float]:
    """Return what a tool leaves of a network, and the seconds that it took.

    Raises
    ------
    PeerError
        If it leaves no such network.
    """
    with threadpool_limits(1):
        if method in OURS:
            return pruned_by_ours(OURS[method], draw, share, 1)
        return pruned_by_peer(method, draw, share, 1)


def trained(proto: onnx.ModelProto, draw: Draw, epochs: int, folder: Path | None) -> tuple[onnx.ModelProto, float]:
    """Return a network after training, and the seconds that it took."""
    if not epochs:
        return proto, 0.0
    images, labels = images_of(folder, "train")
    (name,) = draw.prepared.model.input_names
    began = time.perf_counter()
    result = finetune(
        proto,
        {name: images, "labels": labels},
        original=draw.prepared.original.proto,
        epochs=epochs,
        seed=draw.seed,
        threads=1,
    )
    return result.model, time.perf_counter() - began


def measured(path: Path, draw: Draw, args: argparse.Namespace, known: Sequence[Key]) -> Iterator[Row]:
    """Yield the rows of one draw that are not known: for each share and tool, one a number of epochs."""
    for share in args.macs:
        for method in args.methods:
            head: Row = {"model": path.stem, "share": share, "method": method, "seed": draw.seed}
            wanted = [epochs for epochs in args.epochs if key_of(head | {"epochs": epochs}) not in known]
            if not wanted:
                continue
            try:
                proto, seconds = narrowed(method, draw, share)
            except PeerError as error:
                print(f"{path.stem:8s} {share:5.2f} {method:16s} {error}")
                continue
            left = macs_of(proto) / macs_of(draw.prepared.original.proto)
            for epochs in wanted:
                found, more = trained(proto, draw, epochs, args.full)
                accuracy = accuracy_of(found, draw)
                yield head | {"epochs": epochs, "macs": left, "seconds": seconds + more, "accuracy": accuracy}


def table(rows: Sequence[Row], base: float) -> list[str]:
    """Return the lines of one network's table, means over the draws."""
    lines = [
        f"{'model':8s} {'share':>5s} {'tool':16s} {'epochs':>6s} {'MACs':>6s} {'seconds':>8s}  accuracy ({base:.4f})"
    ]
    for key in dict.fromkeys((r["model"], r["share"], r["method"], r["epochs"]) for r in rows):
        own = [r for r in rows if (r["model"], r["share"], r["method"], r["epochs"]) == key]
        accuracy = [r["accuracy"] for r in own]
        deviation = f" ± {np.std(accuracy, ddof=1):.4f}" if len(own) > 1 else ""
        macs, seconds = (float(np.mean([r[name] for r in own])) for name in ("macs", "seconds"))
        lines.append(
            f"{key[0]:8s} {key[1]:5.2f} {key[2]:16s} {key[3]:6d} {macs:6.3f} {seconds:8.1f}  "
            f"{np.mean(accuracy):.4f}{deviation}"
        )
    return lines


def arguments() -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", default=sorted(NETWORKS.glob("*.onnx")))
    parser.add_argument("--macs", type=float, nargs="+", default=[0.35], help="shares of the MACs left")
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="NAME")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--samples", type=int, default=1000, help="images that the tools narrow on")
    parser.add_argument("--full", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one epoch of LeNet-5 on few images, as a smoke test")
    args = parser.parse_args()
    if args.quick:
        args.models, args.epochs, args.samples = [NETWORKS / "lenet.onnx"], [0, 1], 100
    args.methods = [m for m in args.methods if m in OURS or not missing(PEERS[m][0])]
    return args


def main() -> None:
    args = arguments()
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, so nothing can be trained; run: pip install 'oamip-onnx[torch]'")
        sys.exit(0)
    rows: list[Row] = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    for path in args.models:
        prepared = cache(partial(draws_of, path, args))
        for draw in prepared():
            for row in measured(path, draw, args, [key_of(row) for row in rows]):
                rows.append(row)
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1) + "\n")
        own = [row for row in rows if row["model"] == path.stem and row["share"] in args.macs]
        draw = prepared()[0]
        print("\n".join(table(own, accuracy_of(draw.prepared.original.proto, draw))), flush=True)


if __name__ == "__main__":
    main()
