"""Rows for a refit: what reaches its contractions now, and what the original computed there.

Positions are drawn once for each fit, so that both models are read at the same places; those beyond what a stable
solution asks for and memory holds are left out evenly over the samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.calibration import BATCH_SIZE, ActivationStream, Samples, draw_rows, with_ones
from oamip_onnx.model import Array
from oamip_onnx.repair.context import HELD_OUT_SHARE, RepairContext
from oamip_onnx.repair.fits import Fit, kept_channels

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# Rows of a refit: so many at least, and so many for every feature, as far as there are.
_FEWEST_ROWS = 40_000
_ROWS_PER_FEATURE = 16

# Bytes of the tensors that one run of ONNX Runtime hands over.
_RUN_BYTES = 1 << 28


@dataclass(frozen=True)
class Rows:
    """What a refit reads, by group of its contraction.

    Attributes
    ----------
    features
        With a column of ones behind them, shape (groups, rows, features + 1).
    targets
        Shape (groups, rows, outputs of a group).
    bounds
        Least and largest value that the activation behind lets through, each of shape (groups, rows or 1, outputs of a
        group); None where it lets all through.
    """

    features: Float32Array
    targets: Float32Array
    bounds: tuple[Float32Array, Float32Array] | None = None


@dataclass(frozen=True)
class _Original:
    """What the original computes at the drawn positions of each run."""

    chosen: list[IntArray]
    targets: list[Float32Array]


class RowSource:
    """Rows of the fits of a repair, in network order.

    Parameters
    ----------
    context
        What the repair works on.
    fits
        What is refit.
    """

    def __init__(self, context: RepairContext, fits: Sequence[Fit]) -> None:
        self._context = context
        self._waiting = list(fits)
        self._parts = context.samples.split(HELD_OUT_SHARE)
        self._originals: dict[str, tuple[_Original, _Original]] = {}
        types = context.analysis.types
        names = [[*(part.data for part in fit.parts), fit.target] for fit in fits]
        sizes = [sum(4 * math.prod(types[name].shape[1:]) for name in group) for group in names]
        self._run_size = int(min(max(_RUN_BYTES // max(sizes, default=1), 1), BATCH_SIZE))
        self._kept = {fit.target: kept_channels(context, fit.target, fit.layout.channel_axis) for fit in fits}
        self._most_rows = {fit.target: _row_limit(context, fit) for fit in fits}

    def of(self, fit: Fit, proto: onnx.ModelProto) -> tuple[Rows, Rows]:
        """Return the rows of a fit in a model that is repaired up to it: of most samples, and of the held-out ones."""
        while fit.target not in self._originals:
            self._read_originals()
        originals = self._originals.pop(fit.target)
        names = [*(part.data for part in fit.parts), *([fit.rest] if fit.rest else [])]
        stream = ActivationStream(proto, names, self._context.options)
        first, second = (
            self._rows(fit, stream, samples, original) for samples, original in zip(self._parts, originals, strict=True)
        )
        return first, second

    def _rows(self, fit: Fit, stream: ActivationStream, samples: Samples, original: _Original) -> Rows:
        features, rests = [], []
        for batch, chosen in zip(stream.batches(samples, self._run_size), original.chosen, strict=True):
            blocks = [with_ones(p.layout.rows(batch[p.data], chosen), p.layout.groups) for p in fit.parts]
            # The column of ones stands behind the features of all parts.
            features.append(np.concatenate([*(b[:, :, :-1] for b in blocks[:-1]), blocks[-1]], axis=2))
            if fit.rest:
                rests.append(fit.layout.targets(batch[fit.rest])[chosen])
        targets = np.concatenate(original.targets)
        rest = np.concatenate(rests).astype(np.float32) if rests else np.zeros((1, targets.shape[1]), np.float32)
        groups, bounds = fit.layout.groups, None
        if fit.bounds is not None:
            kept = self._kept[fit.target]
            lower, upper = (_by_group(end[kept].astype(np.float32) - rest, groups) for end in fit.bounds)
            bounds = lower, upper
        return Rows(np.concatenate(features, axis=1), _by_group(targets - rest, groups), bounds)

    def _read_originals(self) -> None:
        """Read the original's values for the next fit and for those behind it that memory has room for."""
        batch, used = [self._waiting.pop(0)], 0
        while self._waiting:
            following = self._waiting[0]
            used += 4 * len(self._kept[following.target]) * self._most_rows[following.target]
            if used > self._context.memory_bytes:
                break
            batch.append(self._waiting.pop(0))
        model = self._context.model.proto
        stream = ActivationStream(model, [fit.target for fit in batch], self._context.options)
        found: dict[str, list[_Original]] = {fit.target: [] for fit in batch}
        for samples in self._parts:
            for fit in batch:
                found[fit.target].append(_Original([], []))
            for number, values in enumerate(stream.batches(samples, self._run_size)):
                for fit in batch:
                    self._draw(fit, values[fit.target], number, samples, found[fit.target][-1])
        self._originals |= {name: (first, second) for name, (first, second) in found.items()}

    def _draw(self, fit: Fit, values: Array, number: int, samples: Samples, into: _Original) -> None:
        rows = fit.layout.targets(values)
        step = samples.run_size or self._run_size
        here = 1 if samples.by_run else min(step, samples.count - number * step)
        limit = here * math.ceil(self._most_rows[fit.target] / self._context.samples.count)
        generator = np.random.default_rng((self._context.seed, fit.position, number))
        chosen = draw_rows(len(rows), limit, generator)
        into.chosen.append(chosen)
        into.targets.append(rows[chosen][:, self._kept[fit.target]].astype(np.float32))


