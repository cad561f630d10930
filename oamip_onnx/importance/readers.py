"""The layers that read units, with the moments of what they read, from the last group to the first."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import BATCH_SIZE, ActivationStream, draw_rows, layout_of, moments, with_ones
from oamip_onnx.channels import FIXED, Contraction
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.importance.surgeon import LayerState, Reader

# Output positions of one sample that enter the moments, on average.
_POSITIONS_PER_SAMPLE = 200

# Bytes of moments that one pass over the samples gathers.
_PASS_BYTES = 1 << 29

# Features above which a layer's moments take too much memory and its inverse too long (VGG-16 reads 25,088 at once).
LARGEST_READER = 5000

# Share of an output's positions that the activation behind it lets through, independently of those of the others.
_PASSED = 0.5

# Directions in which errors count less than this, relative to the most important one, are left out.
_LEAST_DIRECTION = 1e-9


def find_readers(context: ImportanceContext) -> tuple[list[Reader], list[str]]:
    """Return the layers whose weights meet units, and the names of those that have no closed form."""
    model, readers, skipped = context.model, [], []
    for contraction in context.analysis.contractions:
        if not bool((contraction.units != FIXED).any()):
            continue
        reader = _reader(context, contraction)
        if reader is None:
            skipped.append(model.node_name(contraction.node))
        else:
            readers.append(reader)
    return readers, skipped


def _reader(context: ImportanceContext, contraction: Contraction) -> Reader | None:
    model = context.model
    node = model.graph.node[contraction.node]
    if contraction.weight is None or contraction.operand != 0 or not model.is_constant(node.input[contraction.weight]):
        return None
    weight = model.array(node.input[contraction.weight])
    layout = layout_of(node, weight.shape)
    if isinstance(layout, str) or layout.groups > 1:
        return None
    axis = layout.channel_axis % contraction.units.ndim
    if any(size > 1 for a, size in enumerate(contraction.units.shape) if a != axis):
        return None
    matrix = layout.matrix(weight.astype(np.float64))
    if len(matrix) > LARGEST_READER:
        return None
    cells = contraction.units.ravel()
    unit_of = np.repeat(cells, len(matrix) // len(cells))
    outputs = np.full(matrix.shape[1], FIXED, dtype=np.int64)
    labels = context.analysis.labels.get(node.output[0])
    if labels is not None:
        factor = labels.factor_over(layout.channel_axis % len(labels.shape))
        if factor is not None and factor.size == matrix.shape[1]:
            outputs = factor.ravel()
    padded = np.vstack([matrix, np.zeros(matrix.shape[1])])
    return Reader(contraction.node, contraction.tensor, layout, padded, unit_of, outputs)


class ReaderStates:
    """The layers that read each group, from the last group to the first.

    The errors of a layer's outputs count by what the layers behind it make of them: with B the sum of Wᵤ·Wᵥᵀ over
    their refit weights for each pair of units u, v, an error δ of the outputs counts δᵀ·(p²·B + (p - p²)·diag B)·δ
    behind an activation that lets the share p of positions through, each channel independently. Outputs that go count
    nothing. Where what is behind is not settled yet, all outputs count alike.

    Moments are gathered in as few passes over the samples as memory allows, shortly before they are needed, and given
    back as soon as they are not.

    Parameters
    ----------
    context
        What the scores are of.
    readers
        The layers.
    """

    def __init__(self, context: ImportanceContext, readers: Sequence[Reader]) -> None:
        self._context = context
        self._owner = context.analysis.group_of_unit()
        groups = [np.unique(self._owner[reader.unit_of[reader.unit_of != FIXED]]) for reader in readers]
        self._waiting = sorted(
            ((int(read[0]), int(read[-1]), reader) for read, reader in zip(groups, readers, strict=True)),
            key=lambda entry: -entry[1],
        )
        self._gathered: list[tuple[int, int, Reader, FloatArray]] = []
        self._states: list[tuple[int, LayerState]] = []
        self._importance: dict[int, FloatArray] = {}

    def of(self, number: int) -> list[LayerState]:
        """Return the layers that read a group; groups are asked for from the last to the first, each once."""
        while self._waiting and self._waiting[0][1] >= number:
            self._gather()
        for first, last, reader, found in self._gathered:
            if last >= number:
                self._states.append((first, LayerState(reader, found, self._directions(reader))))
        self._gathered = [entry for entry in self._gathered if entry[1] < number]
        self._states = [(first, state) for first, state in self._states if first <= number]
        group = self._context.analysis.groups[number]
        return [state for _, state in self._states if state.reads(group)]

    def settle(self, number: int, states: Sequence[LayerState]) -> None:
        """Note what the layers that read a group make of its units now."""
        group = self._context.analysis.groups[number]
        total = np.zeros((group.width, group.width))
        for state in states:
            units = state.unit_of - group.first_unit
            rows = np.flatnonzero((units >= 0) & (units < group.width))
            rows = rows[np.argsort(units[rows], kind="stable")]
            if len(rows) % group.width or bool((np.bincount(units[rows]) != len(rows) // group.width).any()):
                continue  # it reads some units more often than others
            weights = state.weights[rows].reshape(group.width, -1)
            total += weights @ weights.T
        self._importance[number] = total

    def _directions(self, reader: Reader) -> FloatArray | None:
        """Return the matrix T with T·Tᵀ the importance of the outputs, or None where that is not settled."""
        if bool((reader.outputs == FIXED).any()):
            return None
        owners = self._owner[reader.outputs]
        if not all(int(number) in self._importance for number in np.unique(owners)):
            return None
        importance = np.zeros((len(owners), len(owners)))
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            units = reader.outputs[places] - self._context.analysis.groups[number].first_unit
            importance[np.ix_(places, places)] = self._importance[number][np.ix_(units, units)]
        importance = _PASSED**2 * importance + (_PASSED - _PASSED**2) * np.diag(np.diag(importance))
        values, vectors = np.linalg.eigh(importance)
        if values[-1] <= 0:
            return None  # nothing behind it is left
        chosen = values > _LEAST_DIRECTION * values[-1]
        return np.asarray(vectors[:, chosen] * np.sqrt(values[chosen]))

    def _gather(self) -> None:
        sizes = np.cumsum([8 * len(reader.matrix) ** 2 for _, _, reader in self._waiting])
        count = max(int((sizes <= _PASS_BYTES).sum()), 1)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        found = gather_moments(self._context, [reader for _, _, reader in batch])
        self._gathered += [(*entry, own) for entry, own in zip(batch, found, strict=True)]


def gather_moments(context: ImportanceContext, readers: Sequence[Reader]) -> list[npt.NDArray[np.float64]]:
    """Return XᵀX of what each layer reads, (features + 1, features + 1), from one pass over the samples."""
    sums = [np.zeros((len(reader.matrix),) * 2) for reader in readers]
    samples = context.samples
    limit = (samples.run_size or min(BATCH_SIZE, samples.count)) * _POSITIONS_PER_SAMPLE
    generator = np.random.default_rng(context.seed)
    stream = ActivationStream(context.model.proto, [reader.tensor for reader in readers], context.options)
    for batch in stream.batches(samples):
        for number, reader in enumerate(readers):
            data = batch[reader.tensor]
            chosen = draw_rows(reader.layout.count(data), limit, generator)
            sums[number] += moments(with_ones(reader.layout.rows(data, chosen)))[0]
    return sums
