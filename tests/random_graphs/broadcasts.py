"""Blocks of pointwise operators, sums, gates and branches."""

from random_graphs.sketch import Sketch, Stream


def added(s: Sketch, x: Stream, y: Stream) -> Stream:
    return y.becomes(s.b.add("Add", x.name, y.name)) if s.flag() else y


def activation(s: Sketch, x: Stream) -> Stream:
    """A pointwise function."""
    return x.becomes(s.activation(x.name))


def batch_normalisation(s: Sketch, x: Stream) -> Stream:
    """Batch normalisation over axis 1, between transposes for tokens."""
    c = x.channels
    data = x.name if x.kind == "image" else s.b.add("Transpose", x.name, perm=[0, 2, 1])
    parameters = [s.b.positive(c), s.b.weight(c, scale=0.3), s.b.weight(c, scale=0.3), s.b.positive(c)]
    y = s.b.add("BatchNormalization", data, *parameters)
    return x.becomes(y if x.kind == "image" else s.b.add("Transpose", y, perm=[0, 2, 1]))


def arithmetic(s: Sketch, x: Stream) -> Stream:
    """Scale and shift, by channel or by a number, constants on either side."""
    op_type = s.pick("Mul", "Div", "Add", "Sub", "Max", "Min")
    # Not every constant leaves something: after a Tanh, the maximum with one is one.
    near_zero = op_type in {"Add", "Sub", "Max"}
    values = s.shift if near_zero else s.vector
    constant = values(x) if s.flag() else s.scalar(0.1 if near_zero else 0.75)
    operands = [x.name, constant]
    return x.becomes(s.b.add(op_type, *(operands if op_type == "Div" or s.flag() else operands[::-1])))


def parametric_relu(s: Sketch, x: Stream) -> Stream:
    """One slope a channel, or one for all."""
    return x.becomes(s.b.add("PRelu", x.name, s.vector(x) if s.flag() else s.b.positive(1)))


def residual(s: Sketch, x: Stream) -> Stream:
    """Add a branch to its input, projected where the channels differ, or always."""
    inner = s.branch(x)
    inner = s.project(inner, inner.channels if s.flag() else x.channels)
    around = x if inner.channels == x.channels and s.flag() else s.project(x, inner.channels)
    operands = [inner.name, around.name]
    return inner.becomes(s.b.add("Add", *(operands if s.flag() else operands[::-1])))


def branches(s: Sketch, x: Stream) -> Stream:
    """Combine two or three branches of equal width."""
    width, count = s.width(), s.number(2, 3)
    names = [s.project(s.branch(x, 1), width).name for _ in range(count)]
    op_type = s.pick("Sum", "Mul", "Max", "Mean", "Min", "Sub")
    return x.becomes(s.b.add(op_type, *(names if op_type in {"Sum", "Max", "Mean", "Min"} else names[:2])), width)


def squeeze_and_excite(s: Sketch, x: Stream) -> Stream:
    """A gate from the plane's average through two layers, as convolutions or fully connected."""
    narrow = s.number(2, 4)
    if s.flag():
        gate = x.becomes(s.b.add("GlobalAveragePool", x.name), size=1)
        gate = s.conv(gate, narrow)
        gate = s.conv(gate.becomes(s.activation(gate.name)), x.channels).name
    else:
        mean = s.reduce("ReduceMean", x.name, [2, 3], keepdims=0)
        gate = s.b.gemm(s.b.add("Relu", s.b.gemm(mean, x.channels, narrow)), narrow, x.channels)
        gate = s.rank_change("Unsqueeze", gate, [2, 3]) if s.flag() else s.reshape(gate, [x.channels, 1, 1])
    operands = [s.b.add(s.pick("Sigmoid", "HardSigmoid"), gate), x.name]
    return x.becomes(s.b.add("Mul", *(operands if s.flag() else operands[::-1])))
