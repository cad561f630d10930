"""A feed-forward network as sparse matrices, ReLUs and max-pools over flattened per-sample tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from oamip_onnx.formulation.program import FloatArray, IntArray, SparseMatrix, applied

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Affine:
    """``output = Σ_k matrices[k] · inputs[k] + bias``.

    Attributes
    ----------
    output, inputs
        Names of the tensors.
    matrices
        One sparse matrix per input, shape (cells of the output, cells of the input).
    bias
        Shape (cells of the output,).
    bias_units
        Unit of each cell, or FIXED: where an affine map with a bias (batch norm, depthwise convolution) follows a
        scored activation, removal must take the bias along, so it is multiplied by the unit's score. None: nowhere.
    """

    output: str
    inputs: tuple[str, ...]
    matrices: tuple[SparseMatrix, ...]
    bias: FloatArray
    bias_units: IntArray | None = None

    @property
    def size(self) -> int:
        """Number of cells of the output."""
        return int(self.bias.size)


@dataclass(frozen=True)
class Relu:
    """``output = max(input, 0)``; `units` holds each cell's scored unit, or FIXED, shape (cells,)."""

    output: str
    input: str
    units: IntArray

    @property
    def size(self) -> int:
        """Number of cells."""
        return int(self.units.size)


@dataclass(frozen=True)
class Shift:
    """A scored tensor without a ReLU: ``output = input`` with every score at 1; `units` as for `Relu`."""

    output: str
    input: str
    units: IntArray

    @property
    def size(self) -> int:
        """Number of cells."""
        return int(self.units.size)


@dataclass(frozen=True)
class MaxPool:
    """``output[i] = max over p of input[windows[i, p]]``; -1 in `windows` is padding, shape (cells, positions)."""

    output: str
    input: str
    windows: IntArray

    @property
    def size(self) -> int:
        """Number of cells of the output."""
        return int(self.windows.shape[0])


Layer = Affine | Relu | Shift | MaxPool

# What a scored activation computes from the pre-activation, shape (samples, cells), at the scores in question.
Respond = Callable[[Relu | Shift, FloatArray], FloatArray]


@dataclass(frozen=True)
class Network:
    """The part of a model between its inputs and its logits.

    Attributes
    ----------
    layers
        In the order of computation.
    inputs
        Number of cells of each graph input.
    logits
        Name of the tensor that the loss reads.
    unit_count
        Number of units that scores exist for.
    group_of_unit
        Group of each unit, shape (units,).
    notes
        What the description leaves out, in sentences.
    """

    layers: tuple[Layer, ...]
    inputs: Mapping[str, int]
    logits: str
    unit_count: int
    group_of_unit: IntArray
    notes: tuple[str, ...] = ()

    def flatten(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Return the feeds as float64 of shape (samples, cells), only those that the network reads."""
        return {
            name: np.asarray(feeds[name], np.float64).reshape(len(feeds[name]), size)
            for name, size in self.inputs.items()
        }

    def forward(
        self, feeds: Mapping[str, npt.NDArray[np.generic]], respond: Respond | None = None
    ) -> dict[str, FloatArray]:
        """Return every tensor in float64, shape (samples, cells), for feeds of any per-sample shape.

        Parameters
        ----------
        feeds
            One array per graph input, samples first.
        respond
            What scored activations compute; by default the original network.
        """
        values = self.flatten(feeds)
        for layer in self.layers:
            if isinstance(layer, Affine):
                total = np.tile(layer.bias, (len(values[layer.inputs[0]]), 1))
                for name, matrix in zip(layer.inputs, layer.matrices, strict=True):
                    total += applied(matrix, values[name])
                values[layer.output] = total
            elif isinstance(layer, MaxPool):
                values[layer.output] = pooled(values[layer.input], layer.windows)[0]
            elif respond is not None:
                values[layer.output] = respond(layer, values[layer.input])
            elif isinstance(layer, Relu):
                values[layer.output] = np.maximum(values[layer.input], 0.0)
            else:
                values[layer.output] = values[layer.input]
        return values

    def with_scaled_bias(self, scores: FloatArray) -> "Network":
        """Return the network with every bias that belongs to a unit multiplied by the unit's score."""
        layers: list[Layer] = []
        for layer in self.layers:
            if isinstance(layer, Affine) and layer.bias_units is not None:
                factor = scores_of(scores, layer.bias_units)
                layers.append(replace(layer, bias=layer.bias * factor))
            else:
                layers.append(layer)
        return replace(self, layers=tuple(layers))


def pooled(values: FloatArray, windows: IntArray) -> tuple[FloatArray, IntArray]:
    """Return the maximum over each window and the input cell that holds it; both of shape (samples, windows)."""
    padded = np.concatenate([values, np.full((len(values), 1), -np.inf)], axis=1)
    choice = padded[:, windows].argmax(axis=2)
    cells = np.take_along_axis(np.broadcast_to(windows, (len(values), *windows.shape)), choice[:, :, None], 2)[:, :, 0]
    return np.take_along_axis(values, cells, axis=1), cells


def scores_of(scores: FloatArray, units: IntArray) -> FloatArray:
    """Return the score of each cell's unit; 1 where the cell is fixed."""
    return np.append(scores, 1.0)[units]
