"""The table of blocks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from oamip_onnx.channels.rules import Family
from random_graphs.broadcasts import (
    activation,
    arithmetic,
    batch_normalisation,
    branches,
    parametric_relu,
    residual,
    squeeze_and_excite,
)
from random_graphs.contractions import (
    attention,
    convolution,
    convolved_tokens,
    depthwise,
    feed_forward,
    fully_connected,
    grouped_convolution,
    mixed_tokens,
    shared_bias,
    shared_weight,
    transposed_convolution,
    weight_through_nodes,
)
from random_graphs.movements import (
    channel_shuffle,
    channels_last,
    class_token,
    concatenation,
    depth_to_space,
    gather_in_rows,
    gather_of_channels,
    padding,
    patches,
    pixels,
    reshape_round_trip,
    reshape_to_computed,
    resize,
    selection,
    shuffle_unit,
    slice_of_channels,
    space_to_depth,
    split,
    spread_gate,
    squeezed,
    tiled_channels,
)
from random_graphs.reductions import (
    group_normalisation,
    instance_normalisation,
    layer_normalisation,
    mean_over_channels,
    mean_over_the_rest,
    plane_normalisation,
    pooled_sum,
    pooling,
    softmax_gate,
)
from random_graphs.sketch import MOST_TOKENS, NARROWEST, Kind, Sketch, Stream


@dataclass(frozen=True)
class Block:
    """A row of the table.

    Attributes
    ----------
    build
        Adds the block behind a stream.
    family
        The family of operators that the block is there for.
    kind
        What it works on.
    keeps
        Whether kind and size stay, so that it fits into a branch.
    nests
        Whether it draws blocks inside.
    since
        The first opset that has its operators.
    pins
        Whether all channels that it takes must stay.
    fits
        Whether it fits behind a stream.
    """

    build: Callable[[Sketch, Stream], Stream]
    family: Family
    kind: Kind | Literal["both"] = "both"
    keeps: bool = True
    nests: bool = False
    since: int = 7
    pins: bool = False
    fits: Callable[[Stream], bool] = field(default=lambda _: True)


def _some(x: Stream) -> bool:
    return x.channels >= NARROWEST


def _normalisable(x: Stream) -> bool:
    # A deviation over one or two values is nothing or a jump.
    return x.channels >= NARROWEST and x.size > 2


def _even(x: Stream) -> bool:
    return x.size % 2 == 0


def _is_square(x: Stream) -> bool:
    return int(np.sqrt(x.size)) ** 2 == x.size and x.size > 1


def _small(x: Stream) -> bool:
    return x.size**2 <= MOST_TOKENS and x.size > 1


def _not_long(x: Stream) -> bool:
    return x.size < MOST_TOKENS + 2


BLOCKS: dict[str, Block] = {
    "activation": Block(activation, Family.BROADCAST),
    "convolution": Block(convolution, Family.CONTRACTION, "image", keeps=False),
    "fully_connected": Block(fully_connected, Family.CONTRACTION, "tokens"),
    "depthwise": Block(depthwise, Family.CONTRACTION, "image"),
    "grouped_convolution": Block(grouped_convolution, Family.CONTRACTION, "image"),
    "transposed_convolution": Block(transposed_convolution, Family.CONTRACTION, "image", keeps=False),
    "shared_weight": Block(shared_weight, Family.CONTRACTION),
    "shared_bias": Block(shared_bias, Family.CONTRACTION, "image"),
    "weight_through_nodes": Block(weight_through_nodes, Family.CONTRACTION),
    "mixed_tokens": Block(mixed_tokens, Family.CONTRACTION, "tokens", keeps=False),
    "convolved_tokens": Block(convolved_tokens, Family.CONTRACTION, "tokens"),
    "attention": Block(attention, Family.CONTRACTION, "tokens"),
    "feed_forward": Block(feed_forward, Family.CONTRACTION, "tokens"),
    "batch_normalisation": Block(batch_normalisation, Family.BROADCAST),
    "arithmetic": Block(arithmetic, Family.BROADCAST),
    "parametric_relu": Block(parametric_relu, Family.BROADCAST),
    "residual": Block(residual, Family.BROADCAST, nests=True),
    "branches": Block(branches, Family.BROADCAST, nests=True),
    "squeeze_and_excite": Block(squeeze_and_excite, Family.BROADCAST, "image"),
    "selection": Block(selection, Family.BROADCAST, since=9),
    "concatenation": Block(concatenation, Family.MOVEMENT, nests=True),
    "split": Block(split, Family.MOVEMENT, fits=_some),
    "slice_of_channels": Block(slice_of_channels, Family.MOVEMENT, fits=_some),
    "gather_of_channels": Block(gather_of_channels, Family.MOVEMENT, fits=_some),
    "gather_in_rows": Block(gather_in_rows, Family.MOVEMENT, pins=True, fits=_some),
    "channel_shuffle": Block(channel_shuffle, Family.MOVEMENT),
    "shuffle_unit": Block(shuffle_unit, Family.MOVEMENT, "image", nests=True),
    "padding": Block(padding, Family.MOVEMENT),
    "depth_to_space": Block(depth_to_space, Family.MOVEMENT, "image"),
    "space_to_depth": Block(space_to_depth, Family.MOVEMENT, "image", keeps=False, fits=_even),
    "channels_last": Block(channels_last, Family.MOVEMENT, "image"),
    "reshape_round_trip": Block(reshape_round_trip, Family.MOVEMENT),
    "reshape_to_computed": Block(reshape_to_computed, Family.MOVEMENT),
    "resize": Block(resize, Family.MOVEMENT, "image"),
    "spread_gate": Block(spread_gate, Family.MOVEMENT, "image", since=8),
    "tiled_channels": Block(tiled_channels, Family.MOVEMENT),
    "squeezed": Block(squeezed, Family.MOVEMENT),
    "patches": Block(patches, Family.MOVEMENT, "image", keeps=False, fits=_small),
    "pixels": Block(pixels, Family.MOVEMENT, "tokens", keeps=False, fits=_is_square),
    "class_token": Block(class_token, Family.MOVEMENT, "tokens", keeps=False, since=8, fits=_not_long),
    "pooling": Block(pooling, Family.REDUCTION, "image", keeps=False),
    "pooled_sum": Block(pooled_sum, Family.REDUCTION, "image"),
    "mean_over_the_rest": Block(mean_over_the_rest, Family.REDUCTION),
    "mean_over_channels": Block(mean_over_channels, Family.REDUCTION, pins=True),
    "softmax_gate": Block(softmax_gate, Family.REDUCTION),
    "layer_normalisation": Block(layer_normalisation, Family.REDUCTION, pins=True, fits=_normalisable),
    "instance_normalisation": Block(instance_normalisation, Family.REDUCTION, "image", fits=_normalisable),
    "plane_normalisation": Block(plane_normalisation, Family.REDUCTION, fits=_normalisable),
    "group_normalisation": Block(group_normalisation, Family.REDUCTION, "image", fits=_normalisable),
}

End = tuple[str, list[int]]
