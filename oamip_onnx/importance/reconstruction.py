"""Group optimal brain surgery: units whose layers behind them can best be refit without them.

A unit's cost is what the error of the layers that read it rises by (`surgeon.py`, equation 1), each relative to the
energy of the layer's output about its mean. Units go one after the other, the cheapest first, until the planned width
is reached; then pairs are exchanged while that lowers the sum of errors.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import (
    BATCH_SIZE,
    ActivationStream,
    ConvolutionLayout,
    draw_rows,
    layout_of,
)
from oamip_onnx.channels import FIXED, BoolArray, ChannelGroup, Contraction
from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.importance.surgeon import LayerState, Reader

IntArray = npt.NDArray[np.int64]

# Output positions of one sample that enter the moments, on average.
_POSITIONS_PER_SAMPLE = 200

# Bytes of moments that one pass over the samples gathers.
_PASS_BYTES = 1 << 29

# Features above which a layer's moments take too much memory and its inverse too long (VGG-16 reads 25,088 at once).
_LARGEST_READER = 5000

# Of the units that still have to go, one part in so many goes before costs are computed anew.
_STEPS = 64

# Exchanges a group at most, the units that one round tries, and by how much each must lower the relative error.
_EXCHANGES, _TRIED = 64, 6
_LEAST_IMPROVEMENT = 1e-6

# Features of all readers of a group above which exchanges would take longer than they are worth.
_LARGEST_EXCHANGED = 3000


@criterion("reconstruction")
def reconstruction(context: ImportanceContext) -> Scores:
    """Return the order in which units go when each time the one goes whose readers are best refit without it.

    Units that stay at the planned width score between ½ and 1, by what their removal would cost; those that go score
    below ½, the later the higher.
    """
    widths = context.planned("reconstruction")
    readers, skipped = _find_readers(context)
    states = _States(context, readers)
    values = np.zeros(context.analysis.unit_count)
    for number, width in enumerate(widths):
        group = context.analysis.groups[number]
        values[group.units] = _Elimination(group, states.of(number)).ranking(width)
        context.report("reconstruction", group.first_unit + group.width, context.analysis.unit_count)
    notes = []
    if skipped:
        notes.append(
            f"{len(skipped)} layers have no closed form or more than {_LARGEST_READER:,} features and do not count in "
            f"the reconstruction error, {skipped[0]!r} among them."
        )
    return Scores(values, "reconstruction", notes=tuple(notes))


def _find_readers(context: ImportanceContext) -> tuple[list[Reader], list[str]]:
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
    if isinstance(layout, str):
        return None
    axis = 1 if isinstance(layout, ConvolutionLayout) else contraction.units.ndim - 1
    if any(size > 1 for a, size in enumerate(contraction.units.shape) if a != axis):
        return None
    matrix = layout.matrix(weight.astype(np.float64))
    if len(matrix) > _LARGEST_READER:
        return None
    cells = contraction.units.ravel()
    unit_of = np.repeat(cells, len(matrix) // len(cells))
    return Reader(contraction.tensor, layout, np.vstack([matrix, np.zeros(matrix.shape[1])]), unit_of)


class _States:
    """The layers that read each group, from the first group that they read to the last.

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
            key=lambda entry: entry[0],
        )
        self._moments: list[tuple[int, int, Reader, FloatArray]] = []
        self._states: list[tuple[int, LayerState]] = []

    def of(self, number: int) -> list[LayerState]:
        """Return the layers that read a group; groups are asked for in order, each once."""
        while self._waiting and self._waiting[0][0] <= number:
            self._gather()
        for first, last, reader, moments in self._moments:
            if first <= number:
                self._states.append((last, LayerState(reader, moments)))
        self._moments = [entry for entry in self._moments if entry[0] > number]
        self._states = [(last, state) for last, state in self._states if last >= number]
        group = self._context.analysis.groups[number]
        return [state for _, state in self._states if state.reads(group)]

    def _gather(self) -> None:
        sizes = np.cumsum([8 * len(reader.matrix) ** 2 for _, _, reader in self._waiting])
        count = max(int((sizes <= _PASS_BYTES).sum()), 1)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        found = _gathered(self._context, [reader for _, _, reader in batch])
        self._moments += [(*entry, moments) for entry, moments in zip(batch, found, strict=True)]


