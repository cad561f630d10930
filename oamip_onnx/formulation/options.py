"""Settings of the joint program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from oamip_onnx.choices import PAPER_LOSS_WEIGHT
from oamip_onnx.formulation.bounds import PAPER_RADIUS
from oamip_onnx.formulation.constraints import Constraint
from oamip_onnx.formulation.program import FloatArray

# About this many undecided states is what the solvers here can take, binary or relaxed.
LARGEST_OPEN = 1000

JointForm = Literal["shift", "gate"]
LossKind = Literal["marginal-softmax", "hinge", "squared-error"]


@dataclass(frozen=True)
class JointOptions:
    """Settings of the joint program.

    Attributes
    ----------
    form
        ``shift`` for the authors' h = ReLU(a - (1 - s)U⁺), ``gate`` for h = s·ReLU(a), which is removal itself.
    loss
        ``marginal-softmax``, ``hinge``, or ``squared-error`` for models that do not classify.
    loss_weight
        λ.
    radius
        ε of the box around each sample; see `interval_bounds`.
    domain
        Smallest and largest input value, for clipping the box.
    inactive_rows
        Shift form: whether ReLUs that are decided off also impose ``L ≤ a ≤ 0``, as the authors' rows do. With a small
        ε this forces s close to 1 wherever a unit feeds anything; for reproducing the paper.
    largest_open
        Shift form: where the box leaves more states than this undecided (its bounds widen with depth), it is shrunk to
        the sample itself, and a note says so.
    trust_radius
        Shift form: where given, the *valid* version: bounds ``a⁰ ∓ r·scale`` with the rows ``L ≤ a ≤ U`` and L - U⁺ for
        L in the last row. Nearly every state is then undecided: for tiny networks.
    layer_rescale
        ``mean`` for the sum of all layer means, ``largest`` for the authors' K - 1 largest.
    layer_sizes
        What each group's sum of scores is divided by for its mean, shape (groups,); its width by default.
    weights
        Weight of each score in the sparsity term, shape (units,); 1 by default.
    anchor
        δ of ``|q - q⁰| ≤ δ``; no anchor by default.
    costs, budget
        Cost of each unit and the limit of ``Σ cost_g s_g``; no budget by default.
    widths
        One row ``Σ_{g∈l} s_g = width`` per group in place of the sparsity term; none by default.
    binary_scores
        Which scores must be 0 or 1, shape (units,); none by default.
    constraints
        Constraint of layer types, over the form's own table (`SHIFT_FORM`, `GATE_FORM`).
    """

    form: JointForm = "shift"
    loss: LossKind = "marginal-softmax"
    loss_weight: float = PAPER_LOSS_WEIGHT
    radius: float = PAPER_RADIUS
    domain: tuple[float, float] | None = None
    inactive_rows: bool = False
    largest_open: int = LARGEST_OPEN
    trust_radius: float | None = None
    layer_rescale: Literal["mean", "largest"] = "mean"
    layer_sizes: FloatArray | None = None
    weights: FloatArray | None = None
    anchor: float | None = None
    costs: FloatArray | None = None
    budget: float | None = None
    widths: Sequence[int] | None = None
    binary_scores: npt.NDArray[np.bool_] | None = None
    constraints: Mapping[type, Constraint] | None = None
