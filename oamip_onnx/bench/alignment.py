"""Which multiple widths should have on this CPU: timed, since vector units and kernels differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.bench.latency import BenchSettings, interleave
from oamip_onnx.runtime import RuntimeOptions, Session

MULTIPLES = (1, 2, 4, 8, 16, 32)

# Slower than this per channel, relative to multiples of 32, a width wastes too much.
TOLERANCE = 0.05

# About as many widths of every multiple, spread evenly around 112: times per channel fall a little with the width.
_WIDTHS = (97, 107, 117, 127, 98, 106, 118, 126, 100, 108, 116, 124, 104, 120, 112, 96, 128)

_CHANNELS, _PLANE = 64, 16  # of the convolutions: 3×3 from 64 channels to the width and back
_FEATURES, _ROWS = 256, 128  # of the matrix products: from 256 features to the width and back

# The convolutions take about three times as long.
_CONVOLUTION_SHARE = 0.7
_FEWEST_RUNS = 10


@dataclass(frozen=True)
class Alignment:
    """The widths that pay for one operator.

    Attributes
    ----------
    operator
        ``Conv`` or ``MatMul``.
    multiple
        The smallest multiple that pays: it and every larger one cost within 5 % of multiples of 32, per channel.
    relative
        Time per channel of widths that are multiples of each number and not of its double, relative to multiples of 32.
    runs
        How often each width ran.
    is_sure
        Whether the even runs alone and the odd runs alone give the same multiple.
    """

    operator: str
    multiple: int
    relative: Mapping[int, float]
    runs: int
    is_sure: bool


def measure_alignment(seconds: float = 4.0, seed: int = 0) -> tuple[Alignment, Alignment]:
    """Return the widths that pay for 3×3 convolutions and for matrix products, on one thread of the CPU.

    The width stands at the output of one layer and at the input of the next, as a pruned one does.

    Parameters
    ----------
    seconds
        About how long to measure.
    seed
        Seed of the weights and of the random turns.
    """
    shares = (("Conv", _convolutions, _CONVOLUTION_SHARE), ("MatMul", _products, 1 - _CONVOLUTION_SHARE))
    first, second = (_measure(name, make, seconds * share, seed) for name, make, share in shares)
    return first, second


def find_alignment(operator: str, samples_ms: Mapping[int, Sequence[float]]) -> Alignment:
    """Return the widths that pay, from run times by width.

    Parameters
    ----------
    operator
        What ran.
    samples_ms
        Run times of each width, in turns: the same number for each, of the same rounds. There are widths of every
        number of `MULTIPLES` that are no multiple of its double.
    """
    widths = np.array(list(samples_ms))
    times = np.array(list(samples_ms.values()), dtype=np.float64)
    # What slows a whole round down slows all widths down alike.
    times = times / np.median(times, axis=0)
    relative = _relative(widths, times)
    halves = {_multiple(_relative(widths, times[:, start::2])) for start in range(min(2, times.shape[1]))}
    is_sure = len(halves) == 1 and times.shape[1] >= _FEWEST_RUNS
    return Alignment(operator, _multiple(relative), relative, times.shape[1], is_sure)


def _relative(widths: npt.NDArray[np.int64], times: npt.NDArray[np.float64]) -> dict[int, float]:
    """Return the time per channel of each multiple relative to that of the largest one; the times are widths × runs."""
    per_channel = np.median(times, axis=1) / widths
    # The largest power of two in each width.
    exact = np.minimum(widths & -widths, MULTIPLES[-1])
    means = {m: float(per_channel[exact == m].mean()) for m in MULTIPLES}
    return {m: mean / means[MULTIPLES[-1]] for m, mean in means.items()}


def _multiple(relative: Mapping[int, float]) -> int:
    """Return the smallest multiple that pays, as do all above it."""
    found = MULTIPLES[-1]
    for candidate in reversed(MULTIPLES):
        if relative[candidate] > 1 + TOLERANCE:
            break
        found = candidate
    return found


def _measure(
    operator: str, make: Callable[[int, np.random.Generator], onnx.ModelProto], seconds: float, seed: int
) -> Alignment:
    generator = np.random.default_rng(seed)
    runners = []
    for width in _WIDTHS:
        session = Session(make(width, generator), RuntimeOptions(threads=1))
        (entry,) = session.inputs
        feed = generator.normal(size=[int(size or 1) for size in entry.shape]).astype(np.float32)
        runners.append(session.bind({entry.name: feed}))
    many = 1_000_000  # the time ends it
    settings = BenchSettings(
        minimum_runs=many,
        minimum_seconds=0,
        maximum_runs=many,
        warmup_runs=2,
        warmup_seconds=0,
        maximum_seconds=seconds,
    )
    samples = interleave(runners, settings, generator)
    return find_alignment(operator, dict(zip(_WIDTHS, samples, strict=True)))


def _convolutions(width: int, generator: np.random.Generator) -> onnx.ModelProto:
    shapes = {"first": (width, _CHANNELS, 3, 3), "second": (_CHANNELS, width, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["hidden"], pads=[1] * 4),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Conv", ["active", "second"], ["y"], pads=[1] * 4),
    ]
    return _model(nodes, (1, _CHANNELS, _PLANE, _PLANE), shapes, generator)


def _products(width: int, generator: np.random.Generator) -> onnx.ModelProto:
    shapes = {"first": (_FEATURES, width), "second": (width, _FEATURES)}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["y"]),
    ]
    return _model(nodes, (_ROWS, _FEATURES), shapes, generator)


def _model(
    nodes: list[onnx.NodeProto],
    shape: tuple[int, ...],
    weights: Mapping[str, tuple[int, ...]],
    generator: np.random.Generator,
) -> onnx.ModelProto:
    tensors = [
        numpy_helper.from_array(generator.normal(0, 0.05, size).astype(np.float32), name)
        for name, size in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "alignment",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
