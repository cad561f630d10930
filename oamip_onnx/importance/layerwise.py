"""OAMIP decoupled by layer: one small program a group, on recorded activations.

The layer's input is fixed to what was recorded, so that a unit's activation is linear in its score, h = s·h⁰. On top of
the layer stands an auxiliary head, a linear classifier fitted to the original's own predictions on pooled activations.
With φ_if the pooled activation f of sample i, A and b the head's weights, and g(f) the unit that f belongs to, solve

    min 1/n Σ_i [log Σ_c exp q_ic − p_iᵀ q_i],    q_ic = b_c + Σ_f s_g(f) A_cf φ_if,    0 ≤ s ≤ 1,    Σ s = k,

which is the response form's program with the responses Δ_{g,ic} = −Σ_{f∈g} A_cf φ_if. (ElAraby, Wolf, Carvalho 2020,
section on decoupling; their head pools, applies 1×1 convolutions and trains them.) Only recorded activations enter:
it works on any graph, and no program grows with the network.
"""

import warnings

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import ActivationStream, Samples
from oamip_onnx.channels import ChannelGroup, Contraction
from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.importance.logits import LARGEST_CLASSES, Loss, loss_of, pooled
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.response import response_program, select_samples
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.model import Array
from oamip_onnx.solvers import ConicSolver, SolverResult

# Planes are pooled to this many parts an axis, as in the paper's auxiliary network.
_PARTS = 2

_HEAD_ITERATIONS = 300

# Outputs beyond this many are pooled before a head is fitted to them.
_LARGEST_OUTPUTS = 64


def layerwise_scores(context: ImportanceContext) -> Scores:
    """Return the scores of one program per group, under its planned width.

    Raises
    ------
    SolverError
        If a program has no solution.
    UnsupportedOperatorError
        If a layer does not tell the samples apart as the output does.
    """
    samples = select_samples(context, context.images)
    loss = _targets(context, samples)
    values = np.zeros(context.analysis.unit_count)
    solves: list[SolverResult] = []
    for number, (group, width) in enumerate(zip(context.analysis.groups, context.widths, strict=True)):
        ends = _ends(context, group)
        if not ends:
            continue  # nothing reads these units: they are worth nothing
        changes, base = _contributions(context, group, ends, samples, loss)
        owner = np.zeros(group.width, dtype=np.int64)
        program = response_program(f"layer {group.name}", base, changes, loss, owner, [width])
        solution = ConicSolver().solve(program)
        values[group.units] = np.clip(solution.x[: group.width], 0.0, 1.0)
        solves.append(solution.result)
        context.report("layer-wise programs", (number + 1) / len(context.analysis.groups))
    note = f"Layer-wise form: {samples.count} samples, one program for each of {len(solves)} groups, linear head."
    return Scores(values, "oamip", "layerwise", tuple(solves), (note,))


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


def _contributions(
    context: ImportanceContext, group: ChannelGroup, ends: dict[str, Contraction], samples: Samples, loss: Loss
) -> tuple[FloatArray, FloatArray]:
    """Return −Σ A φ of every unit, shape (units, samples · classes), and the head's output q⁰, (samples, classes)."""
    features, units = _features(context, group, ends, samples)
    if len(features) != len(loss.targets):
        raise UnsupportedOperatorError(
            f"The layer-wise form finds {len(features)} samples at {next(iter(ends))!r} and {len(loss.targets)} at the "
            "output; use the response form."
        )
    scale = np.maximum(features.std(axis=0), 1e-6)
    weights, bias = _head(features / scale, loss)
    weights = weights / scale
    base = features @ weights.T + bias
    changes = np.zeros((group.width, base.size))
    for unit in range(group.width):
        own = units == unit
        changes[unit] = -(features[:, own] @ weights[:, own].T).ravel()
    return changes, base


def _head(features: FloatArray, loss: Loss) -> tuple[FloatArray, FloatArray]:
    """Return the weights, (classes, features), and the bias of a linear head fitted to the original's answers."""
    # scikit-learn takes a second to import, which commands that do not score should not wait for.
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression, Ridge  # noqa: PLC0415

    if not loss.classifies:
        ridge = Ridge(alpha=1.0).fit(features, loss.targets)
        return np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
    labels = loss.targets.argmax(axis=1)
    head = LogisticRegression(C=1.0, max_iter=_HEAD_ITERATIONS)
    with warnings.catch_warnings():
        # A head that is close to its optimum ranks units as well as one that is there.
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.fit(features, labels)
    if len(head.classes_) == 2:
        # One row stands for the second class; the first has the opposite sign.
        return np.concatenate([-head.coef_, head.coef_]) / 2, np.concatenate([-head.intercept_, head.intercept_]) / 2
    return head.coef_, head.intercept_


def _features(
    context: ImportanceContext, group: ChannelGroup, ends: dict[str, Contraction], samples: Samples
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return the pooled activations where the group's units end, (samples, features), and each feature's unit."""
    inside = range(group.first_unit, group.first_unit + group.width)
    stream = ActivationStream(context.model.proto, list(ends), context.options)
    # Where a tensor has the samples on another axis (a recurrent layer's batch, windows of a plane), each runs alone.
    kept_apart = all(context.analysis.types[name].shape[0] == _traced_batch(context) for name in ends)
    alone = samples.by_run or not kept_apart
    step = samples.run_size or 1
    runs = [samples.take(range(i, i + step)) for i in range(0, samples.count, step)] if alone else [samples]
    parts: list[FloatArray] = []
    owners: list[npt.NDArray[np.int64]] = []
    for run in runs:
        for batch in stream.batches(run):
            pooled_batch = []
            owners = []
            for name, contraction in ends.items():
                values, units = batch[name], contraction.units
                pooled_values, own = _pool(values[None] if alone else values, units[None] if alone else units)
                mine = (own >= inside.start) & (own < inside.stop)
                pooled_batch.append(pooled_values[:, mine])
                owners.append(own[mine] - group.first_unit)
            parts.append(np.concatenate(pooled_batch, axis=1))
    return np.concatenate(parts), np.concatenate(owners)


def _traced_batch(context: ImportanceContext) -> int:
    """Return the size of the sample axis at which the shapes were traced."""
    return context.analysis.types[context.model.input_names[0]].shape[0]


def _pool(values: Array, units: npt.NDArray[np.int64]) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return activations averaged over parts of the axes that carry no units, as (samples, features), and the units."""
    array = values.astype(np.float64)
    for axis in range(1, array.ndim):
        if units.shape[axis] == 1 and array.shape[axis] > 1:
            pieces = np.array_split(array, min(_PARTS, array.shape[axis]), axis=axis)
            array = np.concatenate([p.mean(axis=axis, keepdims=True) for p in pieces], axis=axis)
    owners = np.broadcast_to(units, (1, *array.shape[1:])).ravel()
    return array.reshape(len(array), -1), owners
