"""OAMIP in shift and in gate form: the network itself as constraints, all layers and images in one program.

The program is stated in `oamip_onnx.formulation.joint`. It expresses affine layers, ReLU, pooling, batch norm, addition
and flattening; anything else is refused by name and position. Undecided ReLU states make it a mixed-integer program,
which SCIP takes up to `LARGEST_BINARY` of them; beyond that they are relaxed, and the report says so.

Decoupled by class, there is one program a class, of that class's images, and a unit's score is the mean (the paper's
choice) or the largest of those.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from oamip_onnx.channels import ChannelGroup, select_units
from oamip_onnx.formulation import (
    Bounds,
    JointForm,
    JointOptions,
    JointProgram,
    Network,
    build_network,
    joint_program,
    score_aware_bounds,
)
from oamip_onnx.importance.certificates import Certificate, certificate
from oamip_onnx.importance.decoupling import by_class, combined, mean_expected_loss
from oamip_onnx.importance.logits import balanced_rows, hardest_rows
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.importance.settings import OamipSettings
from oamip_onnx.model import Array, ints_attribute
from oamip_onnx.solvers import Solution, SolverResult
from oamip_onnx.tightening import tighten

IntArray = npt.NDArray[np.int64]

# The paper's number of images: one of each class of its data sets.
IMAGES = 10

# ε of the reweighted ℓ1 scheme: scores far below it count as zero.
_REWEIGHTING = 0.1

PAPER_NOTE = (
    "Paper preset: the authors' rows and sparsity term. It differs from their code in that max-pools are fixed at the "
    "forward pass's winner (their networks have average pools), and that undecided states are solved exactly up to "
    "the solver's limit (theirs were relaxed in nearly all runs)."
)


def joint_scores(context: ImportanceContext, options: JointOptions | None = None) -> Scores:
    """Return the scores of the joint program on a few images, in the form that the settings name.

    Parameters
    ----------
    context
        The model, its samples, the settings.
    options
        The program's settings, where they are not to follow from `OamipSettings`.

    Raises
    ------
    UnsupportedOperatorError
        If the program cannot express an operator.
    SolverError
        If a program has no solution.
    """
    settings = context.oamip
    rows, targets, notes = _images(context)
    # No session runs on these samples, so that a fixed batch need not be filled.
    samples = {name: values[rows] for name, values in context.samples.feeds.items()}
    network = build_network(context.model, context.analysis, context.logits)
    options = options or _options(context, settings)
    if targets.ndim == 2:
        options = replace(options, loss="squared-error")
    classes = np.asarray(targets if targets.ndim == 1 else np.zeros(len(targets)), np.int64)
    parts = by_class(classes, settings.by_class)
    fed = [{name: values[part] for name, values in samples.items()} for part in parts]
    bounds = [_bounds(context, network, feeds, options) for feeds in fed]
    results: list[SolverResult] = []
    for step in range(settings.reweightings + 1):
        context.report(f"{options.form} form", step, settings.reweightings + 1)
        joints = [
            joint_program(network, feeds, targets[part], options, own)
            for part, feeds, own in zip(parts, fed, bounds, strict=True)
        ]
        solutions = context.solve([joint.program for joint in joints])
        results += [solution.result for solution in solutions]
        found = [
            np.clip(solution.x[joint.program.block("scores").columns], 0.0, 1.0)
            for joint, solution in zip(joints, solutions, strict=True)
        ]
        scores = combined(found, settings.by_class)
        options = replace(options, weights=_reweighted(scores))
    certificates = _certificates(context, joints, solutions, scores)
    notes = [*notes, *_program_notes(len(rows), joints, context)]
    expected = None
    if options.widths is None:
        expected = mean_expected_loss([joint.program for joint in joints], solutions, options.loss_weight)
    return Scores(scores, "oamip", options.form, tuple(results), tuple(notes), certificates, expected)


def _bounds(
    context: ImportanceContext, network: Network, feeds: Mapping[str, Array], options: JointOptions
) -> Bounds | None:
    """Return the gate form's bounds, tightened by linear and integer programs where time is given for it."""
    if options.form != "gate" or not context.oamip.tighten_seconds:
        return None
    bounds = score_aware_bounds(network, feeds)
    context.report("gate form: bounds", 0.0)
    return tighten(network, bounds, context.oamip.tighten_seconds, seed=context.seed, scored=True).bounds


def _binary_scores(context: ImportanceContext) -> npt.NDArray[np.bool_] | None:
    """Return which scores are binary: those of the last hidden group, where the search is to decide them."""
    if not context.oamip.binary_scores:
        return None
    owner = context.analysis.group_of_unit()
    return np.asarray(owner == owner.max())


def _reweighted(scores: FloatArray) -> FloatArray:
    """Return ``1/(s + ε)``, scaled to a mean of 1 so that λ keeps its meaning (Candès, Wakin, Boyd 2008)."""
    weights = 1.0 / (scores + _REWEIGHTING)
    return np.asarray(weights / weights.mean(), np.float64)


