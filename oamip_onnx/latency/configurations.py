"""The widths at which a network is measured: chosen from a seed, never from the clock."""

from collections.abc import Sequence

import numpy as np

from oamip_onnx.channels import ChannelGroup

Widths = tuple[int, ...]

_MOST, _FEWEST = 44, 12

# All narrower networks are loaded together, so that they can take turns. Were they as wide as the original, they would
# hold this much; they hold about a third of it, and ONNX Runtime copies it once or twice.
_LARGEST_BYTES = 2_100_000_000
# In the same way for a round of turns, which then takes a few seconds of one core.
_MOST_MACS = 300_000_000_000

_UNIFORM_SHARES = (0.8, 0.6, 0.4, 0.2)

# Widths are share**exponent of the full ones with a share between 0 and 1: wide, even and narrow networks.
_EXPONENTS = (0.4, 0.8, 1.5)

# Kernels run at full speed where the width is a multiple of this; others are measured in one of so many networks.
_ALIGNMENT, _UNALIGNED_EVERY = 8, 4


def configuration_count(macs: int, bytes_of_weights: int) -> int:
    """Return at how many widths a network is measured: fewer where it is large or slow.

    Parameters
    ----------
    macs
        Multiply-accumulate operations of one run of the network as it is.
    bytes_of_weights
        Size of its weights.
    """
    most = min(_LARGEST_BYTES // max(bytes_of_weights, 1), _MOST_MACS // max(macs, 1))
    return int(np.clip(most, _FEWEST, _MOST))


def choose_configurations(groups: Sequence[ChannelGroup], count: int, seed: int) -> tuple[Widths, ...]:
    """Return the widths of every group in each network to measure, the original first.

    Parameters
    ----------
    groups
        The groups.
    count
        How many networks.
    seed
        Seed of the independent widths.
    """
    generator = np.random.default_rng(seed)
    found = [tuple(group.width for group in groups)]
    found += [tuple(_width(group, share, _ALIGNMENT) for group in groups) for share in _UNIFORM_SHARES]
    for number in range(count - len(found)):
        shares = (1 - generator.random(len(groups))) ** _EXPONENTS[number % len(_EXPONENTS)]
        step = 1 if number % _UNALIGNED_EVERY == _UNALIGNED_EVERY - 1 else _ALIGNMENT
        found.append(tuple(_width(group, share, step) for group, share in zip(groups, shares, strict=True)))
    return tuple(found[:count])


def _width(group: ChannelGroup, share: float, alignment: int) -> int:
    """Return the nearest aligned width that the group can have; no branch vanishes."""
    blocks = group.block_count
    step = int(np.lcm(blocks, alignment))
    least = -(-max(group.minimum_width, 1) // blocks) * blocks
    width = round(group.width * share / step) * step
    return min(max(width, min(step, group.width), least), group.width)
