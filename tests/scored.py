"""Small classifiers, their samples, and what scores and commands say about them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from command import Ran, failed, oamip
from graphs import Builder, image
from oracle import PLAIN

from oamip_onnx.config import make_config
from oamip_onnx.importance import Scores
from oamip_onnx.preparation import Prepared, prepare
from oamip_onnx.runtime import Session
from oamip_onnx.scoring import score

IMAGES = 40

# Processes would take longer to start than these programs to solve.
MODEST = {"round_to": 1, "threads": 1, "workers": 1}
SETTINGS = ["--data", "data.npz", "--round-to", 1, "--set", "workers=1"]
SCORE = ["score", "model.onnx", *SETTINGS]
PRUNE = ["prune", "model.onnx", "out.onnx", *SETTINGS, "--no-bench"]


def dense(seed: int = 5, widths: tuple[int, int] = (8, 7)) -> onnx.ModelProto:
    b = Builder(["N", 6], seed=seed)
    x = b.add("Relu", b.gemm("x", 6, widths[0]))
    x = b.add("Relu", b.gemm(x, *widths))
    # Rows that sum to zero: activations are positive, and one class would win everywhere.
    last = b.random.normal(0, 2.0, (4, widths[1]))
    last = last - last.mean(axis=1, keepdims=True)
    return b.finish(b.add("Gemm", x, b.constant(last.astype(np.float32)), transB=1))


def convolutional() -> onnx.ModelProto:
    b = image(seed=2)
    x = b.add("Relu", b.conv("x", 3, 6))
    x = b.add("Relu", b.conv(x, 6, 5))
    return b.finish(b.add("Gemm", b.add("Flatten", x), b.weight(4, 320, scale=0.2), transB=1))


def plane_to_plane() -> onnx.ModelProto:
    b = image(seed=3)
    return b.finish(b.conv(b.add("Relu", b.conv("x", 3, 6)), 6, 2))


def with_few_useful_units() -> onnx.ModelProto:
    """Return a classifier that reads units 1, 4 and 6 of nine alone."""
    b = Builder(["N", 6], seed=5)
    x = b.add("Relu", b.gemm("x", 6, 9))
    last = np.zeros((3, 9), np.float32)
    last[[0, 1, 2], [1, 4, 6]] = 6.0
    return b.finish(b.add("Gemm", x, b.constant(last), transB=1))


def samples_of(proto: onnx.ModelProto, count: int = IMAGES, seed: int = 0) -> npt.NDArray[np.float32]:
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def predictions(proto: onnx.ModelProto, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.asarray(Session(proto, PLAIN).run({"x": x})["y"].argmax(axis=1), np.int64)


def write(folder: Path, proto: onnx.ModelProto, name: str = "model.onnx", data: str = "data.npz") -> None:
    onnx.save(proto, folder / name)
    np.savez(folder / data, x=samples_of(proto))


def ready(proto: onnx.ModelProto, labels: npt.NDArray[np.int64] | None = None, **settings: Any) -> Prepared:
    return prepare(proto, {"x": samples_of(proto)}, make_config({**MODEST, **settings}), labels=labels)


def scores_of(proto: onnx.ModelProto, labels: npt.NDArray[np.int64] | None = None, **settings: Any) -> Scores:
    return score(ready(proto, labels), make_config({**MODEST, **settings}))[0]


def found(ran: Ran) -> dict[str, Any]:
    """Return the JSON that a command has written on standard output."""
    assert ran.code == 0, ran.err
    result: dict[str, Any] = json.loads(ran.out)
    return result


def kept_units(report: dict[str, Any]) -> dict[str, list[int]]:
    return {group["name"]: group["kept"] for group in report["groups"]}


def refused(arguments: list[Any], code: int, message: str, work: Path) -> None:
    """Assert that a command fails with one sentence and leaves the folder as it was."""
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    failed(oamip(*arguments, cwd=work), code, message, work)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before
