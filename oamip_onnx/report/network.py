"""A network as rows: one a layer, with the lanes that join it to the layers it reads and is read by."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from oamip_onnx.model import CONTRACTIONS
from oamip_onnx.report.schema import LayerRecord, PinRecord, Result


@dataclass(frozen=True)
class Gutter:
    """How the lanes run past one row; lanes are numbered from the left, from 0.

    Attributes
    ----------
    column
        The lane of the row's own node.
    through
        Lanes that pass it.
    entering
        Lanes that the node reads.
    leaving
        Whether a later row reads the node.
    """

    column: int
    through: tuple[int, ...]
    entering: tuple[int, ...]
    leaving: bool


@dataclass(frozen=True)
class NetworkRow:
    """One layer with the elementwise operators that follow it.

    Attributes
    ----------
    name, short_name
        Name of the first node, in full and without what its path repeats.
    operators
        The operators, joined by plus signs.
    width_before, width_after
        Channels of the output; None where it has no axis of them.
    macs_before, macs_after
        Multiply-accumulate operations of one run.
    groups
        Names of the groups whose channels it carries.
    pin
        Why its channels stay; None where they need not, or where it has none.
    gutter
        The lanes beside it.
    """

    name: str
    short_name: str
    operators: str
    width_before: int | None
    width_after: int | None
    macs_before: int
    macs_after: int
    groups: tuple[str, ...]
    pin: PinRecord | None
    gutter: Gutter

    @property
    def share_left(self) -> float | None:
        """The share of channels that is left; None where there are none."""
        if not self.width_before or self.width_after is None:
            return None
        return self.width_after / self.width_before


def network_rows(result: Result) -> list[NetworkRow]:
    """Return the rows of the network that a result describes, in graph order; none for a result without layers."""
    boxes = _boxes(result.layers)
    where = {layer: number for number, box in enumerate(boxes) for layer in box}
    inputs = [
        list(dict.fromkeys(where[i] for i in result.layers[box[0]].inputs if where[i] != number))
        for number, box in enumerate(boxes)
    ]
    pins = {pin.tensor: pin for pin in result.pinned}
    return [
        _row([result.layers[i] for i in box], pins, gutter) for box, gutter in zip(boxes, lanes(inputs), strict=True)
    ]


def _row(layers: Sequence[LayerRecord], pins: Mapping[str, PinRecord], gutter: Gutter) -> NetworkRow:
    widths = [(layer.width_before, layer.width_after) for layer in layers if layer.width_before is not None]
    before, after = widths[0] if widths else (None, None)
    return NetworkRow(
        name=layers[0].name,
        short_name=short_name(layers[0].name),
        operators=" + ".join(layer.operator for layer in layers),
        width_before=before,
        width_after=after,
        macs_before=sum(layer.macs_before for layer in layers),
        macs_after=sum(layer.macs_after for layer in layers),
        groups=tuple(dict.fromkeys(name for layer in layers for name in layer.groups)),
        pin=next((pins[layer.output] for layer in layers if layer.output in pins), None),
        gutter=gutter,
    )


def short_name(name: str) -> str:
    """Return a name without the parts that only announce the next: ``/blocks/blocks.0/Conv`` is ``blocks.0/Conv``."""
    parts = [part for part in name.split("/") if part]
    kept = [part for part, after in pairwise([*parts, ""]) if not after.startswith(f"{part}.")]
    return "/".join(kept) or name


def _boxes(layers: Sequence[LayerRecord]) -> list[list[int]]:
    """Return the layers in boxes: an operator that only continues the one before is in its box."""
    readers = Counter(source for layer in layers for source in layer.inputs)
    boxes: list[list[int]] = []
    box_of: dict[int, int] = {}
    for number, layer in enumerate(layers):
        source = layer.inputs[0] if len(layer.inputs) == 1 else None
        continues = (
            source is not None
            and layer.operator not in CONTRACTIONS
            and readers[source] == 1
            and boxes[box_of[source]][-1] == source
        )
        if continues and source is not None:
            boxes[box_of[source]].append(number)
        else:
            boxes.append([number])
        box_of[number] = box_of[source] if continues and source is not None else len(boxes) - 1
    return boxes


def lanes(inputs: Sequence[Sequence[int]]) -> list[Gutter]:
    """Return the gutter of each node of a graph in topological order.

    A node holds its lane until its last reader has come; the reader that ends a lane takes it over.

    Parameters
    ----------
    inputs
        For each node, the positions of the earlier nodes that it reads, each once.
    """
    waiting = Counter(source for sources in inputs for source in sources)
    holders: list[int | None] = []
    gutters = []
    for node, sources in enumerate(inputs):
        entering = tuple(sorted(lane for lane, holder in enumerate(holders) if holder in sources))
        for source in sources:
            waiting[source] -= 1
        ended = [lane for lane in entering if not waiting[_holder(holders, lane)]]
        for lane in ended:
            holders[lane] = None
        through = tuple(lane for lane, holder in enumerate(holders) if holder is not None)
        free = ended[0] if ended else next((i for i, holder in enumerate(holders) if holder is None), len(holders))
        if free == len(holders):
            holders.append(None)
        leaving = waiting[node] > 0
        if leaving:
            holders[free] = node
        gutters.append(Gutter(free, through, entering, leaving))
    return gutters


def _holder(holders: Sequence[int | None], lane: int) -> int:
    holder = holders[lane]
    if holder is None:
        raise ValueError(f"Lane {lane} is free.")
    return holder
