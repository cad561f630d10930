"""Which units the criteria choose: test accuracy with an equal share kept in every layer.

    python benchmarks/importance.py [--models examples/fashion/*.onnx] [--ratios 0.4 0.5] [--draws 3] [--full-test DIR]

Each criterion runs on several draws of calibration images; accuracies are means and standard deviations over them,
on masks alone (no repair) and after the least-squares repair. `--full-test` names the folder of the Fashion-MNIST IDX
files (Debian: dataset-fashion-mnist); without it the shipped 2,000 test images serve.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np

import oamip_onnx
from oamip_onnx.calibration import Samples, load_samples
from oamip_onnx.model import load_model

FASHION = Path(__file__).resolve().parent.parent / "examples" / "fashion"


def full_test(folder: Path) -> dict[str, np.ndarray]:
    """Return the 10,000 test images and labels of the IDX files in a folder."""

    def read(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=offset)

    images = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    return {"x": images, "labels": read("t10k-labels-idx1-ubyte.gz", 8)}


def draw(samples: Samples, count: int, seed: int) -> Samples:
    """Return `count` unlabelled calibration samples, drawn without replacement."""
    rows = np.random.default_rng(seed).choice(samples.count, min(count, samples.count), replace=False)
    return Samples({name: values[rows] for name, values in samples.feeds.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", default=sorted(FASHION.glob("*.onnx")))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.4, 0.5])
    parser.add_argument("--importance", nargs="+", default=["oamip", "magnitude", "random"])
    parser.add_argument("--form", default="response")
    parser.add_argument("--repair", nargs="+", default=["none", "least-squares"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=500, help="images of a draw, of the 1,000 shipped")
    parser.add_argument("--full-test", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one draw of LeNet-5, as a smoke test")
    args = parser.parse_args()
    if args.quick:
        args.models, args.ratios, args.draws = [FASHION / "lenet5.onnx"], [0.4], 1
    rows = []
    print(
        f"{'model':12s} {'ratio':>5s} {'MACs':>5s} {'importance':10s} {'repair':14s} {'accuracy':>16s} {'seconds':>7s}"
    )
    for path in args.models:
        model = load_model(path)
        calibration = load_samples(FASHION / "calibration.npz", model)
        test = load_samples(full_test(args.full_test) if args.full_test else FASHION / "test.npz", model)
        for ratio in args.ratios:
            for importance in args.importance:
                for repair in args.repair:
                    row = measure(path, calibration, test, ratio, importance, repair, args)
                    rows.append(row)
                    print(
                        f"{row['model']:12s} {ratio:5.2f} {row['macs']:5.2f} {importance:10s} {repair:14s} "
                        f"{row['mean']:8.4f} ± {row['deviation']:.4f} {row['seconds']:7.1f}",
                        flush=True,
                    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(
    path: Path,
    calibration: Samples,
    test: Samples,
    ratio: float,
    importance: str,
    repair: str,
    args: argparse.Namespace,
) -> dict[str, object]:
    """Return the accuracies of one criterion over the draws."""
    accuracies, began = [], time.perf_counter()
    for seed in range(args.draws):
        result = oamip_onnx.prune(
            path,
            draw(calibration, args.samples, seed),
            evaluation=test,
            target=f"ratio={ratio}",
            importance=importance,
            form=args.form,
            repair=repair,
            round_to=1,
            seed=seed,
            bench=False,
        )
        metric = result.report.drift.metric
        if metric is None:
            raise SystemExit("The test samples need labels.")
        accuracies.append(metric.pruned)
    return {
        "model": path.stem,
        "ratio": ratio,
        "macs": result.report.pruned.macs / result.report.original.macs,
        "base": metric.original,
        "importance": importance,
        "repair": repair,
        "accuracies": accuracies,
        "mean": float(np.mean(accuracies)),
        "deviation": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0,
        "seconds": (time.perf_counter() - began) / args.draws,
    }


if __name__ == "__main__":
    main()
