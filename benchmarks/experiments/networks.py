"""Data sets and trained networks: trained once by a fixed recipe, kept as ONNX files, and read from there later."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from oamip_onnx.calibration.datasets import Dataset, fitted, read_dataset
from oamip_onnx.errors import DataError

CLASSES = 10
BATCH = 64

# Where data sets are that no option names.
USUAL_PLACES = {"digits": "digits", "fashion-mnist": "/usr/share/datasets/fashion-mnist"}
DATA_SETS = ("fashion-mnist", "digits", "mnist", "kmnist", "cifar10")

# Scikit-learn's digits are enlarged to the images that the networks are made for.
DIGITS_PLANE = (1, 28, 28)


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained.

    Attributes
    ----------
    build
        Returns the network in PyTorch for images of a shape (channels, height, width).
    peak_learning_rate
        Largest learning rate of the one cycle.
    epochs
        Passes over the training images.
    few_epochs
        The same where there are only thousands of images.
    goal
        Share of the parameters that equal shares leave.
    has_feature_maps
        Whether it has convolutions.
    program
        The form of the authors' program that scores its units: the whole network in one, or by layer where that is too
        large.
    """

    build: Callable[[tuple[int, int, int]], Any]
    peak_learning_rate: float
    epochs: int
    few_epochs: int
    goal: float
    has_feature_maps: bool = False
    program: str = "oamip-paper"

    def passes(self, data: "Data") -> int:
        """Return the number of passes over a data set."""
        return self.few_epochs if len(data.train.labels) < FEW_IMAGES else self.epochs


@dataclass(frozen=True)
class Data:
    """A data set with images of one shape: the training split, and the test split."""

    name: str
    train: Dataset
    test: Dataset
    shape: tuple[int, int, int] = field(default=DIGITS_PLANE)

    def quick(self, training: int, test: int) -> "Data":
        """Return the first images alone."""
        parts = [
            Dataset(d.images[:count], d.labels[:count]) for d, count in ((self.train, training), (self.test, test))
        ]
        return Data(self.name, parts[0], parts[1], self.shape)

    def mirrored(self) -> "Data":
        """Return the mirror images, as a data set of its own."""
        parts = [Dataset(np.ascontiguousarray(d.images[..., ::-1]), d.labels) for d in (self.train, self.test)]
        return Data(f"{self.name}, mirrored", parts[0], parts[1], self.shape)


def fully_connected(*hidden: int) -> Callable[[tuple[int, int, int]], Any]:
    """Return what builds a fully connected network with these hidden layers."""

    def build(shape: tuple[int, int, int]) -> Any:
        from torch import nn  # noqa: PLC0415 - PyTorch is optional, and slow to import

        layers: list[Any] = [nn.Flatten()]
        width = int(np.prod(shape))
        for wanted in hidden:
            layers += [nn.Linear(width, wanted), nn.ReLU()]
            width = wanted
        return nn.Sequential(*layers, nn.Linear(width, CLASSES))

    return build


def lenet5(shape: tuple[int, int, int]) -> Any:
    """Return LeNet-5 with ReLU and average pools, as the paper has it."""
    from torch import nn  # noqa: PLC0415 - as above

    # Images of 28 × 28 are padded to the 32 × 32 that LeNet-5 was made for.
    padding = (32 - shape[1]) // 2
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 5, padding=padding),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, CLASSES),
    )


def vgg(shape: tuple[int, int, int]) -> Any:
    """Return six convolutions with batch norm in three stages, average pools, and two fully connected layers."""
    from torch import nn  # noqa: PLC0415 - as above

    layers: list[Any] = []
    channels, side = shape[0], shape[1]
    for width in (16, 32, 64):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.AvgPool2d(2))
        side //= 2
    head = [nn.Flatten(), nn.Linear(channels * side**2, 128), nn.ReLU(), nn.Linear(128, CLASSES)]
    return nn.Sequential(*layers, *head)


RECIPES: Mapping[str, Recipe] = {
    "fc3": Recipe(fully_connected(300, 100), 2e-3, epochs=10, few_epochs=60, goal=0.3),
    "fc4": Recipe(fully_connected(200, 100, 100), 2e-3, epochs=10, few_epochs=60, goal=0.3),
    "lenet5": Recipe(lenet5, 4e-3, epochs=8, few_epochs=60, goal=0.7, has_feature_maps=True),
    # For the smoke test.
    "tiny": Recipe(fully_connected(16, 8), 1e-2, epochs=3, few_epochs=10, goal=0.6),
    "vgg": Recipe(vgg, 4e-3, epochs=4, few_epochs=30, goal=0.5, has_feature_maps=True, program="by layer"),
}

# Fewer training images than this take a recipe's `few_epochs`.
FEW_IMAGES = 10_000


@cache
def data_of(name: str, place: str | None = None) -> Data:
    """Return a data set by its name, from its usual place or from a folder.

    Raises
    ------
    DataError
        If it is not there.
    """
    place = place or USUAL_PLACES.get(name)
    if place is None or (splits := (read_dataset(f"{place}:train"), read_dataset(f"{place}:test")))[0] is None:
        raise DataError(f"The data set {name} is not at {place}; give its folder with --data {name}=DIR.")
    train, test = (_grown(split) for split in splits if split is not None)
    return Data(name, train, test, train.images.shape[1:])


def _grown(split: Dataset) -> Dataset:
    """Return a split with images as the networks take them: float32 from 0 to 1."""
    images = split.images
    if images.shape[1:] == (1, 8, 8):
        images = fitted(images, (0, *DIGITS_PLANE))
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    return Dataset(images, split.labels)


def trained(network: str, data: Data, run: int, work: Path, *, epochs: int | None = None) -> Path:
    """Return the ONNX file of a trained network; it is trained if the work folder does not hold it.

    Parameters
    ----------
    network
        Name of the recipe.
    data
        What it is trained on.
    run
        Number of the run, the seed of its weights and of the order of images.
    work
        The folder of networks.
    epochs
        Passes over the images, in place of the recipe's.
    """
    recipe = RECIPES[network]
    if epochs is None:
        epochs = recipe.passes(data)
    path = work / f"{network}-{data.name}-{run}-{epochs}-{len(data.train.labels)}.onnx"
    if path.exists():
        return path
    work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    model = _train(recipe, data, run, epochs)
    print(f"{path.name}: trained in {time.perf_counter() - began:.0f} s", flush=True)
    # In one step, so that an interruption leaves no half of a file.
    new = path.with_suffix(".new.onnx")
    _export(model, data.shape, new)
    new.replace(path)
    return path


def _train(recipe: Recipe, data: Data, run: int, epochs: int) -> Any:
    """Return a network trained with AdamW and one cycle of the learning rate."""
    import torch  # noqa: PLC0415 - as above

    torch.manual_seed(run)
    torch.set_num_threads(1)
    model = recipe.build(data.shape)
    x, labels = torch.from_numpy(data.train.images), torch.from_numpy(data.train.labels)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.peak_learning_rate, weight_decay=0.01)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.peak_learning_rate, total_steps=max(2, epochs * steps)
    )
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            loss = torch.nn.functional.cross_entropy(model(x[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def _export(model: Any, shape: tuple[int, int, int], path: Path) -> None:
    """Write a network as ONNX, by the importer of PyTorch."""
    from oamip_onnx import import_model  # noqa: PLC0415 - it imports PyTorch

    import_model(model, path, inputs={"x": (2, *shape)})
