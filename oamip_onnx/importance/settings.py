"""What a user may choose of OAMIP."""

from dataclasses import dataclass, field

from oamip_onnx.choices import PAPER_LOSS_WEIGHT, Decoupling, Form, Head
from oamip_onnx.solvers import SolverOptions
from oamip_onnx.tasks import TaskOptions


@dataclass(frozen=True)
class OamipSettings:
    """Settings of OAMIP.

    Attributes
    ----------
    form
        ``auto``, ``response``, ``layerwise``, ``shift`` or ``gate``.
    images
        Samples that enter a program; None for the form's own number: 10 in the joint forms, 200 elsewhere.
    rounds
        Rounds of the response form.
    exchanges
        Most rounds of exchange after them, in the response form.
    by_class
        Decoupling by class: one program a class, a unit's score being the ``mean`` or the ``max`` of those.
    head
        Auxiliary network of the layer-wise form: a ``linear`` probe, one ``hidden`` layer, or the paper's ``pooled``
        network.
    loss_weight
        λ of the joint forms.
    reweightings
        Further solves of the joint forms with weights 1/(s + ε), which drive scores apart that would shrink evenly.
    anchor
        δ of ``|q - q⁰| ≤ δ`` in the joint forms; None for no anchor.
    binary_scores
        Whether the joint forms' scores of the last hidden group must be 0 or 1, which makes a search of the program.
    tighten_seconds
        Time for tightening the gate form's bounds by linear and integer programs; 0 for intervals alone.
    paper
        Whether the joint program takes the authors' rows, their sparsity term and their choice of images.
    certificates
        Whether groups of up to 64 units get a quadratic certificate, by SCIP.
    solver
        Engine and limits.
    tasks
        Where independent programs run, and whether they are cached.
    """

    form: Form = "auto"
    images: int | None = None
    rounds: int = 4
    exchanges: int = 6
    by_class: Decoupling = "none"
    head: Head = "linear"
    loss_weight: float = PAPER_LOSS_WEIGHT
    reweightings: int = 0
    anchor: float | None = None
    binary_scores: bool = False
    tighten_seconds: float = 0.0
    paper: bool = False
    certificates: bool = False
    solver: SolverOptions = field(default_factory=SolverOptions)
    tasks: TaskOptions = field(default_factory=TaskOptions)
