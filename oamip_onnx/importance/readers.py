"""The layers that read units, with the moments of what they read, from the last group to the first."""

from collections.abc import Sequence

import numpy as np

from oamip_onnx.calibration import layout_of
from oamip_onnx.channels import FIXED, Contraction
from oamip_onnx.importance.moments import gather_moments
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.importance.surgeon import LayerState, Reader

# Bytes of moments that one pass over the samples gathers.
_PASS_BYTES = 1 << 29

# Features above which a layer's moments take too much memory and its inverse too long (VGG-16 reads 25,088 at once).
LARGEST_READER = 5000


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
    padded = np.vstack([matrix, np.zeros(matrix.shape[1])])
    return Reader(contraction.node, contraction.tensor, layout, padded, unit_of)


class ReaderStates:
    """The layers that read each group, from the last group to the first.

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
        owner = context.analysis.group_of_unit()
        groups = [np.unique(owner[reader.unit_of[reader.unit_of != FIXED]]) for reader in readers]
        self._waiting = sorted(
            ((int(read[0]), int(read[-1]), reader) for read, reader in zip(groups, readers, strict=True)),
            key=lambda entry: -entry[1],
        )
        self._gathered: list[tuple[int, int, Reader, FloatArray]] = []
        self._states: list[tuple[int, LayerState]] = []

    def of(self, number: int) -> list[LayerState]:
        """Return the layers that read a group; groups are asked for from the last to the first, each once."""
        while self._waiting and self._waiting[0][1] >= number:
            self._gather()
        for first, last, reader, found in self._gathered:
            if last >= number:
                self._states.append((first, LayerState(reader, found.copy())))
        self._gathered = [entry for entry in self._gathered if entry[1] < number]
        self._states = [(first, state) for first, state in self._states if first <= number]
        group = self._context.analysis.groups[number]
        return [state for _, state in self._states if state.reads(group)]

    def _gather(self) -> None:
        context, store = self._context, self._context.moments
        sizes = np.cumsum([8 * len(reader.matrix) ** 2 for _, _, reader in self._waiting])
        count = max(int((sizes <= _PASS_BYTES).sum()), 1)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        known = [store.get(reader) for _, _, reader in batch]
        missing = [reader for (_, _, reader), found in zip(batch, known, strict=True) if found is None]
        gathered = iter(_gathered(context, missing) if missing else ())
        for entry, found in zip(batch, known, strict=True):
            own = next(gathered) if found is None else found
            store.put(entry[2], own)
            self._gathered.append((*entry, own))


def _gathered(context: ImportanceContext, readers: Sequence[Reader]) -> list[FloatArray]:
    types = context.analysis.types
    return gather_moments(context.model, types, readers, context.samples, context.options, context.seed)
