"""Training throughput: an ONNX graph in the interpreter beside the same network in plain PyTorch.

    python benchmarks/training.py [--networks vgg resnet] [--batch 64] [--rounds 15] [--steps 3] [--threads 1]
                                  [--json training.json] [--quick]

Both networks have the same weights, the same batch, AdamW with the same settings and cross-entropy as the loss; the
ONNX graph keeps its batch normalisations, which normalise by the batch in both. They take turns in one process, some
steps each, in an order drawn anew for every round; the ratio of a round is that of neighbours in time. First the losses
of one step each are compared: a faster network that computes something else would be no answer.
"""

import argparse
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from oamip_onnx.bench import describe_environment
from oamip_onnx.runtime import RuntimeOptions

if importlib.util.find_spec("torch") is None:
    print("PyTorch is not installed: there is nothing to measure.")
    sys.exit(0)

import torch
from torch import nn

from oamip_onnx.training.interpreter import Network

CLASSES, PLANE = 10, 28

# The losses of both networks, in float32 from the same weights, differ by roundings alone.
TOLERANCE = 1e-4

Step = Callable[[], float]


def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Return a 3x3 convolution with its batch normalisation."""
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]


def vgg() -> nn.Module:
    """Return six convolutions in three stages, as in VGG."""
    layers: list[nn.Module] = []
    inputs = 1
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [*convolution(inputs, width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 9, 128), nn.ReLU(), nn.Linear(128, CLASSES))


class Block(nn.Module):  # type: ignore[misc] # torch is not typed here
    """A residual block of two convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(*convolution(inputs, outputs, stride), nn.ReLU(), *convolution(outputs, outputs))
        self.side = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Any) -> Any:
        """Return the block's output."""
        return torch.relu(self.main(x) + self.side(x))


def resnet() -> nn.Module:
    """Return six residual blocks in three stages, as in ResNet-14."""
    blocks = [
        Block(16, 16, 1),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 32, 1),
        Block(32, 64, 2),
        Block(64, 64, 1),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)]
    return nn.Sequential(*convolution(1, 16), nn.ReLU(), *blocks, *head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"vgg": vgg, "resnet": resnet}


def as_onnx(module: nn.Module) -> onnx.ModelProto:
    """Return a module as an ONNX graph that keeps its batch normalisations."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The tracing exporter is told to change nothing; that it is deprecated is no news here.
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 1, PLANE, PLANE),),
            str(path),
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            opset_version=17,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )
        return onnx.load(path)


def step_of(run: Callable[[], Any], weights: list[Any], labels: Any) -> Step:
    """Return a call that does one step of training, and returns its loss."""
    optimiser = torch.optim.AdamW(weights, lr=1e-3, weight_decay=1e-4)

    def step() -> float:
        loss = nn.functional.cross_entropy(run(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.item())

    return step


def steps_of(name: str, batch: int) -> dict[str, Step]:
    """Return a step of training of the network in plain PyTorch, and of its ONNX graph."""
    torch.manual_seed(0)
    module = NETWORKS[name]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            # As after some training: the exporter would store equal gains, offsets and statistics once.
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    network = Network(as_onnx(module))
    module.train()
    network.mode.batch_statistics = True
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.random((batch, 1, PLANE, PLANE), dtype=np.float32))
    labels = torch.from_numpy(generator.integers(0, CLASSES, batch))
    return {
        "PyTorch": step_of(lambda: module(x), list(module.parameters()), labels),
        "ONNX": step_of(lambda: network({"x": x})["y"], list(network.weights.values()), labels),
    }


def measure(name: str, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return samples a second of both, and the ratio."""
    kinds = steps_of(name, batch)
    losses = [step() for step in kinds.values()]
    if abs(losses[0] - losses[1]) > TOLERANCE * abs(losses[0]):
        raise SystemExit(f"The {name} networks compute different losses: {losses}.")
    for step in kinds.values():
        step()
    order = random.Random(0)  # noqa: S311 - the order of turns is no secret
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in order.sample(list(kinds), len(kinds)):
            began = time.perf_counter()
            for _ in range(steps):
                kinds[kind]()
            seconds[kind].append((time.perf_counter() - began) / steps)
    ratios = [plain / ours for plain, ours in zip(seconds["PyTorch"], seconds["ONNX"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    speed = {kind: batch / statistics.median(times) for kind, times in seconds.items()}
    return {
        "network": name,
        "batch": batch,
        "samples_per_second": speed,
        "ratio": {"median": statistics.median(ratios), "quartiles": [low, high]},
    }


def main() -> None:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few steps of small batches, to see that it runs")
    asked = parser.parse_args()
    if asked.quick:
        asked.batch, asked.rounds, asked.steps = 8, 4, 1
    torch.set_num_threads(asked.threads)
    environment = describe_environment(RuntimeOptions(threads=asked.threads))
    rows = [measure(name, asked.batch, asked.rounds, asked.steps) for name in asked.networks]
    print(f"{'network':10}{'PyTorch':>14}{'ONNX graph':>14}{'ratio':>9}{'quartiles':>16}")
    for row in rows:
        speed, ratio = row["samples_per_second"], row["ratio"]
        low, high = ratio["quartiles"]
        cells = f"{row['network']:10}{speed['PyTorch']:12,.0f}/s{speed['ONNX']:12,.0f}/s{ratio['median']:9.2f}"
        print(f"{cells}{f'{low:.2f} to {high:.2f}':>16}")
    if asked.json:
        found = {**environment.after().__dict__, "torch": torch.__version__, "threads": asked.threads}
        asked.json.write_text(json.dumps({"environment": found, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
