"""How narrow the user lets groups become."""

import math
from collections.abc import Mapping
from dataclasses import replace

from oamip_onnx.channels.groups import ChannelAnalysis, ChannelGroup
from oamip_onnx.channels.patterns import matching_tensors
from oamip_onnx.errors import UsageError
from oamip_onnx.model import Model


def with_minimum_widths(
    model: Model, analysis: ChannelAnalysis, min_width: Mapping[str, int], max_ratio: Mapping[str, float]
) -> ChannelAnalysis:
    """Return the channels with larger minimum widths of the groups that patterns match.

    Parameters
    ----------
    model, analysis
        The model and its channels.
    min_width
        By pattern on nodes and tensors, the fewest units that must stay; the whole group where it has fewer.
    max_ratio
        By pattern, the largest share of the units that may go, from 0 to 1.

    Raises
    ------
    UsageError
        If a pattern matches no channels of a group.
    """
    least = [0] * len(analysis.groups)
    for pattern, width in min_width.items():
        for number in _matched(model, analysis, pattern):
            least[number] = max(least[number], min(width, analysis.groups[number].width))
    for pattern, ratio in max_ratio.items():
        for number in _matched(model, analysis, pattern):
            # The slack keeps 0.9 of 10 units, 9, from becoming 10 by its last binary digit.
            least[number] = max(least[number], math.ceil(analysis.groups[number].width * (1 - ratio) - 1e-9))
    groups = tuple(_at_least(group, width) for group, width in zip(analysis.groups, least, strict=True))
    return replace(analysis, groups=groups)


def _matched(model: Model, analysis: ChannelAnalysis, pattern: str) -> list[int]:
    names = matching_tensors(model, [pattern])
    found = [number for number, group in enumerate(analysis.groups) if names.intersection(group.tensors)]
    if not found:
        raise UsageError(
            f"The pattern {pattern!r} matches no channels that can go; oamip inspect lists the groups by the tensors "
            "that they start at."
        )
    return found


def _at_least(group: ChannelGroup, width: int) -> ChannelGroup:
    blocks = group.block_count
    return replace(group, minimum_width=max(group.minimum_width, -(-width // blocks) * blocks))
