"""What the user wants the model to shrink to."""

import math
from dataclasses import dataclass

from oamip_onnx.errors import UsageError, closest
from oamip_onnx.model import Model

KINDS = ("ratio", "macs", "params", "threshold")

# The paper's thresholds: fully connected networks, LeNet-5, its CIFAR networks.
_PAPER_THRESHOLDS = (0.1, 0.2, 0.3)

# Networks with more convolutions than LeNet-5's two get the threshold of the CIFAR networks.
_LENET_CONVOLUTIONS = 2


@dataclass(frozen=True)
class Target:
    """A target such as ``ratio=0.5``.

    Attributes
    ----------
    kind
        ``ratio``: the share of the units of every group to remove; ``macs`` or ``params``: the share of the model's
        multiply-accumulate operations or parameters that may be left; ``threshold``: the OAMIP score above which a
        unit stays.
    value
        The share or the score, between 0 and 1; NaN for ``threshold=auto``, the paper's choice by architecture.
    """

    kind: str
    value: float

    def __str__(self) -> str:
        return f"{self.kind}={'auto' if math.isnan(self.value) else format(self.value, 'g')}"


def parse_target(text: str) -> Target:
    """Return the target that a text such as ``ratio=0.5`` names.

    Raises
    ------
    UsageError
        If the kind is unknown, or the value no number in its range.
    """
    kind, separator, value_text = text.partition("=")
    kind = kind.strip()
    if not separator:
        raise UsageError(f"The target {text!r} has no value; write for example ratio=0.5.")
    if kind not in KINDS:
        raise UsageError(f"The target {kind!r} is unknown{closest(kind, KINDS)}; known: {', '.join(KINDS)}.")
    if kind == "threshold" and value_text.strip() == "auto":
        return Target(kind, math.nan)
    try:
        value = float(value_text)
    except ValueError as error:
        raise UsageError(f"The target {text!r} needs a number after '='.") from error
    # A ratio is what goes, so 0 changes nothing; the others are what is left, so 1 changes nothing.
    valid = 0 <= value < 1 if kind in {"ratio", "threshold"} else 0 < value <= 1
    if not valid:
        bounds = {
            "ratio": "0 ≤ ratio < 1 (the share to remove)",
            "threshold": "0 ≤ threshold < 1 (the score above which a unit stays), or be threshold=auto",
        }.get(kind, f"0 < {kind} ≤ 1 (the share left)")
        raise UsageError(f"The target {text!r} is out of range; it must hold {bounds}.")
    return Target(kind, value)


def paper_threshold(model: Model) -> float:
    """Return the paper's threshold for a network like this: 0.1 without convolutions, 0.2 for LeNet-5, 0.3 beyond."""
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    return _PAPER_THRESHOLDS[(convolutions > 0) + (convolutions > _LENET_CONVOLUTIONS)]
