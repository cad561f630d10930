"""Dynamic dimensions stay dynamic: planes and batches of other sizes than the one that was traced."""

import numpy as np
import onnx
import pytest
from graphs import GRAPHS, Builder
from oracle import PLAIN, TOLERANCE, analysed, random_kept, relative

from oamip_onnx.masking import MaskedSession
from oamip_onnx.runtime import Session
from oamip_onnx.surgery import cut


def _pyramid() -> onnx.ModelProto:
    """Two resolutions joined by resizing to the other's computed size, then flattened by a computed number."""
    b = Builder(["N", 3, "H", "W"])
    fine = b.add("Relu", b.conv("x", 3, 8))
    coarse = b.add("Relu", b.conv(fine, 8, 6, strides=[2, 2]))
    own, other = b.add("Shape", coarse), b.add("Shape", fine)
    bounds = [b.constant(np.array([v])) for v in (0, 2, 4)]
    sizes = b.add(
        "Concat", b.add("Slice", own, bounds[0], bounds[1]), b.add("Slice", other, bounds[1], bounds[2]), axis=0
    )
    x = b.add("Concat", fine, b.add("Resize", coarse, "", "", sizes, mode="nearest"), axis=1)
    x = b.add("Relu", b.conv(x, 14, 5))
    shape = b.add("Shape", x)
    pick = [b.add("Gather", shape, b.constant(np.array([i])), axis=0) for i in range(4)]
    target = b.add("Concat", pick[0], b.constant(np.array([5])), b.add("Mul", pick[2], pick[3]), axis=0)
    tokens = b.add("Transpose", b.add("Reshape", x, target), perm=[0, 2, 1])
    return b.finish(b.add("ReduceMean", b.add("MatMul", tokens, b.weight(5, 4)), axes=[1], keepdims=0))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 6, 10), (3, 3, 12, 4)])
def test_planes_of_other_sizes(shape: tuple[int, ...]) -> None:
    found = analysed(_pyramid(), shapes={"x": [1, 3, 8, 8]})
    assert sorted(g.width for g in found.analysis.groups) == [5, 6, 8]
    kept = random_kept(found.analysis, 0)
    narrow = cut(found.model, found.analysis, kept)
    onnx.checker.check_model(narrow, full_check=True)
    feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    expected = MaskedSession(found.model, found.analysis, PLAIN).run(feeds, kept)["y"]
    got = Session(narrow, PLAIN).run(feeds)["y"]
    assert got.shape == expected.shape
    assert relative(got, expected) <= TOLERANCE
    assert [d.dim_param for d in narrow.graph.input[0].type.tensor_type.shape.dim] == ["N", "", "H", "W"]


@pytest.mark.parametrize("name", ["attention_batch_beside_heads", "lstm_zero_states_of_the_batch", "window_partition"])
def test_batches_of_other_sizes(name: str) -> None:
    found = analysed(GRAPHS[name]())
    kept = random_kept(found.analysis, 0)
    masked = MaskedSession(found.model, found.analysis, PLAIN)
    narrow = Session(cut(found.model, found.analysis, kept), PLAIN)
    for batch in (1, 3, 5):
        dims = [d.dim_value or batch for d in found.model.graph.input[0].type.tensor_type.shape.dim]
        feeds = {"x": np.random.default_rng(batch).normal(size=dims).astype(np.float32)}
        assert relative(narrow.run(feeds)["y"], masked.run(feeds, kept)["y"]) <= TOLERANCE


@pytest.mark.parametrize("name", ["residual", "attention_fused_qkv", "lstm_bidirectional_twice", "split_halves"])
def test_names_of_nodes_do_not_matter(name: str) -> None:
    proto, unnamed = GRAPHS[name](), GRAPHS[name]()
    for node in unnamed.graph.node:
        node.ClearField("name")
    left, right = analysed(proto), analysed(unnamed)
    assert [(g.name, g.width) for g in left.analysis.groups] == [(g.name, g.width) for g in right.analysis.groups]
    kept = random_kept(left.analysis, 0)
    tensors = [cut(f.model, f.analysis, kept).graph.initializer for f in (left, right)]
    assert [t.SerializeToString() for t in tensors[0]] == [t.SerializeToString() for t in tensors[1]]


def test_initializers_that_are_inputs_too() -> None:
    proto = GRAPHS["residual"]()
    expected = analysed(proto)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    found = analysed(proto)
    assert [i.name for i in found.model.graph.input] == ["x"]
    assert [g.width for g in found.analysis.groups] == [g.width for g in expected.analysis.groups]
