"""Weights as they are before any training, drawn by the number of inputs that a layer sums over."""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from oamip_onnx.model import Array, Model, int_attribute, with_initializers

# Squared bounds of uniform draws, times the number of inputs. They keep the variance of what layers compute: a uniform
# draw within b has the variance b²/3, and behind a ReLU half of the inputs are zero (He et al. 2015).
_BEHIND_ACTIVATION, _HIDDEN = 6.0, 3.0

# Of the last layer: small logits, so that no class is preferred at the start.
_LAST = 1.0

_ACTIVATIONS = frozenset("Celu Clip Elu Gelu HardSwish LeakyRelu Mish PRelu Relu Selu Softplus Swish".split())

# Activations reach a layer through these; a Mul is a gate, as in x·sigmoid(x), which exporters write in parts.
_PASSED = frozenset(
    "AveragePool Dropout Flatten GlobalAveragePool GlobalMaxPool Identity MaxPool Pad ReduceMean Reshape Squeeze "
    "Transpose Unsqueeze".split()
)

# Standard deviation of tables: embeddings, positions, tokens.
_TABLE = 0.02

_PRELU_SLOPE = 0.25

_NORMALISATIONS = frozenset(
    "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization RMSNormalization".split()
)
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_LAYERS = frozenset("Conv ConvTranspose Gemm MatMul".split())

_Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


@dataclass(frozen=True)
class Fresh:
    """New values of weights.

    Attributes
    ----------
    values
        By initializer, in its type and shape.
    untouched
        Floating-point constants with several numbers that no rule is known for.
    """

    values: dict[str, Array]
    untouched: tuple[str, ...]


def generator_for(name: str, seed: int) -> np.random.Generator:
    """Return the generator of one weight: its draw does not depend on which other weights there are."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def last_layer_weight(shape: tuple[int, ...], axis: int, seed: int) -> Array:
    """Return the weights of a last layer, uniform within one over the root of its inputs.

    Parameters
    ----------
    shape, axis
        The shape, and the axis of the classes; what lies along the others is summed over.
    seed
        Seed of the draw.
    """
    inputs = math.prod(shape) // shape[axis]
    return _uniform(_LAST / inputs)(generator_for("last layer", seed), shape)


def initialise(model: Model, last: int, seed: int) -> onnx.ModelProto:
    """Return a copy of the model with all weights drawn anew.

    Parameters
    ----------
    model
        The canonical model.
    last
        Position of the last layer.
    seed
        Seed of the draws.
    """
    return with_initializers(model.proto, fresh_weights(model, last, seed).values)


def fresh_weights(model: Model, last: int, seed: int) -> Fresh:
    """Return weights drawn anew, each by the first node that reads it.

    Layers are uniform within √(6/inputs) behind an activation and √(3/inputs) elsewhere, biases 0; the last layer is
    uniform within √(1/inputs). Normalisations have gain 1 and offset 0, batch normalisations mean 0 and variance 1.
    Recurrent layers are uniform within √(1/states). Tables, and what is added to or put beside activations elsewhere,
    are normal with the standard deviation 0.02. Factors, divisors and what is subtracted stay: they belong to formulas,
    and to the preparation of inputs.

    Parameters
    ----------
    model, last, seed
        See `initialise`.
    """
    values: dict[str, Array] = {}
    for index, node in enumerate(model.graph.node):
        for position, draw in _draws(model, index, node, is_last=index == last).items():
            name = node.input[position] if position < len(node.input) else ""
            if name in model.initializers and name not in values:
                before = model.array(name)
                if _is_float(before):
                    drawn = draw(generator_for(name, seed), before.shape)
                    values[name] = np.asarray(drawn).astype(before.dtype)
    others = [name for name in model.initializers if name not in values and name in model.uses]
    untouched = [name for name in others if model.array(name).size > 1 and _is_float(model.array(name))]
    return Fresh(values, tuple(untouched))


def _is_float(values: Array) -> bool:
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def _draws(model: Model, index: int, node: onnx.NodeProto, *, is_last: bool) -> dict[int, _Draw]:
    """Return how each constant operand of a node is drawn, by its position."""
    if node.domain not in {"", "ai.onnx"}:
        return {}
    kind, shapes = node.op_type, [_shape(model, name) for name in node.input]
    found: dict[int, _Draw] = {}
    if kind in _LAYERS:
        gain = _BEHIND_ACTIVATION if _is_behind_activation(model, node.input[0]) else _HIDDEN
        found = _layer_draws(node, shapes, _LAST if is_last else gain)
    elif kind in _NORMALISATIONS:
        found = {1: _constant(1.0), 2: _constant(0.0), 3: _constant(0.0), 4: _constant(1.0)}
    elif kind in _RECURRENT:
        scale = _uniform(1 / int_attribute(node, "hidden_size", 1))
        found = {1: scale, 2: scale, 3: _constant(0.0)}
    elif kind == "PRelu":
        found = {1: _constant(_PRELU_SLOPE)}
    elif kind == "Gather":
        found = {0: _normal(_TABLE)}
    elif kind in {"Add", "Concat"}:
        # A single number belongs to a formula.
        tables = [k for k, shape in enumerate(shapes) if shape is not None and math.prod(shape) > 1]
        found = dict.fromkeys(tables, _constant(0.0) if _is_bias(model, index) else _normal(_TABLE))
    return found


def _layer_draws(node: onnx.NodeProto, shapes: Sequence[tuple[int, ...] | None], gain: float) -> dict[int, _Draw]:
    """Return how weights and bias of a layer are drawn."""
    kind, weight = node.op_type, shapes[1]
    if kind == "MatMul":
        sides = {k: shape for k, shape in enumerate(shapes) if shape is not None and len(shape) > 1}
        return {k: _uniform(gain / shape[-2 if k else -1]) for k, shape in sides.items()}
    if weight is None:
        return {}
    if kind == "Gemm":
        inputs = weight[1 if int_attribute(node, "transB", 0) else 0]
    elif kind == "Conv":
        inputs = math.prod(weight[1:])
    else:
        inputs = weight[0] // int_attribute(node, "group", 1) * math.prod(weight[2:])
    return {1: _uniform(gain / max(inputs, 1)), 2: _constant(0.0)}


def _is_behind_activation(model: Model, name: str) -> bool:
    """Return whether a tensor is what an activation makes, pooled or rearranged."""
    while name in model.producers:
        node = model.graph.node[model.producers[name]]
        if node.op_type in _ACTIVATIONS or node.op_type == "Mul":
            return True
        if node.op_type not in _PASSED:
            return False
        name = node.input[0]
    return False


def _is_bias(model: Model, index: int) -> bool:
    """Return whether an Add is that of a layer's bias."""
    node = model.graph.node[index]
    producers = [model.producers[name] for name in node.input if name in model.producers]
    return node.op_type == "Add" and any(model.graph.node[k].op_type in _LAYERS for k in producers)


def _shape(model: Model, name: str) -> tuple[int, ...] | None:
    return tuple(model.initializers[name].dims) if name in model.initializers else None


def _uniform(bound_squared: float) -> _Draw:
    bound = math.sqrt(bound_squared)
    return lambda generator, shape: generator.uniform(-bound, bound, shape)


def _normal(deviation: float) -> _Draw:
    return lambda generator, shape: generator.normal(0.0, deviation, shape)


def _constant(value: float) -> _Draw:
    return lambda _generator, shape: np.full(shape, value)
