"""How many units of each group stay."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oamip_onnx.budget.costs import costs_of
from oamip_onnx.budget.target import Target
from oamip_onnx.channels import BoolArray, ChannelAnalysis, ChannelGroup
from oamip_onnx.errors import TargetError
from oamip_onnx.model import Model

FloatArray = npt.NDArray[np.float64]

# Groups narrower than this many alignments are cut freely: rounding would decide their width alone.
_FEWEST_ALIGNMENTS = 2

# A branch vanishes where less than half a unit would be left, whatever the alignment.
_NOTHING = 0.5

_BISECTIONS = 30


def uniform_widths(groups: Sequence[ChannelGroup], ratio: float, round_to: int = 1) -> tuple[int, ...]:
    """Return the kept width of each group when the share `ratio` of each goes.

    Parameters
    ----------
    groups
        The groups.
    ratio
        Share to remove, 0 ≤ ratio < 1.
    round_to
        Widths are rounded to the nearest multiple; groups narrower than two multiples are not aligned.

    Returns
    -------
    tuple of int
        One width a group, between its minimum and its full width, a multiple of its number of blocks.
    """
    return tuple(_width(group, ratio, round_to) for group in groups)


def _width(group: ChannelGroup, ratio: float, round_to: int) -> int:
    step = _step(group, round_to)
    # Half a unit more is rounded up: of an odd width the larger part stays.
    width = int(np.floor(group.width * (1 - ratio) / step + 0.5 + 1e-9)) * step
    if group.minimum_width == 0 and group.width * (1 - ratio) < _NOTHING:
        return 0
    if width < max(group.minimum_width, 1):
        width = max(min(step, group.width), group.minimum_width)
    return min(width, group.width)


def plan_widths(
    model: Model, analysis: ChannelAnalysis, target: Target, round_to: int = 1, original: Model | None = None
) -> tuple[int, ...]:
    """Return the kept width of each group that meets a target, the same ratio for every group.

    Parameters
    ----------
    model, analysis
        What is cut, and its channels.
    target
        What to shrink to.
    round_to
        Alignment of the widths.
    original
        What the shares are of, where that is another model than the one that is cut (a repair adds biases).

    Raises
    ------
    TargetError
        If even the narrowest model is above the target; the message says what can be reached.
    """
    if target.kind == "ratio":
        return uniform_widths(analysis.groups, target.value, round_to)

    whole = costs_of(original or model, analysis, np.ones(analysis.unit_count, dtype=np.bool_))

    def share(ratio: float) -> float:
        kept = first_units(analysis, uniform_widths(analysis.groups, ratio, round_to))
        costs = costs_of(model, analysis, kept)
        if target.kind == "macs":
            return costs.macs / max(whole.macs, 1)
        return costs.parameters / max(whole.parameters, 1)

    smallest = share(1 - 1e-9)
    if smallest > target.value:
        finer = ", and --round-to 1 reaches below it" if round_to > 1 else ""
        raise TargetError(f"The target {target} cannot be reached; the smallest possible is {smallest:.3f}{finer}.")
    low, high = 0.0, 1 - 1e-9
    if share(low) <= target.value:
        return uniform_widths(analysis.groups, low, round_to)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) <= target.value else (middle, high)
    return uniform_widths(analysis.groups, high, round_to)


def widths_above(
    groups: Sequence[ChannelGroup], scores: FloatArray, threshold: float, round_to: int = 1
) -> tuple[int, ...]:
    """Return how many units of each group score above a threshold, rounded up to what blocks and alignment ask for.

    Parameters
    ----------
    groups
        The groups.
    scores
        One score per unit of the model, shape (units,).
    threshold
        The score above which a unit stays.
    round_to
        Widths are rounded up to multiples; groups narrower than two multiples are not aligned.
    """
    widths = []
    for group in groups:
        above = scores[group.units] > threshold
        most = max(int(above[members].sum()) for members in group.members())
        step = _step(group, round_to)
        width = -(-most * group.block_count // step) * step
        widths.append(min(max(width, group.minimum_width), group.width))
    return tuple(widths)


def _step(group: ChannelGroup, round_to: int) -> int:
    aligned = group.width >= _FEWEST_ALIGNMENTS * round_to
    return int(np.lcm(group.block_count, round_to)) if aligned else group.block_count


def first_units(analysis: ChannelAnalysis, widths: Sequence[int]) -> BoolArray:
    """Return a kept vector of these widths, whichever units: costs depend on widths alone."""
    kept = np.zeros(analysis.unit_count, dtype=np.bool_)
    for group, width in zip(analysis.groups, widths, strict=True):
        own = np.zeros(group.width, dtype=np.bool_)
        for members in group.members():
            own[members[: width // group.block_count]] = True
        kept[group.units] = own
    return kept
