"""What the user wants the model to shrink to."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from oamip_onnx.choices import SIZES
from oamip_onnx.errors import UsageError, closest
from oamip_onnx.model import Model

_COUNTS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_TIMES: Mapping[str, int | Fraction] = {"us": Fraction(1, 1000), "ms": 1, "s": 1000}

# The costs that can be limited, each with its units in multiples of operations, parameters, milliseconds and bytes.
COSTS: Mapping[str, Mapping[str, int | Fraction]] = MappingProxyType(
    {"macs": _COUNTS, "params": _COUNTS, "latency": _TIMES, "size": SIZES}
)

# Targets that say how the widths are found, and so go with no others.
ALONE = ("ratio", "threshold", "max-drop")

KINDS = ("ratio", *COSTS, "threshold", "max-drop")

_NUMBER = re.compile(r"(?P<number>[+-]?(?:nan|inf|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?))\s*(?P<unit>\D*)")

_BOUNDS = {
    "ratio": "0 ≤ ratio < 1 (the share to remove)",
    "threshold": "0 ≤ threshold < 1 (the score above which a unit stays), or be threshold=auto",
    "max-drop": "0 ≤ max-drop < 1 (the largest drop of the metric)",
    "macs": "0 < macs ≤ 1 (the share left), or be a number of operations such as macs=250M",
    "params": "0 < params ≤ 1 (the share left), or be a number of parameters such as params=1.5M",
    "latency": "0 < latency ≤ 1 (the share left), or be a time such as latency=8ms",
    "size": "0 < size ≤ 1 (the share left), or be a size such as size=4MB",
}

# The paper's thresholds: fully connected networks, LeNet-5, its CIFAR networks.
_PAPER_THRESHOLDS = (0.1, 0.2, 0.3)

# Networks with more convolutions than LeNet-5's two get the threshold of the CIFAR networks.
_LENET_CONVOLUTIONS = 2


@dataclass(frozen=True)
class Limit:
    """One part of a target, such as ``macs=0.5`` or ``latency=8ms``.

    Attributes
    ----------
    kind
        ``ratio``: the share of the units of every group to remove; ``macs``, ``params``, ``latency`` or ``size``: the
        multiply-accumulate operations, parameters, milliseconds or bytes that may be left; ``threshold``: the OAMIP
        score above which a unit stays; ``max-drop``: how far the metric may drop.
    value
        The share, the cost in operations, parameters, milliseconds or bytes, the score, or the drop; NaN for
        ``threshold=auto``, the paper's choice by architecture.
    is_share
        Whether a cost is limited to a share of the original's; False for kinds that are no costs.
    unit
        The unit that the user wrote; empty for shares and plain numbers.
    """

    kind: str
    value: float
    is_share: bool = False
    unit: str = ""

    def absolute(self, whole: float) -> float:
        """Return the limit of a cost in operations, parameters, milliseconds or bytes.

        Parameters
        ----------
        whole
            What the original costs, in the same unit.
        """
        if not self.is_share:
            return self.value
        # The decimal fraction that the user wrote: 0.7 of 10⁹ operations are 7 · 10⁸, which floats may miss.
        return float(Fraction(repr(float(self.value))) * Fraction(whole))

    def shown(self, cost: float, whole: float) -> str:
        """Return a cost as the user writes its limit: as a share of `whole`, or in the limit's unit, rounded up.

        Parameters
        ----------
        cost, whole
            What the model and the original cost, in operations, parameters, milliseconds or bytes.
        """
        if self.is_share:
            return f"{cost / whole if whole else 0.0:.3f}"
        amount = cost / self._factor
        # Four significant digits, but counts to the last operation where there is no unit.
        digits = max(3 - math.floor(math.log10(amount)), 0) if amount > 0 and self.unit else 0
        # The slack keeps 0.3 from becoming 0.3001 by its last binary digit.
        return f"{math.ceil(amount * 10**digits - 1e-9) / 10**digits:.{digits}f}{self.unit}"

    @property
    def _factor(self) -> float:
        return float(COSTS[self.kind][self.unit]) if self.unit else 1.0

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"{self.kind}=auto"
        plain_count = self.kind in COSTS and not self.is_share and not self.unit
        number = (
            f"{self.value:.0f}" if plain_count else format(self.value / self._factor, "g" if not self.unit else ".12g")
        )
        return f"{self.kind}={number}{self.unit}"


@dataclass(frozen=True)
class Target:
    """A target such as ``ratio=0.5`` or ``macs=0.5,latency=8ms``.

    Attributes
    ----------
    limits
        Its parts, at least one, each of another kind; several are costs that must all be met.
    """

    limits: tuple[Limit, ...]

    @property
    def kind(self) -> str:
        """Kind of the only limit; ``several`` where there are more."""
        return self.limits[0].kind if len(self.limits) == 1 else "several"

    @property
    def value(self) -> float:
        """Value of the only limit; NaN where there are more."""
        return self.limits[0].value if len(self.limits) == 1 else math.nan

    def __str__(self) -> str:
        return ",".join(str(limit) for limit in self.limits)


def parse_target(text: str) -> Target:
    """Return the target that a text such as ``ratio=0.5``, ``macs=250M`` or ``macs=0.5,latency=8ms`` names.

    Raises
    ------
    UsageError
        If a kind is unknown, given twice, or one that stands alone and does not; or a value is no number in its range,
        or has an unknown unit.
    """
    parts = text.split(",")
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise UsageError(f"The target {text!r} has an empty part; put one comma between two limits and no other.")
    limits = tuple(_parse_limit(part) for part in parts)
    kinds = [limit.kind for limit in limits]
    alone = [kind for kind in kinds if kind in ALONE]
    if alone and len(kinds) > 1:
        standing = f"{', '.join(ALONE[:-1])} and {ALONE[-1]}"
        raise UsageError(f"The target {text!r} combines {alone[0]} with others; {standing} stand alone.")
    twice = [kind for kind in KINDS if kinds.count(kind) > 1]
    if twice:
        raise UsageError(f"The target {text!r} limits {twice[0]} twice; leave the larger limit out.")
    return Target(limits)


def _parse_limit(text: str) -> Limit:
    kind, separator, value_text = text.partition("=")
    kind, value_text = kind.strip(), value_text.strip()
    if not separator:
        raise UsageError(f"The target {text!r} has no value; write for example ratio=0.5.")
    if kind not in KINDS:
        raise UsageError(f"The target {kind!r} is unknown{closest(kind, KINDS)}; known: {', '.join(KINDS)}.")
    if kind == "threshold" and value_text == "auto":
        return Limit(kind, math.nan)
    found = _NUMBER.fullmatch(value_text)
    if found is None:
        raise UsageError(f"The target {text!r} needs a number after '='.")
    number, unit = found["number"], found["unit"]
    value, units = float(number), COSTS.get(kind, {})
    if unit and unit not in units:
        known = f"known: {', '.join(units)}" if units else f"{kind} has none"
        raise UsageError(f"The target {text!r} has the unknown unit {unit!r}{closest(unit, units)}; {known}.")
    # Only whole numbers count operations and parameters, so that 1.5 is no slip for 1.5M.
    is_count = units is _COUNTS and value > 1 and value.is_integer() and "." not in number
    if kind in ALONE:
        valid = 0 <= value < 1
    elif unit or is_count:
        valid = 0 < value < math.inf
    else:
        valid = 0 < value <= 1
    if not valid:
        raise UsageError(f"The target {text!r} is out of range; it must hold {_BOUNDS[kind]}.")
    if unit:
        value = float(Fraction(number) * units[unit])
    return Limit(kind, value, kind in COSTS and not unit and not is_count, unit)


def paper_threshold(model: Model) -> float:
    """Return the paper's threshold for a network like this: 0.1 without convolutions, 0.2 for LeNet-5, 0.3 beyond."""
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    return _PAPER_THRESHOLDS[(convolutions > 0) + (convolutions > _LENET_CONVOLUTIONS)]
