"""Models of whole architectures: the skeletons in `zoo/`, filled with seeded random weights.

A random network is a poor test when its outputs hardly depend on its input, or when a branch adds nothing. The weights
are therefore drawn so that every contraction's output has about unit power: the mean squares of the activations are
estimated along the graph, operator by operator, and each weight is scaled to what it reads. Some units weigh much more
than others, as in trained networks, so that half a network still passes on what enters it.
"""

import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

ZOO = Path(__file__).parent / "zoo"
SUFFIX = ".onnx.xz"

# Marks a tensor whose values were taken out; mean, deviation and minimum follow, separated by commas.
_MARK = "fill:"

# Deviation of the logarithm of a unit's weights: the heavier half of the units carries nine tenths of the power.
_UNEVENNESS = 0.7

# Biases of their full size drown, in a deep network of half its width, what comes from the input.
_BIAS_SHARE = 0.2

Array = npt.NDArray[np.float32]


def skeletons(match: str = "*") -> list[Path]:
    """Return the files of the architectures whose name matches a glob, in the order of their names."""
    return [path for path in sorted(ZOO.glob(f"*{SUFFIX}")) if fnmatchcase(name_of(path), match)]


def name_of(path: Path) -> str:
    """Return the name of the architecture in a skeleton's file."""
    return path.name.removesuffix(SUFFIX)


def refill(source: str | Path, seed: int = 0) -> onnx.ModelProto:
    """Return a model with random weights, the same ones for the same seed.

    Parameters
    ----------
    source
        A skeleton's file, or the name of an architecture in `zoo/`.
    seed
        Seed of the draws.
    """
    path = source if isinstance(source, Path) else ZOO / f"{source}{SUFFIX}"
    model = onnx.load_from_string(lzma.decompress(path.read_bytes()))
    _Filling(model.graph, np.random.default_rng(seed)).run()
    return model


@dataclass(frozen=True)
class _Statistics:
    """Mean, deviation and minimum of the values that a tensor had."""

    mean: float
    deviation: float
    minimum: float

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return values like the original ones; gains, variances and layer scales stay positive and near their mean."""
        if self.minimum > 0:
            half = min(np.sqrt(3) * self.deviation, self.mean)
            return generator.uniform(self.mean - half, self.mean + half, shape).astype(np.float32)
        return self.mean + self.deviation * generator.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class _Power:
    """Mean square of a tensor's values, in two parts.

    A rectifier keeps what comes from rectified values and half of the rest; a stream of residual blocks would be
    estimated too low if both were one.
    """

    rectified: float
    signed: float

    @property
    def total(self) -> float:
        """The whole mean square."""
        return self.rectified + self.signed

    def __add__(self, other: "_Power") -> "_Power":
        return _Power(self.rectified + other.rectified, self.signed + other.signed)

    def __mul__(self, factor: float) -> "_Power":
        return _Power(self.rectified * factor, self.signed * factor)


_UNIT = _Power(0.0, 1.0)


class _Filling:
    """One pass over a graph in its order, with the estimated power of every tensor met so far."""

    def __init__(self, graph: onnx.GraphProto, generator: np.random.Generator) -> None:
        self.graph = graph
        self.generator = generator
        self.tensors = {t.name: t for t in graph.initializer}
        self.power = {value.name: _UNIT for value in graph.input}

    def run(self) -> None:
        """Fill every tensor at the first node that reads it."""
        for node in self.graph.node:
            if node.op_type == "Constant":
                self.tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
                continue
            for operand, name in enumerate(node.input):
                if name in self.tensors and name not in self.power:
                    self._fill(self.tensors[name], node, operand)
                    values = numpy_helper.to_array(self.tensors[name])
                    self.power[name] = _UNIT * float(np.square(values, dtype=np.float64).mean() if values.size else 0)
            known = [self.power.get(name, _UNIT) for name in node.input]
            estimate = _UNIT if self._is_weighted(node) else _POWER.get(node.op_type, _passed_on)(known)
            self.power |= dict.fromkeys(node.output, estimate)

    def _is_weighted(self, node: onnx.NodeProto) -> bool:
        """Return whether a node multiplies by weights, which are scaled to what they multiply."""
        return node.op_type in {"Conv", "Gemm"} or (node.op_type == "MatMul" and node.input[1] in self.tensors)

    def _fill(self, tensor: onnx.TensorProto, node: onnx.NodeProto, operand: int) -> None:
        if not tensor.doc_string.startswith(_MARK):
            return
        statistics = _Statistics(*map(float, tensor.doc_string.removeprefix(_MARK).split(",")))
        data = max(self.power.get(node.input[0], _UNIT).total, 1e-6)
        if operand == 1 and self._is_weighted(node):
            values = self._weight(tuple(tensor.dims), node, data)
        else:
            values = statistics.draw(self.generator, tuple(tensor.dims))
            if statistics.minimum < 0 and len(tensor.dims) == 1:
                values *= _BIAS_SHARE
            if node.op_type == "BatchNormalization" and operand == 3:
                values *= np.sqrt(data)
            elif node.op_type == "BatchNormalization" and operand == 4:
                values *= data / values.mean()
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.raw_data = values.astype(dtype, copy=False).tobytes()
        tensor.ClearField("doc_string")

    def _weight(self, shape: tuple[int, ...], node: onnx.NodeProto, data: float) -> Array:
        """Return weights whose products with data of this mean square have unit power, averaged over the units."""
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else 1
        gains = np.exp(_UNEVENNESS * self.generator.standard_normal(shape[axis]))
        gains /= np.sqrt(np.square(gains).mean() * data * math.prod(shape) / shape[axis])
        values = self.generator.standard_normal(shape, dtype=np.float32)
        values *= np.expand_dims(gains, [a for a in range(len(shape)) if a != axis]).astype(np.float32)
        return values


_Estimate = Callable[[list[_Power]], _Power]


def _passed_on(powers: list[_Power]) -> _Power:
    """Return the power of what an operator moves or takes parts of."""
    return powers[0] if powers else _UNIT


def _last(powers: list[_Power]) -> _Power:
    return powers[-1]


def _sum(powers: list[_Power]) -> _Power:
    return powers[0] + powers[1]


def _mean(powers: list[_Power]) -> _Power:
    return sum(powers[1:], powers[0]) * (1 / len(powers))


def _rectified(powers: list[_Power]) -> _Power:
    return _Power(powers[0].rectified + powers[0].signed / 2, 0)


def _times(factor: float) -> _Estimate:
    return lambda powers: powers[0] * factor


def _always(value: float) -> _Estimate:
    return lambda _: _UNIT * value


# The power of an operator's output, as if its inputs were centred, normal and independent where they are not rectified.
_POWER: dict[str, _Estimate] = {
    "Add": _sum,
    "Sub": _sum,
    "Mul": lambda powers: powers[0] * powers[1].total,
    "Div": lambda powers: powers[0] * (1 / max(powers[1].total, 1e-6)),
    "Concat": _mean,
    "MatMul": _last,  # attention: the shares of the values add up to one
    "Einsum": _last,
    "Relu": _rectified,
    "Clip": _rectified,
    "HardSwish": _times(0.35),
    "MaxPool": _times(2.0),
    "AveragePool": _times(0.6),
    "GlobalAveragePool": _times(0.5),
    "ReduceMean": _times(0.5),
    "Sigmoid": _always(0.34),
    "HardSigmoid": _always(0.33),
    "Tanh": _always(0.4),
    "Erf": _always(0.35),
    "Exp": _always(1.0),
    "Softmax": _always(1.0),
    "BatchNormalization": _always(1.0),
    "LayerNormalization": _always(1.0),
}
