"""Blocks of pooling, reductions and normalisations."""

import numpy as np

from random_graphs.sketch import Sketch, Stream


def pooling(s: Sketch, x: Stream) -> Stream:
    """The maximum or the average of windows, with stride or without."""
    op_type = s.pick("MaxPool", "AveragePool")
    if x.size % 2 == 0 and x.size > 2 and s.flag():
        y = s.b.add(op_type, x.name, kernel_shape=[2, 2], strides=[2, 2])
        return x.becomes(y, size=x.size // 2)
    return x.becomes(s.b.add(op_type, x.name, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4))


def pooled_sum(s: Sketch, x: Stream) -> Stream:
    """Add the plane's average and maximum to each pixel."""
    pooled = s.b.add("Add", s.b.add("GlobalAveragePool", x.name), s.b.add("GlobalMaxPool", x.name))
    return x.becomes(s.b.add("Add", x.name, pooled))


def mean_over_the_rest(s: Sketch, x: Stream) -> Stream:
    """Add to each pixel or token a statistic over all of them."""
    op_type = s.pick("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSum")
    statistic = s.reduce(op_type, x.name, x.plane)
    return x.becomes(s.b.add("Add", x.name, s.b.add("Tanh", statistic)))


def mean_over_channels(s: Sketch, x: Stream) -> Stream:
    """A gate from a statistic over the channels."""
    statistic = s.reduce(s.pick("ReduceMean", "ReduceMax"), x.name, [x.axis])
    return x.becomes(s.b.add("Mul", x.name, s.b.add("Sigmoid", statistic)))


def softmax_gate(s: Sketch, x: Stream) -> Stream:
    """Add to the data their product with a softmax over channels or along the plane."""
    gated = s.b.add("Mul", x.name, s.b.add("Softmax", x.name, axis=s.number(1, x.rank - 1)))
    return x.becomes(s.b.add("Add", x.name, gated))


def layer_normalisation(s: Sketch, x: Stream) -> Stream:
    """Over the channels, as one operator or written out, then an activation."""
    data = x.name if x.kind == "tokens" else s.b.add("Transpose", x.name, perm=[0, 2, 3, 1])
    scale, shift = s.b.positive(x.channels), s.b.weight(x.channels, scale=0.3)
    if s.opset >= 17 and s.flag():
        y = s.b.add("LayerNormalization", data, scale, shift, axis=-1, epsilon=1e-2)
    else:
        last = 2 if x.kind == "tokens" else 3
        centred = s.b.add("Sub", data, s.reduce("ReduceMean", data, [last]))
        variance = s.reduce("ReduceMean", s.b.add("Pow", centred, s.scalar(2)), [last])
        spread = s.b.add("Sqrt", s.b.add("Add", variance, s.scalar(1e-2)))
        y = s.b.add("Add", s.b.add("Mul", s.b.add("Div", centred, spread), scale), shift)
    y = s.curved(y)
    return x.becomes(y if x.kind == "tokens" else s.b.add("Transpose", y, perm=[0, 3, 1, 2]))


def instance_normalisation(s: Sketch, x: Stream) -> Stream:
    """Over each channel's plane, then an activation."""
    parameters = [s.b.positive(x.channels), s.b.weight(x.channels, scale=0.3)]
    y = s.b.add("InstanceNormalization", x.name, *parameters, epsilon=1e-2)
    return x.becomes(s.curved(y))


def plane_normalisation(s: Sketch, x: Stream) -> Stream:
    """Subtract the mean over all pixels or tokens and divide by the deviation, then an activation."""
    centred = s.b.add("Sub", x.name, s.reduce("ReduceMean", x.name, x.plane))
    variance = s.reduce("ReduceMean", s.b.add("Mul", centred, centred), x.plane)
    y = s.b.add("Div", centred, s.b.add("Sqrt", s.b.add("Add", variance, s.scalar(1e-2))))
    y = s.b.add("Add", s.b.add("Mul", y, s.vector(x)), s.shift(x))
    return x.becomes(s.curved(y))


def group_normalisation(s: Sketch, x: Stream) -> Stream:
    """Written out as exporters do: reshape, instance normalisation, reshape, scale and shift, then an activation."""
    groups = s.pick(2, 3)
    x = s.fitted(x, groups, 2 * groups)
    if s.flag():
        y = s.b.add("Reshape", x.name, s.ints(0, groups, -1))
    else:
        y = s.reshape(x.name, [groups, x.channels // groups * x.size**2])
    ones, zeros = (s.b.constant(np.full(groups, v, np.float32)) for v in (1, 0))
    y = s.b.add("InstanceNormalization", y, ones, zeros, epsilon=1e-2)
    y = s.b.add("Reshape", y, s.b.add("Shape", x.name)) if s.flag() else s.reshape(y, x.dims)
    y = s.b.add("Add", s.b.add("Mul", y, s.vector(x)), s.shift(x))
    return x.becomes(s.curved(y))