def _gathered(context: ImportanceContext, readers: Sequence[Reader]) -> list[FloatArray]:
    sums = [np.zeros((len(reader.matrix),) * 2) for reader in readers]
    samples = context.samples
    limit = (samples.run_size or min(BATCH_SIZE, samples.count)) * _POSITIONS_PER_SAMPLE
    generator = np.random.default_rng(context.seed)
    stream = ActivationStream(context.model.proto, [reader.tensor for reader in readers], context.options)
    for batch in stream.batches(samples):
        for reader, total in zip(readers, sums, strict=True):
            data = batch[reader.tensor]
            chosen = draw_rows(reader.layout.count(data), limit, generator)
            rows = reader.layout.rows(data, chosen)
            x = np.ones((len(rows), rows.shape[1] + 1))
            x[:, :-1] = rows
            np.add(total, x.T @ x, out=total)
    return sums


class _Elimination:
    """Backward elimination of one group's units, and exchanges after it.

    Parameters
    ----------
    group
        The group.
    states
        The layers that read it; they are left without the units that go.
    """

    def __init__(self, group: ChannelGroup, states: Sequence[LayerState]) -> None:
        self._group = group
        self._states = states
        self._first = group.first_unit

    def ranking(self, width: int) -> FloatArray:
        """Return the scores of the group's units, shape (width of the group,)."""
        group, order = self._group, list[int]()
        there = np.ones(group.width, dtype=np.bool_)
        quota = width // group.block_count
        while (left := int(there.sum()) - width) > 0:
            units = self._removable(there, quota)
            costs = self._sum(units, LayerState.costs)
            for unit in self._cheapest(units, costs, max(left // _STEPS, 1), there, quota):
                there[unit] = False
                order.append(unit)
                self._remove(unit)
        if width:
            self._exchange(there, order)
        values = np.zeros(group.width)
        values[order] = np.arange(len(order)) / (2 * group.width)
        stay = np.flatnonzero(there).tolist()
        if stay:
            costs = self._sum(stay, LayerState.costs)
            values[stay] = 0.5 + 0.5 * costs / max(float(costs.max()), np.finfo(np.float64).tiny)
        return values

    def _removable(self, there: BoolArray, quota: int) -> list[int]:
        """Return the units of blocks that have more than their share."""
        found = [members[there[members]] for members in self._group.members()]
        return [int(u) for units in found if len(units) > quota for u in units]

    def _cheapest(
        self, units: Sequence[int], costs: FloatArray, count: int, there: BoolArray, quota: int
    ) -> Iterator[int]:
        """Yield the cheapest units, no more of a block than may go."""
        room = {block: int(there[members].sum()) - quota for block, members in enumerate(self._group.members())}
        for position in np.argsort(costs, kind="stable").tolist():
            block = 0 if self._group.blocks is None else int(self._group.blocks[units[position]])
            if room[block] > 0:
                room[block] -= 1
                count -= 1
                yield units[position]
            if not count:
                return

    def _exchange(self, there: BoolArray, order: list[int]) -> None:
        """Exchange units that went for units that stay while the error falls; `there` and `order` follow."""
        if not self._states or sum(len(state.weights) for state in self._states) > _LARGEST_EXCHANGED:
            return
        for _ in range(_EXCHANGES):
            gains = self._sum(order, LayerState.gains)
            tried = [order[p] for p in np.argsort(-gains, kind="stable")[:_TRIED]]
            best, pair = _LEAST_IMPROVEMENT, (-1, -1)
            for back, gain in zip(tried, np.sort(-gains)[:_TRIED], strict=True):
                change = self._after(back, there, -float(gain))
                if change[0] > best:
                    best, pair = change[0], (back, change[1])
            if pair[0] < 0:
                return
            back, away = pair
            self._restore(back)
            self._remove(away)
            there[back], there[away] = True, False
            order[order.index(back)] = away

    def _after(self, back: int, there: BoolArray, gain: float) -> tuple[float, int]:
        """Return by how much the error falls when a unit comes back and the best other goes, and which that is."""
        blocks = self._group.blocks
        others = there if blocks is None else there & (blocks == blocks[back])
        units = np.flatnonzero(others).tolist()
        kept = [state.copy() for state in self._states]
        for state in kept:
            state.restore(self._first + back)
        numbers = [self._first + u for u in units]
        costs = np.sum([state.by_size(LayerState.costs, numbers) for state in kept], axis=0)
        position = int(np.argmin(costs))
        return gain - float(costs[position]), units[position]

    def _sum(self, units: Sequence[int], of: Callable[[LayerState, list[int]], FloatArray]) -> FloatArray:
        total = np.zeros(len(units))
        for state in self._states:
            total += state.by_size(of, [self._first + u for u in units])
        return total

    def _remove(self, unit: int) -> None:
        for state in self._states:
            state.remove(self._first + unit)

    def _restore(self, unit: int) -> None:
        for state in self._states:
            state.restore(self._first + unit)
