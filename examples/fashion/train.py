"""Train the two sample networks on Fashion-MNIST, export them to ONNX and draw the sample data.

Needs PyTorch: ``pip install 'oamip-onnx[torch]'``. The images come from Debian's package ``dataset-fashion-mnist``
(``apt install dataset-fashion-mnist``), or from https://github.com/zalandoresearch/fashion-mnist.
"""

import argparse
import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from oamip_onnx.converters import ImportOptions, InputSpec, TorchConverter  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.runtime import Session

CLASSES = 10
CALIBRATION_IMAGES = 1000
TEST_IMAGES = 2000

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """Images of shape (N, 1, 28, 28), 0 to 255, and their classes, 0 to 9."""

    x: Bytes
    labels: Bytes

    def take(self, rows: npt.NDArray[np.int64]) -> "Split":
        """Return the given rows."""
        return Split(self.x[rows], self.labels[rows])


def read_split(folder: Path, name: str) -> Split:
    """Read the images and the labels of the split `name`, ``train`` or ``t10k``, from gzipped IDX files."""
    images = np.frombuffer(gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return Split(images.reshape(-1, 1, 28, 28), labels)


def lenet5() -> nn.Module:
    """Return LeNet-5 with ReLU and max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, CLASSES),
    )


def convolution(c_in: int, c_out: int, size: int, stride: int) -> nn.Sequential:
    """Return a convolution that keeps the image's size at stride 1, with its batch norm."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, size, stride=stride, padding=size // 2, bias=False), nn.BatchNorm2d(c_out)
    )


class Block(nn.Module):  # type: ignore[misc]  # torch ships no types that mypy is shown here
    """A basic residual block; a 1x1 convolution carries the shortcut where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(c_in, c_out, 3, stride)
        self.second = convolution(c_out, c_out, 3, 1)
        same = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if same else convolution(c_in, c_out, 1, stride)

    def forward(self, x: Any) -> Any:
        """Return the block's output."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ResNet8(nn.Module):  # type: ignore[misc]  # as above
    """A stem that halves the image, three residual blocks of 16, 32 and 64 channels, and a global average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(1, 16, 3, 2)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, x: Any) -> Any:
        """Return the logits."""
        return self.classifier(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


@dataclass(frozen=True)
class Recipe:
    """How one network is built and trained."""

    name: str
    build: Callable[[], nn.Module]
    epochs: int
    peak_learning_rate: float
    batch: int = 128
    weight_decay: float = 0.01


RECIPES = (
    Recipe("lenet5", lenet5, epochs=12, peak_learning_rate=4e-3),
    Recipe("resnet8", ResNet8, epochs=10, peak_learning_rate=1e-2),
)


def train(recipe: Recipe, data: Split, seed: int) -> nn.Module:
    """Train the recipe's network with AdamW and a one-cycle learning rate; images are flipped at random."""
    torch.manual_seed(seed)
    model = recipe.build()
    x = torch.from_numpy(data.x.copy())
    labels = torch.from_numpy(data.labels.astype(np.int64))
    optimiser = torch.optim.AdamW(model.parameters(), recipe.peak_learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * (len(x) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.peak_learning_rate, total_steps=steps)
    for epoch in range(1, recipe.epochs + 1):
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(len(x))
        for step in range(len(x) // recipe.batch):
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            batch = x[rows].float() / 255
            flipped = torch.rand(len(batch), 1, 1, 1) < 0.5
            loss = nn.functional.cross_entropy(model(torch.where(flipped, batch.flip(3), batch)), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        mean = total / (len(x) // recipe.batch)
        print(f"{recipe.name} epoch {epoch}/{recipe.epochs}: loss {mean:.4f}, {time.perf_counter() - start:.0f} s")
    return model


def accuracy(path: Path, data: Split) -> float:
    """Return the share of images that the ONNX model classifies correctly, run by ONNX Runtime."""
    session = Session(path)
    right = 0
    for start in range(0, len(data.x), 500):
        x = data.x[start : start + 500].astype(np.float32) / 255
        right += int((session.run({"x": x})["y"].argmax(1) == data.labels[start : start + 500]).sum())
    return right / len(data.x)


def draw_samples(training: Split, test: Split, seed: int) -> tuple[Split, Split]:
    """Draw the calibration images, equally many of each class, and the images to measure the accuracy on."""
    generator = np.random.default_rng(seed)
    each = CALIBRATION_IMAGES // CLASSES
    rows = [generator.choice(np.flatnonzero(training.labels == c), each, replace=False) for c in range(CLASSES)]
    calibration = training.take(generator.permutation(np.concatenate(rows)))
    return calibration, test.take(generator.permutation(len(test.x))[:TEST_IMAGES])


def main() -> None:
    """Write the two models and the two sample files, and print their accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="the sums, and so the weights, depend on it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(mode=True)
    training, test = read_split(arguments.data, "train"), read_split(arguments.data, "t10k")
    calibration, sample = draw_samples(training, test, arguments.seed)
    np.savez_compressed(arguments.out / "calibration.npz", x=calibration.x, labels=calibration.labels)
    np.savez_compressed(arguments.out / "test.npz", x=sample.x, labels=sample.labels)
    for recipe in RECIPES:
        model = train(recipe, training, arguments.seed)
        path = arguments.out / f"{recipe.name}.onnx"
        options = ImportOptions(inputs={"x": InputSpec("x", (2, 1, 28, 28))}, opset=17)
        TorchConverter().load(model, options).convert(path)
        print(f"{path.name}: {accuracy(path, test):.4f} of all test images, {accuracy(path, sample):.4f} of test.npz")


if __name__ == "__main__":
    main()
