"""OAMIP decoupled by layer: one small program a group, on recorded activations.

The layer's input is fixed to what was recorded, so that a unit's activation is linear in its score, h = s·h⁰. On top of
the layer stands an auxiliary network (`heads`), fitted to the original's own predictions on pooled activations; the
program is the gate form of these two layers under the group's planned width,

    min 1/n Σ_i [log Σ_c exp q_ic − p_iᵀ q_i],    q_i = head(s·φ_i),    0 ≤ s ≤ 1,    Σ s = k

with φ_i the pooled activations of sample i. (ElAraby, Wolf, Carvalho 2020, section on decoupling.) With the linear head
only scores are variables. Decoupled by class as well, there is one program a (layer, class). Only recorded activations
enter: it works on any graph, and no program grows with the network. Planes are pooled to at most `_POSITIONS` positions
an axis, which is all the spatial detail that a program sees.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import ActivationStream, Samples
from oamip_onnx.channels import ChannelGroup, Contraction
from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.formulation import JointOptions, LossKind, joint_program
from oamip_onnx.importance.decoupling import by_class, combined, mean_expected_loss
from oamip_onnx.importance.heads import fit_head, head_of, quadrants
from oamip_onnx.importance.logits import LARGEST_CLASSES, Loss, loss_of, pooled
from oamip_onnx.importance.measuring import IMAGES, select_samples
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.model import Array
from oamip_onnx.tasks import TaskData

# Planes are pooled to this many positions an axis: for the heads over all positions as in the paper's last pooling, for
# the convolutional one a quarter of a 16 × 16 plane.
_POSITIONS = {"linear": 2, "hidden": 2, "pooled": 4}

# Outputs beyond this many are pooled before a head is fitted to them.
_LARGEST_OUTPUTS = 64


@dataclass(frozen=True)
class _Features:
    """Pooled activations of one group where its units end.

    Attributes
    ----------
    values
        Shape (samples, positions, channels).
    units
        Unit within the group of each (position, channel), FIXED for what belongs to other groups; flattened.
    grid
        Number of positions along each pooled axis.
    """

    values: FloatArray
    units: npt.NDArray[np.int64]
    grid: tuple[int, ...]


def layerwise_scores(context: ImportanceContext) -> Scores:
    """Return the scores of one program per group, or per group and class, under its planned width if there is one.

    Raises
    ------
    SolverError
        If a program has no solution.
    UnsupportedOperatorError
        If a layer does not tell the samples apart as the output does.
    """
    settings = context.oamip
    samples = select_samples(context, settings.images or IMAGES)
    loss = _targets(context, samples)
    parts = by_class(loss.likeliest, settings.by_class)
    layers, features = [], []
    for number, group in enumerate(context.analysis.groups):
        ends = _ends(context, group)
        if ends:  # units that nothing reads are worth nothing
            layers.append(number)
            features.append(_features(context, group, ends, samples, loss))
        context.report("layer-wise activations", number + 1, len(context.analysis.groups))
    heads = [
        head_of(result) for result in context.run(fit_head, [_head_task(context, f, loss) for f in features], "heads")
    ]
    programs = []
    for number, feature, head in zip(layers, features, heads, strict=True):
        group = context.analysis.groups[number]
        network = head.network(feature.units, group.width)
        options = _options(context, number, loss)
        flat = feature.values.reshape(samples.count, -1)
        for rows in parts:
            joint = joint_program(network, {"activations": flat[rows]}, loss.targets[rows], options)
            programs.append(replace(joint.program, task=f"layer {group.name}"))
    context.report("layer-wise programs", 0.5)
    solutions = context.solve(programs)
    values = np.zeros(context.analysis.unit_count)
    for position, number in enumerate(layers):
        group = context.analysis.groups[number]
        own = solutions[position * len(parts) : (position + 1) * len(parts)]
        values[group.units] = combined([np.clip(s.x[: group.width], 0.0, 1.0) for s in own], settings.by_class)
    note = (
        f"Layer-wise form: {samples.count} samples, {len(programs)} programs for {len(layers)} groups, "
        f"{settings.head} head, at most {_POSITIONS[settings.head]} positions an axis."
    )
    expected = None
    if context.widths is None:
        expected = mean_expected_loss(programs, solutions, settings.loss_weight)
    return Scores(values, "oamip", "layerwise", tuple(s.result for s in solutions), (note,), expected_loss=expected)


def _options(context: ImportanceContext, number: int, loss: Loss) -> JointOptions:
    kind: LossKind = "marginal-softmax" if loss.classifies else "squared-error"
    if context.widths is None:
        return JointOptions(form="gate", loss=kind, loss_weight=context.oamip.loss_weight)
    return JointOptions(form="gate", loss=kind, loss_weight=1.0, widths=[context.widths[number]])


def _head_task(context: ImportanceContext, features: _Features, loss: Loss) -> TaskData:
    arrays = {"features": features.values, "targets": loss.targets, "pooling": quadrants(features.grid)}
    settings = {"kind": context.oamip.head, "classifies": loss.classifies, "seed": context.seed}
    return TaskData(arrays, settings)


def _targets(context: ImportanceContext, samples: Samples) -> Loss:
    """Return the loss towards the original, over the classes that it predicts on these samples."""
    stream = ActivationStream(context.model.proto, [context.logits], context.options)
    raw = np.concatenate([batch[context.logits] for batch in stream.batches(samples)])
    if raw.ndim == 2 and raw.shape[1] > 1:
        present = np.unique(raw.argmax(axis=1))
        # With more classes a head would see too few samples of each.
        if 1 < len(present) <= LARGEST_CLASSES:
            chosen = raw[:, present]
            return loss_of(chosen.shape, chosen)
    values = pooled(raw)
    if values.shape[1] > _LARGEST_OUTPUTS:
        values = pooled(values[:, None, :])
    return Loss(classifies=False, targets=values)


def _ends(context: ImportanceContext, group: ChannelGroup) -> dict[str, Contraction]:
    """Return where a group's units end, by tensor; recurrent weights, where no data pass, are left out."""
    ends: dict[str, Contraction] = {}
    inside = range(group.first_unit, group.first_unit + group.width)
    for contraction in context.analysis.contractions:
        is_new = contraction.tensor not in ends and not context.model.is_constant(contraction.tensor)
        if is_new and bool(np.isin(contraction.units, inside).any()):
            ends[contraction.tensor] = contraction
    return ends


