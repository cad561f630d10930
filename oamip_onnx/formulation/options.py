"""Settings of the shift form."""

from dataclasses import dataclass

from oamip_onnx.formulation.bounds import PAPER_RADIUS
from oamip_onnx.formulation.program import FloatArray

# The weight λ of the loss in the paper.
PAPER_LOSS_WEIGHT = 5.0

# About this many undecided states is what the solvers here can take, binary or relaxed.
LARGEST_OPEN = 1000


@dataclass(frozen=True)
class ShiftOptions:
    """Settings of the shift form.

    Attributes
    ----------
    loss_weight
        λ.
    radius
        ε of the box around each sample; see `interval_bounds`.
    domain
        Smallest and largest input value, for clipping the box.
    inactive_rows
        Whether ReLUs that are decided off also impose ``L ≤ a ≤ 0``, as the authors' rows do. With a small ε this
        forces s close to 1 wherever a unit feeds anything; for reproducing the paper.
    largest_open
        Where the box leaves more states than this undecided (its bounds widen with depth), it is shrunk to the sample
        itself, and a note says so.
    trust_radius
        Where given, the *valid* version: bounds ``a⁰ ∓ r·scale`` with the rows ``L ≤ a ≤ U`` and L - U⁺ for L in the
        last row. Nearly every state is then undecided: for tiny networks.
    layer_rescale
        ``mean`` for the sum of all layer means, ``largest`` for the authors' K - 1 largest.
    weights
        Weight of each score in the sparsity term, shape (units,); 1 by default.
    anchor
        δ of ``|q - q⁰| ≤ δ``; no anchor by default.
    costs, budget
        Cost of each unit and the limit of ``Σ cost_g s_g``; no budget by default.
    """

    loss_weight: float = PAPER_LOSS_WEIGHT
    radius: float = PAPER_RADIUS
    domain: tuple[float, float] | None = None
    inactive_rows: bool = False
    largest_open: int = LARGEST_OPEN
    trust_radius: float | None = None
    layer_rescale: str = "mean"
    weights: FloatArray | None = None
    anchor: float | None = None
    costs: FloatArray | None = None
    budget: float | None = None
