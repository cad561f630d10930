"""Random small graphs for property-based tests.

`random_graphs()` draws a whole model: a stem, a few blocks of the table `BLOCKS`, an end, sometimes a second output.
What is carried from block to block is either an image, N × channels × size × size, or tokens, N × size × channels.
Structure comes from draws, so that a failing graph shrinks; weights come from one drawn seed, or from the next ones
until every output depends on the input; a structure that never gets there, about one in a thousand, is not drawn. A
block is a function and a row of the table.

Two things are left out on purpose. Operators that jump (Floor, Round, Sign, thresholds) would turn a rounding
difference into a wrong answer. Statistics whose average is constant (a normalised plane, averaged over the plane) would
make an output that no longer depends on the input: an activation stands behind each of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from graphs import Builder
from hypothesis import reject
from hypothesis import strategies as st
from onnx import TensorProto, helper

from random_graphs.sketch import (
    ALIVE,
    CLASSES,
    MOST_BLOCKS,
    MOST_WEIGHTS,
    NARROWEST,
    OPSETS,
    SAMPLES,
    WIDEST,
    Draw,
    Kind,
    Sketch,
    Stream,
)
from random_graphs.table import BLOCKS, End


def _classified(s: Sketch, vector: str, inputs: int) -> End:
    """Add the last layer in one of the layouts of Gemm, or as a MatMul."""
    form = s.pick("transposed", "plain", "scaled", "matmul")
    if form == "transposed":
        return s.b.gemm(vector, inputs, CLASSES), [CLASSES]
    weight = s.matrix(inputs, CLASSES)
    if form == "matmul":
        y = s.b.add("Add", s.b.add("MatMul", vector, weight), s.b.weight(CLASSES, scale=0.3))
    elif form == "plain":
        y = s.b.add("Gemm", vector, weight, s.b.weight(1, CLASSES, scale=0.3))
    else:
        y = s.b.add("Gemm", vector, weight, s.scalar(0.2), alpha=1.5, beta=0.5)
    return y, [CLASSES]


def _flat_end(s: Sketch, x: Stream) -> End:
    count = int(np.prod(x.dims))
    flat = s.b.add("Flatten", x.name) if s.flag() else s.reshape(x.name, [count])
    return _classified(s, flat, count)


def _pooled_end(s: Sketch, x: Stream) -> End:
    if x.kind == "image" and s.flag():
        pooled = s.b.add("Flatten", s.b.add("GlobalAveragePool", x.name))
    else:
        pooled = s.reduce("ReduceMean", x.name, x.plane, keepdims=0)
    return _classified(s, pooled, x.channels)


def _first_token_end(s: Sketch, x: Stream) -> End:
    if x.kind == "image":
        return s.b.add("GlobalAveragePool", s.conv(x, CLASSES).name), [CLASSES, 1, 1]
    return _classified(s, s.b.add("Gather", x.name, s.b.constant(np.array(0)), axis=1), x.channels)


def _bare_end(s: Sketch, x: Stream) -> End:
    y = s.project(x, CLASSES)
    return y.name, y.dims


def _end(s: Sketch, x: Stream) -> End:
    return s.pick(_flat_end, _pooled_end, _first_token_end, _bare_end)(s, x)


@dataclass(frozen=True)
class RandomGraph:
    """A drawn model, with the names of its blocks in the order in which they were drawn."""

    model: onnx.ModelProto
    blocks: tuple[str, ...]

    def __repr__(self) -> str:
        title = f"opset {self.model.opset_import[0].version}: {', '.join(self.blocks)}"
        return f"{title}\n{onnx.printer.to_text(_without_weights(self.model))}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: FBT001
        """Let hypothesis print it so."""
        del cycle
        printer.text(repr(self))


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for tensor in copy.graph.initializer:
        if tensor.data_type != TensorProto.INT64:
            tensor.ClearField("raw_data")
    return copy


@st.composite
def random_graphs(draw: st.DrawFn, steps: int = 7, only: Sequence[str] = ()) -> RandomGraph:
    """Draw a model.

    Parameters
    ----------
    draw
        Given by hypothesis.
    steps
        The mean number of blocks, about.
    only
        Instead of drawn blocks, these, one behind the other.
    """
    kind: Kind = draw(st.sampled_from(("image", "tokens")))
    blocks = [BLOCKS[name] for name in only]
    if only and blocks[0].kind != "both":
        kind = blocks[0].kind
    opset = draw(st.sampled_from([o for o in OPSETS if all(block.since <= o for block in blocks)]))
    channels = draw(st.integers(NARROWEST, WIDEST))
    starts = [Stream("x", kind, channels, size) for size in (4, 6, 8)]
    x = draw(st.sampled_from([x for x in starts if all(block.fits(x) for block in blocks)]))
    seed = draw(st.integers(0, 2**32 - 1))
    drawn: list[Any] = []

    def record(strategy: st.SearchStrategy[Any]) -> Any:
        drawn.append(draw(strategy))
        return drawn[-1]

    graph = _sketched(record, x, opset, seed, steps, only)
    for attempt in range(1, MOST_WEIGHTS):
        if is_alive(graph.model):
            return graph
        # The same structure with other weights: a narrow layer may be dead behind its activation.
        again = iter(list(drawn))
        graph = _sketched(lambda _, again=again: next(again), x, opset, seed + attempt, steps, only)
    # A structure that is always dead (the maximum of a Tanh and one) shows nothing.
    return reject()


def _sketched(draw: Draw, x: Stream, opset: int, seed: int, steps: int, only: Sequence[str]) -> RandomGraph:
    """Return the graph of these draws, with the weights of this seed."""
    s = Sketch(draw, Builder(["N", *x.dims], seed=seed, opset=opset), x)
    # A contraction in front, so that there is something to remove.
    x = s.project(x, s.width())
    seconds: list[End] = []
    for name in only:
        s.used.append(name)
        x = BLOCKS[name].build(s, x)
    # One draw a step, not a number of steps: any step can be left out when an example shrinks.
    while not only and len(s.used) < MOST_BLOCKS and s.number(0, steps):
        x = s.block(x)
        if not seconds and s.number(0, 2 * steps) == 2 * steps:
            seconds.append(_end(s, x))
    ends = [_end(s, x), *seconds]
    if s.number(0, 7) == 7:
        s.b.weight(3, 4)  # Exporters leave initializers behind that nothing reads.
    return RandomGraph(_finish(s, ends), tuple(s.used))


def _finish(s: Sketch, ends: Sequence[End]) -> onnx.ModelProto:
    """Return the model, with the shapes of its outputs: inference does not see through every computed target."""
    outputs = [
        helper.make_tensor_value_info(f"y{k}" if k else "y", TensorProto.FLOAT, ["N", *dims])
        for k, (_, dims) in enumerate(ends)
    ]
    for (name, _), output in zip(ends[1:], outputs[1:], strict=True):
        s.b.nodes.append(helper.make_node("Identity", [name], [output.name], f"out_{output.name}"))
    model = s.b.finish(ends[0][0])
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model


def samples(model: onnx.ModelProto, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return a batch for the input: noise around values of their own for each sample and channel.

    Samples differ by more than noise, which an average over the plane would remove.
    """
    generator = np.random.default_rng(seed)
    (value,) = model.graph.input
    dims = [SAMPLES, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
    offsets = [SAMPLES, dims[1], 1, 1] if len(dims) == 4 else [SAMPLES, 1, dims[2]]
    return {value.name: (generator.normal(size=dims) + 2 * generator.normal(size=offsets)).astype(np.float32)}


def dependence(values: npt.NDArray[np.generic]) -> float:
    """Return the largest difference between the samples of a batch, relative to the largest value."""
    exact = values.astype(np.float64)
    return float(np.abs(exact[1:] - exact[:-1]).max() / max(np.abs(exact).max(), np.finfo(np.float32).tiny))


def is_alive(model: onnx.ModelProto) -> bool:
    """Return whether every output depends on the input."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings)
    return all(dependence(values) > ALIVE for values in session.run(None, samples(model, 0)))
