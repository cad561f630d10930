"""OAMIP in shift form: the network itself as constraints, all layers and images in one program.

The program is stated in `oamip_onnx.formulation.oamip`. It expresses affine layers, ReLU, pooling, batch norm, addition
and flattening; anything else is refused by name and position. Undecided ReLU states make it a mixed-integer program,
which SCIP takes up to `LARGEST_BINARY` of them; beyond that they are relaxed, and the report says so.
"""

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import Samples
from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.formulation import ShiftOptions, build_network, shift_program
from oamip_onnx.importance.logits import balanced_rows
from oamip_onnx.importance.protocol import ImportanceContext
from oamip_onnx.importance.scores import Scores
from oamip_onnx.solvers import ConicSolver, IntegerSolver

# The paper's number of images: one of each class of its data sets.
IMAGES = 10

# About this many free binaries SCIP closes within a minute.
LARGEST_BINARY = 100


def shift_scores(context: ImportanceContext, options: ShiftOptions | None = None, images: int = IMAGES) -> Scores:
    """Return the scores of the joint program on a few images.

    Raises
    ------
    UnsupportedOperatorError
        If the program cannot express an operator, or the model does not classify.
    SolverError
        If the program has no solution.
    """
    samples, labels = _images(context, images)
    network = build_network(context.model, context.analysis, context.logits)
    context.report("shift form: build", 0.0)
    program = shift_program(network, samples.feeds, labels, options)
    exact = 0 < program.binary_count <= LARGEST_BINARY
    solver = IntegerSolver(seed=context.seed) if exact else ConicSolver()
    context.report("shift form: solve", 0.5)
    solution = solver.solve(program)
    values = np.clip(solution.x[program.block("scores").columns], 0.0, 1.0)
    notes = [f"Shift form: {samples.count} samples, {program.variable_count} variables.", *program.notes]
    if program.binary_count > LARGEST_BINARY:
        notes.append(f"{program.binary_count} binaries were relaxed: more than {LARGEST_BINARY} take SCIP too long.")
    return Scores(values, "oamip", "shift", (solution.result,), tuple(notes))


def _images(context: ImportanceContext, count: int) -> tuple[Samples, npt.NDArray[np.int64]]:
    """Return a few samples, balanced by class, and their labels: given ones, else the model's own predictions."""
    values = context.outputs
    if values.ndim != 2 or values.shape[1] < 2:
        raise UnsupportedOperatorError(
            f"The shift form needs the logits of a classifier; {context.logits!r} has the shape {values.shape}. "
            "Use form=response or form=layerwise."
        )
    predicted = values.argmax(axis=1).astype(np.int64)
    labels = predicted if context.samples.labels is None else context.samples.labels
    # An image that the model gets wrong would drive scores towards a wrong answer.
    right = np.flatnonzero(predicted == labels)
    candidates = right if len(right) >= min(count, context.samples.count) else np.arange(context.samples.count)
    rows = candidates[balanced_rows(labels[candidates], count, context.seed)]
    samples = context.samples.take(rows)
    return samples, labels[rows][: samples.count]
