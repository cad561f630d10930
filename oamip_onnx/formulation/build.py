"""From an ONNX model and its channels to a `Network`."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from oamip_onnx.channels import FIXED, ChannelAnalysis
from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.formulation.network import Affine, Layer, MaxPool, Network, Relu, Shift
from oamip_onnx.formulation.operators import BUILDERS
from oamip_onnx.formulation.program import IntArray
from oamip_onnx.formulation.view import Builder, NodeView, Same
from oamip_onnx.model import Model

_SHAPED_BY_SECOND = {"Reshape", "Squeeze", "Unsqueeze"}


def build_network(
    model: Model, analysis: ChannelAnalysis, logits: str, builders: Mapping[str, Builder] | None = None
) -> Network:
    """Return the network from the model's inputs to the tensor `logits`.

    Every cell of a scored activation carries its unit. A tensor that a contraction reads and whose units no ReLU has
    scored on the way gets a `Shift` before the contraction.

    Parameters
    ----------
    model, analysis
        The model and its channels; the analysis' types give the shapes.
    logits
        Name of the tensor that the loss reads.
    builders
        Table from operator type to builder; `BUILDERS` by default.

    Raises
    ------
    UnsupportedOperatorError
        If an operator between the inputs and the logits has no builder or is used in a way that is not linear.
    """
    return _Assembly(model, analysis, logits, BUILDERS if builders is None else builders).network()


class _Assembly:
    def __init__(self, model: Model, analysis: ChannelAnalysis, logits: str, builders: Mapping[str, Builder]) -> None:
        self.model, self.analysis, self.logits, self.builders = model, analysis, logits, builders
        self.layers: list[Layer] = []
        self.alias: dict[str, str] = {}
        # The unit whose score already multiplies each cell of a tensor, or FIXED.
        self.carried: dict[str, IntArray] = {}
        self.inputs: dict[str, int] = {}
        self.shifts = 0

    def network(self) -> Network:
        needed = _ancestors(self.model, self.logits)
        batch = self.analysis.types[self.model.input_names[0]].shape[0]
        for index in sorted(needed):
            view = NodeView(self.model, index, self.analysis.types, batch)
            builder = self.builders.get(view.node.op_type) if not view.node.domain else None
            if builder is None:
                raise view.refuse("there is no builder for it")
            self._register_inputs(view)
            piece = builder(view)
            if isinstance(piece, Same):
                source = self.alias.get(view.data_inputs[0], view.data_inputs[0])
                self.alias[view.output] = source
            else:
                self._add(self._scored(piece, index), view.output)
        notes = (f"{self.shifts} scored tensors without a ReLU are shifted.",) if self.shifts else ()
        target = self.alias.get(self.logits, self.logits)
        return Network(
            tuple(self.layers),
            self.inputs,
            target,
            self.analysis.unit_count,
            self.analysis.group_of_unit(),
            notes,
        )

    def _register_inputs(self, view: NodeView) -> None:
        for name in view.data_inputs:
            if name in self.model.input_names and name not in self.inputs:
                shape = view.types[name].shape
                self.inputs[name] = int(np.prod(shape[1:], dtype=np.int64))
                self.carried[name] = np.full(self.inputs[name], FIXED, np.int64)

    def _scored(self, layer: Layer, index: int) -> Layer:
        """Replace aliases, give ReLUs their units, and shift what a contraction reads unscored."""
        if isinstance(layer, Affine):
            names = tuple(self.alias.get(n, n) for n in layer.inputs)
            return replace(
                layer, inputs=tuple(self._shifted(n, o, index) for n, o in zip(names, layer.inputs, strict=True))
            )
        layer = replace(layer, input=self.alias.get(layer.input, layer.input))
        if isinstance(layer, Relu):
            units = units_of_cells(self.analysis, layer.output, layer.size)
            # What a scored activation has already brought to zero is not scored twice.
            units = np.where(self.carried[layer.input] == units, FIXED, units)
            return replace(layer, units=units)
        return layer

    def _shifted(self, name: str, original: str, index: int) -> str:
        for contraction in self.analysis.contractions:
            if contraction.node != index or contraction.tensor != original:
                continue
            shape = self.analysis.types[original].shape
            wanted = np.broadcast_to(contraction.units, shape)[0].reshape(-1)
            missing = np.where(self.carried[name] == wanted, FIXED, wanted)
            if (missing != FIXED).any():
                self.shifts += 1
                shift = Shift(f"{name}#scored{index}", name, missing)
                self._add(shift, shift.output)
                return shift.output
        return name

    def _add(self, layer: Layer, name: str) -> None:
        if isinstance(layer, Affine):
            layer = self._with_bias_units(layer, name)
        elif isinstance(layer, Relu | Shift):
            before = self.carried[layer.input]
            self.carried[name] = np.where(layer.units == FIXED, before, layer.units)
        else:
            self.carried[name] = _common_unit(layer, self.carried[layer.input])
        self.layers.append(layer)

    def _with_bias_units(self, layer: Affine, name: str) -> Affine:
        units = units_of_cells(self.analysis, name, layer.size)
        carried = units.copy()
        for source, matrix in zip(layer.inputs, layer.matrices, strict=True):
            rows = np.repeat(np.arange(layer.size), np.diff(matrix.indptr))
            differs = self.carried[source][matrix.indices] != units[rows]
            carried[np.bincount(rows, differs, layer.size) > 0] = FIXED
        self.carried[name] = carried
        has_scaled_bias = bool(((carried != FIXED) & (layer.bias != 0)).any())
        return replace(layer, bias_units=carried) if has_scaled_bias else layer


def units_of_cells(analysis: ChannelAnalysis, name: str, size: int) -> IntArray:
    """Return the unit of each cell of a tensor in one sample, or FIXED, shape (cells,).

    Raises
    ------
    UnsupportedOperatorError
        If cells belong to two units at once.
    """
    labels = analysis.labels.get(name)
    units = np.full(size, FIXED, np.int64)
    if labels is None:
        return units
    for factor in labels.factors:
        cells = np.broadcast_to(factor, labels.shape)[0].reshape(-1)
        if ((units != FIXED) & (cells != FIXED)).any():
            raise UnsupportedOperatorError(
                f"Cells of the tensor {name!r} belong to two units at once, which the joint program cannot express",
                "use the layer-wise or the response form",
            )
        units = np.where(cells == FIXED, units, cells)
    return units


def _common_unit(layer: MaxPool, carried: IntArray) -> IntArray:
    """Return the unit that all positions of each window carry, or FIXED where they differ."""
    units = np.append(carried, FIXED)[layer.windows]
    valid = layer.windows >= 0
    first = np.take_along_axis(units, valid.argmax(axis=1)[:, None], axis=1)
    return np.where(((units == first) | ~valid).all(axis=1), first[:, 0], FIXED)


def _ancestors(model: Model, tensor: str) -> set[int]:
    needed: set[int] = set()
    waiting = [tensor]
    while waiting:
        index = model.producers.get(waiting.pop())
        if index is not None and index not in needed:
            needed.add(index)
            node = model.graph.node[index]
            # The target of a Reshape may be computed from shapes; the concrete types already tell the result.
            operands = node.input[:1] if node.op_type in _SHAPED_BY_SECOND else node.input
            waiting += [name for name in operands if name and not model.is_constant(name)]
    return needed
