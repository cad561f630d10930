"""Where the windows of convolutions and pools lie."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from oamip_onnx.formulation.program import IntArray
from oamip_onnx.model import attribute, ints_attribute


@dataclass(frozen=True)
class Windows:
    """Windows over the spatial axes: input and output sizes, kernel, strides, dilations and padding at the start."""

    spatial_in: tuple[int, ...]
    spatial_out: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    def cells(self) -> IntArray:
        """Return the flat spatial input cell under each kernel position, -1 in the padding; (outputs, positions)."""
        columns = []
        steps = [int(math.prod(self.spatial_in[a + 1 :])) for a in range(len(self.spatial_in))]
        for offset in itertools.product(*(range(k) for k in self.kernel)):
            flat = np.zeros(self.spatial_out, np.int64)
            inside = np.ones(self.spatial_out, np.bool_)
            for axis, position in enumerate(offset):
                shape = [-1 if a == axis else 1 for a in range(len(self.kernel))]
                start = position * self.dilations[axis] - self.pads[axis]
                index = (np.arange(self.spatial_out[axis]) * self.strides[axis] + start).reshape(shape)
                inside &= (index >= 0) & (index < self.spatial_in[axis])
                flat = flat + index * steps[axis]
            columns.append(np.where(inside, flat, -1).reshape(-1))
        return np.stack(columns, axis=1)


def windows_of(
    node: onnx.NodeProto, shape_in: Sequence[int], shape_out: Sequence[int], kernel: Sequence[int]
) -> Windows:
    """Return the windows of a Conv or pool node; shapes are per sample, channels first."""
    spatial_in, spatial_out, rank = tuple(shape_in[1:]), tuple(shape_out[1:]), len(kernel)
    strides = ints_attribute(node, "strides") or [1] * rank
    dilations = ints_attribute(node, "dilations") or [1] * rank
    rule = attribute(node, "auto_pad", "NOTSET")
    if rule in {"SAME_UPPER", "SAME_LOWER"}:
        pads = []
        for axis in range(rank):
            reach = (spatial_out[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
            total = max(reach - spatial_in[axis], 0)
            pads.append(total // 2 if rule == "SAME_UPPER" else total - total // 2)
    elif rule == "VALID":
        pads = [0] * rank
    else:
        pads = (ints_attribute(node, "pads") or [0] * 2 * rank)[:rank]
    return Windows(spatial_in, spatial_out, tuple(kernel), tuple(strides), tuple(dilations), tuple(pads))