def _certificates(
    context: ImportanceContext, joints: list[JointProgram], solutions: list[Solution], scores: FloatArray
) -> tuple[Certificate, ...]:
    """Return how far the chosen subset is from the bound: in the gate form every subset is a point of the program."""
    first = joints[0]
    if first.options.form != "gate" or context.widths is None or len(joints) > 1:
        return ()
    kept = select_units(context.analysis, context.widths, scores)
    value = first.program.objective(first.point(kept.astype(np.float64)))
    statement = "On the program's images no subset of these widths has a loss below the bound."
    return (certificate("chosen subset", statement, value, solutions[0].result),)


def authors_options(context: ImportanceContext) -> JointOptions:
    """Return the authors' program: their rows, and the K - 1 largest layer means with their divisors.

    The mean of a convolution's scores is divided by out·kh·kw.
    """
    sizes = [float(group.width * _kernel_size(context, group)) for group in context.analysis.groups]
    return JointOptions(
        loss_weight=context.oamip.loss_weight,
        inactive_rows=True,
        layer_rescale="largest",
        layer_sizes=np.array(sizes),
        domain=_data_range(context),
    )


def _data_range(context: ImportanceContext) -> tuple[float, float]:
    """Return the smallest and largest value of the samples; [0, 1] for the authors' images."""
    arrays = list(context.samples.feeds.values())
    return float(min(a.min() for a in arrays)), float(max(a.max() for a in arrays))


def _kernel_size(context: ImportanceContext, group: ChannelGroup) -> int:
    node = context.model.graph.node[context.model.producers[group.tensors[0]]]
    return int(np.prod(ints_attribute(node, "kernel_shape") or [1])) if node.op_type == "Conv" else 1


def _options(context: ImportanceContext, settings: OamipSettings) -> JointOptions:
    form: JointForm = "gate" if settings.form == "gate" else "shift"
    if settings.paper and form == "shift":
        options = authors_options(context)
    elif form == "gate" and context.widths is not None:
        # The planned widths take the place of the sparsity term: a budget row stops scores from shrinking evenly.
        options = JointOptions(form=form, loss_weight=1.0, widths=context.widths)
    else:
        options = JointOptions(form=form, loss_weight=settings.loss_weight)
    return replace(options, anchor=settings.anchor, binary_scores=_binary_scores(context))


def _program_notes(images: int, joints: list[JointProgram], context: ImportanceContext) -> list[str]:
    first, form = joints[0], joints[0].options.form
    variables = max(joint.program.variable_count for joint in joints)
    programs = "" if len(joints) == 1 else f" in {len(joints)} programs, one a class"
    notes = [f"{form.capitalize()} form: {images} samples{programs}, at most {variables} variables."]
    notes += [note for joint in joints for note in joint.program.notes]
    largest = max(joint.program.binary_count for joint in joints)
    limit = context.oamip.solver.largest_binary
    if largest > limit:
        notes.append(f"{largest} binaries were relaxed: more than {limit} take SCIP too long.")
    if context.oamip.paper and first.options.inactive_rows:
        notes.append(PAPER_NOTE)
    return list(dict.fromkeys(notes))


def _images(context: ImportanceContext) -> tuple[IntArray, IntArray | FloatArray, list[str]]:
    """Return the rows of a few samples, balanced by class, their classes or outputs, and notes on both."""
    values, count = context.outputs, context.oamip.images or IMAGES
    if values.ndim != 2 or values.shape[1] < 2:
        rows = np.arange(min(count, context.samples.count), dtype=np.int64)
        return rows, values[rows].reshape(len(rows), -1).astype(np.float64), []
    predicted = values.argmax(axis=1).astype(np.int64)
    labels = predicted if context.samples.labels is None else context.samples.labels
    # An image that the model gets wrong would drive scores towards a wrong answer.
    right = np.flatnonzero(predicted == labels)
    candidates = right if len(right) >= min(count, context.samples.count) else np.arange(context.samples.count)
    if context.oamip.paper:
        own = softmax(values.astype(np.float64), axis=1)[candidates, labels[candidates]]
        rows = candidates[hardest_rows(labels[candidates], own, count)]
    else:
        rows = candidates[balanced_rows(labels[candidates], count, context.seed)]
    return rows, labels[rows], _image_notes(values.shape[1], labels, predicted, rows)


def _image_notes(classes: int, labels: IntArray, predicted: IntArray, rows: IntArray) -> list[str]:
    notes = []
    wrong = int((predicted[rows] != labels[rows]).sum())
    if wrong:
        notes.append(
            f"The model gets {wrong} of the {len(rows)} images wrong; their labels enter the loss as they are."
        )
    missing = classes - len(np.unique(labels[rows]))
    if missing:
        fewer = f", fewer than there are classes ({classes})" if len(rows) < classes else ""
        notes.append(
            f"The program has {len(rows)} images{fewer}; {missing} of the {classes} classes "
            "have none, and units that only these need look unimportant."
        )
    return notes