def _features(
    context: ImportanceContext, group: ChannelGroup, ends: dict[str, Contraction], samples: Samples, loss: Loss
) -> _Features:
    """Return the pooled activations where a group's units end.

    The convolutional head shares its weights among positions, so it reads one tensor, the first; the others read all.
    """
    names = list(ends)[:1] if context.oamip.head == "pooled" else list(ends)
    stream = ActivationStream(context.model.proto, names, context.options)
    # Where a tensor has the samples on another axis (a recurrent layer's batch, windows of a plane), each runs alone.
    kept_apart = all(context.analysis.types[name].shape[0] == _traced_batch(context) for name in names)
    alone = samples.by_run or not kept_apart
    step = samples.run_size or 1
    runs = [samples.take(range(i, i + step)) for i in range(0, samples.count, step)] if alone else [samples]
    most = _POSITIONS[context.oamip.head]
    rows: list[FloatArray] = []
    found: list[_Features] = []
    for batch in (b for run in runs for b in stream.batches(run)):
        found = []
        for name in names:
            values, units = batch[name], ends[name].units
            found.append(_pool(values[None] if alone else values, units[None] if alone else units, group, most))
        rows.append(np.concatenate([f.values.reshape(len(f.values), -1) for f in found], axis=1))
    stacked = np.concatenate(rows)
    if len(stacked) != len(loss.targets):
        raise UnsupportedOperatorError(
            f"The layer-wise form finds {len(stacked)} samples at {names[0]!r} and {len(loss.targets)} at the "
            "output; use the response form."
        )
    units = np.concatenate([f.units for f in found])
    if len(found) == 1:
        return _Features(stacked.reshape(len(stacked), *found[0].values.shape[1:]), units, found[0].grid)
    return _Features(stacked[:, None, :], units, (1,))


def _traced_batch(context: ImportanceContext) -> int:
    """Return the size of the sample axis at which the shapes were traced."""
    return context.analysis.types[context.model.input_names[0]].shape[0]


def _pool(values: Array, units: npt.NDArray[np.int64], group: ChannelGroup, most: int) -> _Features:
    """Return the group's activations averaged to `most` positions along the axes that carry no units."""
    array = values.astype(np.float64)
    spatial = [a for a in range(1, array.ndim) if units.shape[a] == 1]
    for axis in spatial:
        pieces = np.array_split(array, min(most, array.shape[axis]), axis=axis)
        array = np.concatenate([p.mean(axis=axis, keepdims=True) for p in pieces], axis=axis)
    grid = tuple(array.shape[a] for a in spatial)
    channels = [a for a in range(1, array.ndim) if a not in spatial]
    order = [0, *spatial, *channels]
    positions = int(np.prod(grid, dtype=np.int64))
    array = array.transpose(order).reshape(len(array), positions, -1)
    own = np.broadcast_to(units, (1, *units.shape[1:])).transpose(order).reshape(-1) - group.first_unit
    inside = (own >= 0) & (own < group.width)
    return _Features(array[:, :, inside], np.tile(own[inside], positions), grid)
