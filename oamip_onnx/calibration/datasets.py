"""Data sets as they are published: IDX files (MNIST and its kin), CIFAR's binary files, scikit-learn's digits."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.datasets import load_digits

from oamip_onnx.errors import DataError

SPLITS = ("train", "test")
DIGITS = "digits"

# How the files of a split are named: of MNIST, Fashion-MNIST and KMNIST; of CIFAR-10; of CIFAR-100.
_IDX = {"train": "train", "test": "t10k"}
_CIFAR10 = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}
_CIFAR_SHAPE = (3, 32, 32)

_IDX_IMAGES, _IDX_LABELS = 2051, 2049

# The last of scikit-learn's 1,797 digits: other people wrote them than the first.
_TEST_DIGITS = 500
_LARGEST_DIGIT_VALUE = 16


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    Attributes
    ----------
    images
        Shape (samples, channels, height, width); uint8, or float32 from 0 to 1.
    labels
        Class indices, int64, shape (samples,).
    """

    images: npt.NDArray[np.generic]
    labels: npt.NDArray[np.int64]


def is_built_in(text: str) -> bool:
    """Return whether a text names a data set that needs no file."""
    name, _, split = text.rpartition(":")
    return (text == DIGITS or (name == DIGITS and split in SPLITS)) and not Path(DIGITS).exists()


def read_dataset(text: str) -> Dataset | None:
    """Return the split that a text names; None if it names no data set.

    Parameters
    ----------
    text
        ``digits``, or a folder with the files of MNIST, Fashion-MNIST, KMNIST (IDX, compressed or not), CIFAR-10 or
        CIFAR-100 (binary version); behind a colon, ``train`` or ``test``: by default the first.

    Raises
    ------
    DataError
        If a file is missing or damaged.

    Examples
    --------
    >>> from oamip_onnx.calibration.datasets import read_dataset
    >>> found = read_dataset("digits:test")
    >>> found.images.shape if found else "no data set"
    (500, 1, 8, 8)
    """
    name, _, split = text.rpartition(":")
    if split not in SPLITS:
        name, split = text, SPLITS[0]
    if is_built_in(text):
        return _digits(split)
    folder = Path(name)
    if not folder.is_dir():
        return None
    if any(folder.glob("*-idx3-ubyte*")):
        return _from_idx(folder, _IDX[split])
    for files, label_bytes in ((_CIFAR10, 1), (_CIFAR100, 2)):
        if any((folder / file).exists() for file in files["train"] + files["test"]):
            return _from_cifar(folder, files[split], label_bytes)
    return None


def fitted(images: npt.NDArray[np.generic], shape: Sequence[int]) -> npt.NDArray[np.generic]:
    """Return images in the shape that an input takes, where they hold as many values; otherwise as they are.

    Digits, which are 8 × 8, are enlarged to the input's height and width by linear interpolation.

    Parameters
    ----------
    images
        Shape (samples, channels, height, width).
    shape
        The input's sizes, the samples' axis in front; 0 where a size is open.
    """
    inner = tuple(shape[1:])
    if len(inner) == images.ndim - 1 and images.shape[1:] == (1, 8, 8) and inner[1:] != (8, 8) and min(inner[1:]) > 0:
        factors = (1, 1, *(wanted / 8 for wanted in inner[1:]))
        grown = ndimage.zoom(images.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
        return np.asarray(grown, np.float32)
    channels, *plane = images.shape[1:]
    if inner == (*plane, channels) and inner != images.shape[1:]:
        return np.moveaxis(images, 1, -1)
    if min(inner, default=0) > 0 and int(np.prod(inner)) == int(np.prod(images.shape[1:])):
        return images.reshape(len(images), *inner)
    return images


def _digits(split: str) -> Dataset:
    found = load_digits()
    images = (found.images / _LARGEST_DIGIT_VALUE).astype(np.float32)[:, None]
    part = slice(0, -_TEST_DIGITS) if split == SPLITS[0] else slice(-_TEST_DIGITS, None)
    return Dataset(images[part], found.target[part].astype(np.int64))


def _from_idx(folder: Path, name: str) -> Dataset:
    images = _read_idx(folder, f"{name}-images-idx3-ubyte", _IDX_IMAGES)
    labels = _read_idx(folder, f"{name}-labels-idx1-ubyte", _IDX_LABELS)
    if len(images) != len(labels):
        raise DataError(f"The folder {str(folder)!r} holds {len(images)} {name} images and {len(labels)} labels.")
    return Dataset(images[:, None], labels.astype(np.int64))


def _read_idx(folder: Path, name: str, magic: int) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file: its magic number, its sizes as 32-bit integers, and its bytes."""
    path = next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)
    if path is None:
        raise DataError(f"The folder {str(folder)!r} has IDX files, but not {name}.gz; get all four of the data set.")
    content = _content(path)
    rank = magic & 0xFF
    start = 4 * (1 + rank)
    found, *sizes = np.frombuffer(content[:start], ">i4").tolist() if len(content) >= start else [0]
    if found != magic or len(content) != start + int(np.prod(sizes)):
        raise DataError(f"{str(path)!r} is no IDX file of the kind {magic}, or it is damaged; get it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} cannot be read, or is damaged: {error}.") from error


def _from_cifar(folder: Path, files: list[str], label_bytes: int) -> Dataset:
    rows = []
    size = label_bytes + int(np.prod(_CIFAR_SHAPE))
    for name in files:
        if not (folder / name).is_file():
            raise DataError(f"The folder {str(folder)!r} has files of CIFAR, but not {name}; unpack the archive anew.")
        content = np.frombuffer(_content(folder / name), np.uint8)
        if not content.size or content.size % size:
            raise DataError(f"{str(folder / name)!r} is no binary file of CIFAR, or it is damaged; get it again.")
        rows.append(content.reshape(-1, size))
    values = np.concatenate(rows)
    # Of CIFAR-100's two labels the second is the finer.
    return Dataset(values[:, label_bytes:].reshape(-1, *_CIFAR_SHAPE), values[:, label_bytes - 1].astype(np.int64))
