"""A small fixed network that is timed beside the models: how fast the machine is at the moment."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.bench.sessions import Feeds
from oamip_onnx.bench.statistics import PLACEMENT_SHIFT, Samples, SlowDown, median_interval, slow_down

# To be raised with every change of the network or its input: ratios to different networks are not comparable.
YARDSTICK_VERSION = 1

# Networks do not suffer alike when a machine slows down: where the yardstick takes a share longer, a network takes that
# share longer, and about a quarter of it more or less. Measured on networks of 0.1 and 0.3 ms, alone and beside
# programs that keep all cores busy.
_UNSHARED = 0.25

_SEED = 0
# About 0.3 ms on one thread of a server's CPU. Weights and activations take 0.25 MB, less than a core's own cache, so
# that the model that follows finds most of what it left there.
_CHANNELS, _PLANE, _CONVOLUTIONS, _FEATURES = 32, 16, 4, 32


@dataclass(frozen=True)
class YardstickRatio:
    """How long a model takes in times of the yardstick.

    Attributes
    ----------
    version
        Which yardstick; ratios to different ones are not comparable.
    median_ms
        The median of the yardstick's own run time.
    runs
        How often it ran.
    ratio
        The median, over the turns in which the yardstick ran, of the model's time divided by the yardstick's.
    low, high
        The interval that holds the true median of the ratio with 95 % confidence.
    """

    version: int
    median_ms: float
    runs: int
    ratio: float
    low: float
    high: float


def yardstick_model() -> onnx.ModelProto:
    """Return the network: four 3×3 convolutions with ReLU, and a matrix product, in float32."""
    generator = np.random.default_rng(_SEED)
    shapes: dict[str, tuple[int, ...]] = {f"w{number}": (_CHANNELS, _CHANNELS, 3, 3) for number in range(_CONVOLUTIONS)}
    shapes["rows"] = (_PLANE * _PLANE, _FEATURES)
    # Variances that neither grow nor vanish from layer to layer: subnormal numbers would take longer.
    weights = [
        numpy_helper.from_array((generator.normal(size=shape) * _scale(shape)).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.array([_CHANNELS, _PLANE * _PLANE], np.int64), "matrix"))
    nodes, source = [], "x"
    for number in range(_CONVOLUTIONS):
        nodes.append(helper.make_node("Conv", [source, f"w{number}"], [f"c{number}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        source = f"r{number}"
    nodes.append(helper.make_node("Reshape", [source, "matrix"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "rows"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, _CHANNELS, _PLANE, _PLANE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [_CHANNELS, _FEATURES])
    graph = helper.make_graph(nodes, "yardstick", [x], [y], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def yardstick_feeds() -> Feeds:
    """Return the input of the network."""
    generator = np.random.default_rng(_SEED)
    return {"x": generator.normal(size=(1, _CHANNELS, _PLANE, _PLANE)).astype(np.float32)}


def in_yardsticks(model_ms: Samples, yardstick_ms: Samples, *, seed: int = 0) -> YardstickRatio:
    """Return a model's time in times of the yardstick.

    The ratio is taken inside each turn, so that a machine that is slower for both cancels out.

    Parameters
    ----------
    model_ms
        The run times of the model, one a turn.
    yardstick_ms
        Those of the yardstick; NaN in turns in which it did not run.
    seed
        Seed of the bootstrap.

    Raises
    ------
    UsageError
        If the yardstick did not run.
    """
    ran = ~np.isnan(yardstick_ms)
    ratios = model_ms[ran] / yardstick_ms[ran]
    low, high = median_interval(ratios, seed=seed)
    return YardstickRatio(
        version=YARDSTICK_VERSION,
        median_ms=float(np.median(yardstick_ms[ran])),
        runs=int(ran.sum()),
        ratio=float(np.median(ratios)),
        low=low,
        high=high,
    )


def slow_down_in_yardsticks(before: YardstickRatio, now: YardstickRatio) -> SlowDown:
    """Return how many times as long a model takes as it once did, beside the yardstick of the same version.

    The interval is wider by what the places of both networks in memory make, and by a quarter of the yardstick's own
    change.
    """
    machine = now.median_ms / before.median_ms
    unshared = max(machine, 1 / machine) ** _UNSHARED
    return slow_down(
        before.ratio,
        (before.low, before.high),
        now.ratio,
        (now.low, now.high),
        uncertainty=(1 + PLACEMENT_SHIFT) ** 2 * unshared - 1,
    )


def _scale(shape: tuple[int, ...]) -> float:
    """Return the standard deviation of weights that keeps the variance behind a ReLU."""
    inputs = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
    return float(np.sqrt(2 / inputs))
