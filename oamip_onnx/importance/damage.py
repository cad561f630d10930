"""Damage curves: what the task loses when one group alone is narrowed and its readers are refit.

Each group is eliminated on its own down to its narrowest candidate (`elimination.py`), which gives the reconstruction
error of the layers that read it at every candidate width. At a few of the widths the loss towards the original's
outputs is measured, with the readers' weights refit where a repair will do so; between them the logarithm of the loss
is interpolated along that of the error. Beyond the measured widths it goes like the error to the power of `_EXPONENT`.

How many widths and samples are measured follows from the multiply-accumulate operations of the model, so that it is the
same on every machine.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import BATCH_SIZE
from oamip_onnx.channels import FIXED, BoolArray, ChannelGroup
from oamip_onnx.importance.elimination import Elimination
from oamip_onnx.importance.logits import Loss, loss_of
from oamip_onnx.importance.measuring import select_samples
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.readers import ReaderStates, find_readers
from oamip_onnx.importance.scores import FloatArray
from oamip_onnx.importance.surgeon import LayerState
from oamip_onnx.masking import MaskedSuffixes
from oamip_onnx.model import Array, bias_of, count_costs

IntArray = npt.NDArray[np.int64]

# Multiply-accumulate operations of all measured passes together, and the widths and samples that these allow.
_MACS = 2e12
_MOST_WIDTHS, _FEWEST_SAMPLES, _MOST_SAMPLES = 7, 32, 200

# Measured on four networks, the loss of narrowing one group alone grows like its reconstruction error to this power.
_EXPONENT = 1.25

# A loss or an error below this is rounding.
_LEAST = 1e-9


def damage_curves(context: ImportanceContext, candidates: Sequence[IntArray]) -> list[FloatArray]:
    """Return the expected loss of each group at its candidate widths, the others being whole.

    Parameters
    ----------
    context
        The model, its samples and the tensor that the loss is taken of; no widths need be planned. Where its repair
        refits weights, so do the measurements.
    candidates
        Widths of each group, ascending, each with equally many units of every block.

    Returns
    -------
    list of FloatArray
        One array a group, shape (candidates,), not rising with the width, in nats for logits and else relative to the
        outputs' variance; 0 at the full width.
    """
    readers, _ = find_readers(context)
    states = ReaderStates(context, readers)
    measure = _Measurement(context)
    owners = context.analysis.group_of_unit()
    curves: list[FloatArray] = [np.zeros(len(widths)) for widths in candidates]
    for number in reversed(range(len(candidates))):
        group, own = context.analysis.groups[number], states.of(number)
        # A layer that reads several groups is narrowed by each of them alone.
        shared = [state.copy() if len(_groups_of(state, owners)) > 1 else state for state in own]
        curves[number] = _curve(measure, number, group, shared, candidates[number])
        context.report("damage", context.analysis.unit_count - group.first_unit, context.analysis.unit_count)
    return curves


def _groups_of(state: LayerState, owners: IntArray) -> IntArray:
    """Return the groups that a layer reads."""
    return np.unique(owners[state.unit_of[state.unit_of != FIXED]])


def _curve(
    measure: "_Measurement",
    number: int,
    group: ChannelGroup,
    states: Sequence[LayerState],
    widths: IntArray,
) -> FloatArray:
    narrower = [int(width) for width in widths[::-1] if width < group.width]
    if not narrower:
        return np.zeros(len(widths))
    measured = set(_spread(narrower, measure.width_count))
    errors, losses, points = [], [], []
    prefixes = measure.prefixes(number)
    for width, there, error in Elimination(group, states).walk(narrower):
        errors.append(error)
        if width in measured:
            points.append(len(errors) - 1)
            losses.append(measure.loss(number, prefixes, there, states if measure.refits else ()))
    # Without any reader in closed form the units stand in order, and the losses alone say what widths are worth.
    if errors[-1] <= _LEAST:
        errors = [float(group.width - width) for width in narrower]
    damages = _interpolated(np.array(errors), np.array(points), np.array(losses))
    return np.concatenate([damages[::-1], np.zeros(len(widths) - len(narrower))])


def _spread(widths: Sequence[int], count: int) -> list[int]:
    """Return some of the widths, evenly spread; the middle one where there is one only."""
    if count == 1:
        return [widths[len(widths) // 2]]
    places = np.linspace(0, len(widths) - 1, min(count, len(widths)))
    return [widths[round(place)] for place in places]


def _interpolated(errors: FloatArray, points: IntArray, losses: FloatArray) -> FloatArray:
    """Return the loss at every error from that at some of them; both ascend but for noise, which is evened out."""
    x = np.log(np.maximum(np.maximum.accumulate(errors), _LEAST))
    y = np.log(np.maximum(np.maximum.accumulate(losses), _LEAST))
    found = np.interp(x, x[points], y)
    first, last = points[0], points[-1]
    found[:first] = y[0] + _EXPONENT * (x[:first] - x[first])
    found[last:] = y[-1] + _EXPONENT * (x[last:] - x[last])
    return np.asarray(np.exp(found))


class _Measurement:
    """The loss of the model with one group narrowed, on a few samples."""

    def __init__(self, context: ImportanceContext) -> None:
        self._context = context
        self.refits = context.refits
        groups = max(len(context.analysis.groups), 1)
        one_run = max(count_costs(context.model, context.analysis.types).macs, 1)
        passes = _MACS / one_run * (context.samples.run_size or 1) / groups
        count = int(np.clip(passes / 2, _FEWEST_SAMPLES, _MOST_SAMPLES))
        self._samples = select_samples(context, count)
        self.width_count = int(np.clip(passes / self._samples.count, 1, _MOST_WIDTHS))
        self._suffixes = MaskedSuffixes(context.model, context.analysis, context.options, context.logits)
        self._every = np.ones(context.analysis.unit_count, dtype=np.bool_)
        original = np.concatenate(
            [self._suffixes.whole(feeds, self._every) for feeds in self._samples.batches(BATCH_SIZE)]
        )
        self._loss: Loss = loss_of(original.shape, original)

    def prefixes(self, number: int) -> list[dict[str, Array]]:
        """Return what the part of the model behind a group reads, by batch."""
        return [self._suffixes.prefix(number, feeds, self._every) for feeds in self._samples.batches(BATCH_SIZE)]

    def loss(
        self, number: int, prefixes: Sequence[Mapping[str, Array]], there: BoolArray, states: Sequence[LayerState]
    ) -> float:
        """Return the loss with some units of a group, and the weights of these layers as they are refit."""
        alive = self._every.copy()
        alive[self._context.analysis.groups[number].units] = there
        weights: dict[str, Array] = {}
        for state in states:
            weights |= self._refit(state)
        values = self._suffixes.run_changed(number, prefixes, alive, weights)
        return self._loss(self._loss.read(np.concatenate(values)))

    def _refit(self, state: LayerState) -> dict[str, Array]:
        """Return a layer's new weight, and its bias where it has one of its own; nothing where others share them."""
        model, reader = self._context.model, state.reader
        weight, bias = model.graph.node[reader.node].input[1], bias_of(model, reader.node)
        if len(model.uses[weight]) > 1 or bias is None or not model.is_constant(bias) or len(model.uses[bias]) > 1:
            return {}
        old, offset = model.array(weight), model.array(bias)
        if offset.shape != state.weights[-1].shape:
            return {}
        matrix = state.weights[:-1].astype(old.dtype)
        return {
            weight: reader.layout.weight(matrix, old),
            bias: (offset.astype(np.float64) + state.weights[-1]).astype(offset.dtype),
        }
