"""How many units of each group stay."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from oamip_onnx.budget.target import Target
from oamip_onnx.channels import BoolArray, ChannelAnalysis, ChannelGroup
from oamip_onnx.errors import TargetError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Groups narrower than this many alignments take a smaller one: rounding would decide their width alone.
_FEWEST_ALIGNMENTS = 2

# The alignment is halved for narrow groups, but not below this: smaller multiples are as slow as any width.
_LEAST_BLOCK = 8

# A branch vanishes where less than half a unit would be left, whatever the alignment.
_NOTHING = 0.5

_BISECTIONS = 30

# Candidate widths of a group, beyond which choosing takes long and gains nothing.
_MOST_CANDIDATES = 32

CostsAt = Callable[[Sequence[int]], Mapping[str, float]]
"""Returns what a model costs at one width a group, by kind of cost."""


def uniform_widths(groups: Sequence[ChannelGroup], ratio: float, round_to: int = 1) -> tuple[int, ...]:
    """Return the kept width of each group when the share `ratio` of each goes.

    Parameters
    ----------
    groups
        The groups.
    ratio
        Share to remove, 0 ≤ ratio < 1.
    round_to
        Widths are rounded to the nearest multiple; of groups narrower than two multiples to half of it, and so on down
        to 8; still narrower ones are not aligned.

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
    groups: Sequence[ChannelGroup],
    target: Target,
    costs: CostsAt,
    whole: Mapping[str, float],
    round_to: int = 1,
) -> tuple[int, ...]:
    """Return the kept width of each group that meets a target, by the smallest ratio for every group that does.

    Parameters
    ----------
    groups
        The groups.
    target
        What to shrink to: a ratio, or limits of costs, which are all met.
    costs
        Returns what the model costs at one width a group, by the kinds of the target's limits.
    whole
        What the shares are of, by kind.
    round_to
        Alignment of the widths.

    Raises
    ------
    TargetError
        If even the narrowest model is above a limit; the message says what can be reached.
    """
    if target.kind == "ratio":
        return uniform_widths(groups, target.value, round_to)
    most = {limit.kind: limit.absolute(whole[limit.kind]) for limit in target.limits}

    def meets(ratio: float) -> bool:
        found = costs(uniform_widths(groups, ratio, round_to))
        return all(found[kind] <= value for kind, value in most.items())

    low, high = 0.0, 1 - 1e-9
    smallest = costs(uniform_widths(groups, high, round_to))
    for limit in target.limits:
        if smallest[limit.kind] > most[limit.kind]:
            least = limit.shown(smallest[limit.kind], whole[limit.kind])
            finer = ", and --round-to 1 reaches below it" if round_to > 1 else ""
            raise TargetError(f"The target {limit} cannot be reached; the smallest possible is {least}{finer}.")
    if meets(low):
        return uniform_widths(groups, low, round_to)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return uniform_widths(groups, high, round_to)


def candidate_widths(groups: Sequence[ChannelGroup], round_to: int = 1) -> list[IntArray]:
    """Return the widths that each group may take, ascending: multiples of the alignment, and the full width.

    Parameters
    ----------
    groups
        The groups.
    round_to
        Alignment, for narrow groups as in `uniform_widths`. Of more than `_MOST_CANDIDATES` multiples, evenly spaced
        ones are taken.
    """
    found = []
    for group in groups:
        step = _step(group, round_to)
        least = max(min(step, group.width), group.minimum_width)
        widths = np.union1d(np.arange(-(-least // step), group.width // step + 1) * step, [group.width])
        if len(widths) > _MOST_CANDIDATES:
            widths = widths[np.unique(np.linspace(0, len(widths) - 1, _MOST_CANDIDATES).round().astype(np.int64))]
        widths = widths[widths >= least]
        found.append(np.union1d([0], widths) if group.minimum_width == 0 else widths)
    return [widths.astype(np.int64) for widths in found]


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
        Widths are rounded up to multiples, for narrow groups as in `uniform_widths`.
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
    """Return what a group's widths are multiples of."""
    multiple = round_to
    while group.width < _FEWEST_ALIGNMENTS * multiple and multiple % 2 == 0 and multiple // 2 >= _LEAST_BLOCK:
        multiple //= 2
    aligned = group.width >= _FEWEST_ALIGNMENTS * multiple
    return int(np.lcm(group.block_count, multiple)) if aligned else group.block_count


def first_units(analysis: ChannelAnalysis, widths: Sequence[int]) -> BoolArray:
    """Return a kept vector of these widths, whichever units: costs depend on widths alone."""
    kept = np.zeros(analysis.unit_count, dtype=np.bool_)
    for group, width in zip(analysis.groups, widths, strict=True):
        own = np.zeros(group.width, dtype=np.bool_)
        for members in group.members():
            own[members[: width // group.block_count]] = True
        kept[group.units] = own
    return kept