def _row_limit(context: RepairContext, fit: Fit) -> int:
    """Return how many rows a fit reads at most."""
    groups, features = fit.layout.groups, feature_count(context, fit)
    limit = context.memory_bytes // (4 * groups * features)
    return min(limit, max(_FEWEST_ROWS // groups, _ROWS_PER_FEATURE * features, 1000))


def feature_count(context: RepairContext, fit: Fit) -> int:
    """Return the number of features that a group of a fit reads in the narrower model, the ones among them."""
    sizes = {t.name: math.prod(t.dims) for t in context.cut.graph.initializer}
    outputs = len(kept_channels(context, fit.target, fit.layout.channel_axis))
    return 1 + sum(sizes[part.weight] // outputs for part in fit.parts)


def few_samples_note(context: RepairContext, fits: Sequence[Fit]) -> tuple[str, ...]:
    """Return a sentence where layers have fewer output positions in all samples than features to be refit."""
    needed: dict[str, int] = {}
    for fit in fits:
        shape = context.analysis.types[fit.target].shape
        outputs = shape[fit.layout.channel_axis]
        positions = max(math.prod(shape) // max(outputs, 1) // (context.samples.run_size or 1), 1)
        wanted = math.ceil(feature_count(context, fit) / positions)
        if wanted > context.samples.count:
            needed[context.model.node_name(fit.parts[-1].index)] = wanted
    if not needed:
        return ()
    name = max(needed, key=lambda n: needed[n])
    said = f"{context.samples.count} samples are too few to refit {len(needed)} layers freely, so that they are held "
    return (f"{said}towards their old weights: {name!r} needs {needed[name]} samples.",)


def memory_finding(context: RepairContext, fit: Fit) -> str:
    """Return why memory does not suffice for a fit; empty where it does."""
    groups, features = fit.layout.groups, feature_count(context, fit)
    # The moments in double precision; two rows for every feature in single precision take as much.
    needed = 8 * groups * features**2
    if needed <= context.memory_bytes:
        return ""
    return (
        f"its {features - 1:,} features need {needed / 1e6:,.0f} MB and the memory limit is "
        f"{context.memory_bytes / 1e6:,.0f} MB (--memory-limit {needed} reaches it)"
    )


def _by_group(values: Float32Array, groups: int) -> Float32Array:
    """Return (rows, groups · outputs) as (groups, rows, outputs)."""
    return np.ascontiguousarray(values.reshape(-1, groups, values.shape[-1] // groups).swapaxes(0, 1), np.float32)
