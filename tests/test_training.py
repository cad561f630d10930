"""An ONNX graph in PyTorch computes what ONNX Runtime computes, and its weights get their gradients, by name."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import GRAPHS, Builder, image
from onnx import TensorProto, helper, numpy_helper
from oracle import PLAIN, feeds_for, relative
from test_zoo import NAMES
from zoo_models import refill

from oamip_onnx.errors import ModelError
from oamip_onnx.model import load_model, with_outputs
from oamip_onnx.runtime import RuntimeOptions, Session

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'oamip-onnx[torch]'")

from oamip_onnx.training.interpreter import Network, gradients  # noqa: E402 - needs PyTorch
from oamip_onnx.training.operators import TABLE  # noqa: E402 - as above
from oamip_onnx.training.weights import find_constants  # noqa: E402 - as above
from oamip_onnx.training.write_back import write_back  # noqa: E402 - as above

# Both compute in float32; sums of a few hundred terms in another order differ by tens of roundings.
TOLERANCE = 1e-5

# Whole networks sum over thousands of terms, in tens of layers.
DEEP_TOLERANCE = 1e-4

# Where ONNX Runtime's own optimisations change outputs by more, nothing can be said of the outputs.
UNDECIDABLE = 1e-2

REFUSED = {
    "quantised_weights_and_activations": "QuantizeLinear",
    "single_MaxRoiPool": "MaxRoiPool",
    "single_RoiAlign": "RoiAlign",
}

# Weights of these get no gradient: rounding and comparing have none.
STEPS = frozenset(
    "single_ArgMax single_ArgMin single_BitShift single_BitwiseAnd single_BitwiseNot single_BitwiseOr "
    "single_BitwiseXor single_Hardmax pointwise_Ceil pointwise_Floor pointwise_Round pointwise_Sign".split()
)

# Near a pole roundings grow: where the tangent is 22, by its slope of 1 + 22².
POLES = frozenset({"pointwise_Tan"})

# At a jump, and near a pole, a rounding to half precision is everything.
JUMPS = frozenset({*STEPS, *POLES, "pointwise_ThresholdedRelu"})

Array = npt.NDArray[np.generic]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def run(network: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
    with torch.no_grad():
        return {name: found.numpy() for name, found in network(network.tensors(feeds)).items()}


def agrees(proto: onnx.ModelProto, feeds: Mapping[str, Array], tolerance: float = TOLERANCE) -> None:
    """Assert that PyTorch computes what ONNX Runtime computes."""
    found, wanted = run(Network(proto), feeds), Session(proto, PLAIN).run(feeds)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].shape == values.shape
        assert relative(found[name], values) <= tolerance


@pytest.mark.parametrize("name", [name for name in GRAPHS if name not in REFUSED])
def test_graphs_compute_the_same_and_have_gradients(name: str) -> None:
    proto = GRAPHS[name]()
    feeds = feeds_for(load_model(proto), 0)
    agrees(proto, feeds, DEEP_TOLERANCE if name in POLES else TOLERANCE)
    network = Network(proto)
    found = gradients(network, feeds, lambda outputs: sum(y.square().sum() for y in outputs.values()))
    assert set(found) == set(network.weights)
    for weight, gradient in found.items():
        assert gradient.shape == network.constants.values[weight].shape
        assert np.isfinite(gradient).all(), weight
    assert any(gradient.any() for gradient in found.values())
    if name not in STEPS:
        assert all(gradient.any() for gradient in found.values()), [w for w, g in found.items() if not g.any()]


@pytest.mark.parametrize("name", [name for name in GRAPHS if name not in {*REFUSED, *JUMPS}])
def test_graphs_run_in_mixed_precision(name: str) -> None:
    proto = GRAPHS[name]()
    feeds = feeds_for(load_model(proto), 0)
    network = Network(proto)
    wanted = run(network, feeds)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(network.tensors(feeds))
        loss = sum(y.float().square().sum() for y in found.values())
    loss.backward()
    for output, values in wanted.items():
        # Products are rounded to 2⁻⁹ of their size; the deepest of these graphs multiplies a dozen times.
        assert relative(found[output].detach().float().numpy(), values) <= 12 * 2**-9
    assert all(torch.isfinite(weight.grad).all() for weight in network.weights.values() if weight.grad is not None)


@pytest.mark.parametrize("name", [name for name in GRAPHS if name not in REFUSED])
def test_operands_come_together_where_the_network_runs(name: str) -> None:
    """Run on PyTorch's device without memory: sizes have to stay in the CPU's, everything else must not."""
    proto = GRAPHS[name]()
    feeds = feeds_for(load_model(proto), 0)
    here, there = Network(proto), Network(proto, device="meta")
    wanted, found = here(here.tensors(feeds)), there(there.tensors(feeds))
    for output, values in wanted.items():
        assert found[output].device.type == "meta"
        assert found[output].shape == values.shape


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]):
        Network(GRAPHS[name]())


def test_all_that_blocks_training_is_in_one_sentence() -> None:
    b = image()
    x = b.conv("x", 3, 4)
    for _ in range(5):
        x = b.add("NonMaxSuppression", x, x)
    x = b.add("Strange", x, domain="shop")
    model = b.finish(x)
    with pytest.raises(ModelError) as caught:
        Network(model)
    said = str(caught.value)
    assert "NonMaxSuppression ('NonMaxSuppression_1', 'NonMaxSuppression_2', 'NonMaxSuppression_3' and 2 more)" in said
    assert "shop.Strange ('Strange_6')" in said


def test_a_graph_without_weights_is_refused() -> None:
    b = image()
    with pytest.raises(ModelError, match="nothing to train"):
        Network(b.finish(b.add("Relu", "x")))


def single(
    op_type: str, inputs: Sequence[Any], opset: int = 17, outputs: int = 1, domain: str = "", **attributes: Any
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a graph of one node, of output `o0`, and what to feed; beside it stands something to train."""
    feeds = {"i0": np.asarray(inputs[0])}
    kind = helper.np_dtype_to_tensor_dtype(feeds["i0"].dtype)
    constants = [numpy_helper.from_array(np.full(2, 1.5, np.float32), "gain")]
    constants += [numpy_helper.from_array(np.asarray(x), f"i{k}") for k, x in enumerate(inputs) if k and x is not None]
    operands = ["" if x is None else f"i{k}" for k, x in enumerate(inputs)]
    made = [f"o{k}" for k in range(outputs)]
    nodes = [
        helper.make_node(op_type, operands, made, "node", domain=domain, **attributes),
        helper.make_node("Cast", ["i0"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"] if opset >= 13 else ["real"], ["deep"]),
        helper.make_node("Mul", ["deep", "gain"], ["beside"]),
    ]
    if opset >= 13:
        constants.append(numpy_helper.from_array(np.array([feeds["i0"].ndim]), "last"))
    else:
        nodes[2].attribute.append(helper.make_attribute("axes", [feeds["i0"].ndim]))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("i0", kind, feeds["i0"].shape)],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in ("o0", "beside")],
        constants,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8))
    for value in model.graph.output:
        if not value.type.tensor_type.elem_type:  # ONNX infers nothing about operators of other domains
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return model, feeds


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


PLANE = normal(2, 3, 7, 6)

VARIANTS: dict[str, tuple[onnx.ModelProto, dict[str, Array]]] = {
    "softmax of older opsets": single("Softmax", [PLANE], 11, axis=2),
    "log-softmax of older opsets": single("LogSoftmax", [PLANE], 12),
    "hardmax of older opsets": single("Hardmax", [PLANE], 11, axis=1),
    "clip by attributes": single("Clip", [PLANE], 9, min=-0.5, max=0.25),
    "clip with one bound": single("Clip", [PLANE, None, np.float32(0.25)], 13),
    "pad by attributes": single("Pad", [PLANE], 9, pads=[0, 0, 1, 2, 0, 1, 0, 2], value=2.0),
    "pad that reflects": single("Pad", [PLANE, ints(0, 0, 2, 1, 0, 0, 3, 0)], mode="reflect"),
    "pad with the edge": single("Pad", [PLANE, ints(0, 1, 2, 1, 0, 0, 3, 0)], mode="edge"),
    "pad that wraps": single("Pad", [PLANE, ints(2, 1, 3, 0), None, ints(2, 3)], 19, mode="wrap"),
    "pad that cuts": single("Pad", [PLANE, ints(0, 0, -1, 1, 0, 0, -2, 0)]),
    "average pool with uneven pads": single("AveragePool", [PLANE], kernel_shape=[3, 2], pads=[0, 1, 1, 0]),
    "average pool that counts pads": single(
        "AveragePool", [PLANE], kernel_shape=[3, 2], pads=[0, 1, 1, 0], count_include_pad=1
    ),
    "average pool, strides and pads": single(
        "AveragePool", [PLANE], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    ),
    "max pool with uneven pads": single("MaxPool", [PLANE], kernel_shape=[2, 3], pads=[1, 0, 0, 1], strides=[2, 2]),
    "max pool rounded up": single("MaxPool", [PLANE], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "max pool of the same size": single("MaxPool", [PLANE], kernel_shape=[3, 2], strides=[2, 1], auto_pad="SAME_LOWER"),
    "max pool with dilations": single("MaxPool", [PLANE], kernel_shape=[2, 2], dilations=[2, 3]),
    "max pool of a line": single("MaxPool", [normal(2, 3, 9)], kernel_shape=[2]),
    "lp pool": single("LpPool", [PLANE], kernel_shape=[2, 2], pads=[1, 0, 0, 1], p=3),
    "conv of the same size": single(
        "Conv", [PLANE, normal(4, 3, 3, 2)], auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 2]
    ),
    "conv with uneven pads": single("Conv", [PLANE, normal(4, 3, 3, 2), normal(4)], pads=[0, 1, 2, 0]),
    "transposed conv with uneven pads": single(
        "ConvTranspose", [PLANE, normal(3, 2, 3, 3), normal(2)], strides=[2, 2], pads=[0, 1, 2, 0]
    ),
    "transposed conv with more rows": single(
        "ConvTranspose", [PLANE, normal(3, 2, 3, 3)], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]
    ),
    "fused conv": single(
        "FusedConv",
        [PLANE, normal(4, 3, 3, 3), normal(4)],
        domain="com.microsoft",
        activation="LeakyRelu",
        activation_params=[0.2],
    ),
    "gemm with factors": single("Gemm", [normal(4, 5), normal(4, 3), normal(5, 1)], transA=1, alpha=0.5, beta=2.0),
    "layer norm over two axes": single("LayerNormalization", [PLANE, normal(7, 6), normal(7, 6)], axis=-2),
    "layer norm with one gain": single("LayerNormalization", [PLANE, normal(1), normal(6)]),
    "group norm by groups": single("GroupNormalization", [normal(2, 6, 4, 4), normal(3), normal(3)], 18, num_groups=3),
    "local response of five": single("LRN", [normal(2, 9, 4, 4)], size=5, alpha=0.5, beta=0.6, bias=1.5),
    "lp normalisation by ones": single("LpNormalization", [PLANE], axis=1, p=1),
    "resize to the nearest of older opsets": single(
        "Resize", [PLANE, np.array([1, 1, 1.5, 2], np.float32)], 10, mode="nearest"
    ),
    "top of older opsets": single("TopK", [PLANE], 9, outputs=2, k=3, axis=2),
    "smallest": single("TopK", [PLANE, ints(2)], outputs=2, largest=0),
    "running sum backwards": single("CumSum", [PLANE, np.array(2)], exclusive=1, reverse=1),
    "lower triangle": single("Trilu", [normal(4, 5), np.array(1)], upper=0),
    "elements along an axis": single("GatherElements", [normal(4, 3), np.array([[0, -1, 2], [3, 1, 0]])], axis=0),
    "points": single("GatherND", [normal(4, 3, 2), np.array([[0, 1], [3, -1]])]),
    "points put": single("ScatterND", [normal(4, 3), np.array([[0], [2]]), normal(2, 3, seed=1)]),
    "points added": single(
        "ScatterND", [normal(4, 3), np.array([[0], [0]]), normal(2, 3, seed=1)], 18, reduction="add"
    ),
    "elements put": single("ScatterElements", [normal(4, 3), np.array([[0, -1, 2]]), normal(1, 3, seed=1)], axis=0),
    "split of uneven parts": single("Split", [normal(2, 7)], 18, outputs=3, axis=1, num_outputs=3),
    "slices with steps": single("Slice", [PLANE, ints(1, -1), ints(9, -99), ints(2, 3), ints(2, -2)]),
    "squeeze of every axis": single("Squeeze", [normal(1, 3, 1)]),
    "unsqueeze by attribute": single("Unsqueeze", [normal(3, 4)], 11, axes=[0, -1]),
    "reshape that copies and infers": single("Reshape", [PLANE, ints(0, -1, 6)]),
    "flatten at the front": single("Flatten", [PLANE], axis=0),
    "all reduced": single("ReduceMean", [PLANE], keepdims=0),
    "reduced by operand": single("ReduceMax", [PLANE, ints(1, -1)], 18, keepdims=0),
    "not reduced": single("ReduceSum", [PLANE, ints()], noop_with_empty_axes=1),
    "last position": single("ArgMax", [np.float32([[1, 2, 2], [0, 0, 0]])], axis=1, select_last_index=1),
    "remainder": single("Mod", [PLANE, np.float32([0.7])], fmod=1),
    "whole division": single("Div", [np.array([-7, 7, 8]), np.array([2, 2, -3])]),
    "scaled elu": single("Selu", [PLANE], alpha=1.2, gamma=0.9),
    "gelu by tanh": single("Gelu", [PLANE], 20, approximate="tanh"),
    "attention with a mask": single(
        "Attention",
        [normal(2, 4, 6), normal(2, 5, 6, seed=1), normal(2, 5, 4, seed=2), normal(4, 5, seed=3)],
        23,
        q_num_heads=2,
        kv_num_heads=2,
    ),
    "causal attention": single(
        "Attention", [normal(2, 2, 5, 4), normal(2, 2, 5, 4, seed=1), normal(2, 2, 5, 3, seed=2)], 23, is_causal=1
    ),
    "depth to space by columns": single("DepthToSpace", [normal(2, 8, 3, 3)], blocksize=2, mode="CRD"),
    "ones on the diagonal": single("EyeLike", [normal(3, 4)], dtype=TensorProto.INT64),
    "places that are not zero": single("NonZero", [np.float32([[0, 2], [3, 0]])]),
    "classes as ones": single("OneHot", [ints(1, -1, 0), np.array(4), np.float32([-1, 2])], axis=0),
    "number of elements": single("Size", [PLANE]),
    "steps": single("Range", [np.array(2), np.array(9), np.array(3)]),
    "infinities above": single("IsInf", [np.float32([1, np.inf, -np.inf])], detect_negative=0),
}

for _mode in ("nearest", "linear", "cubic"):
    for _coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
        VARIANTS[f"resize {_mode} {_coordinates}"] = single(
            "Resize",
            [PLANE, None, None, ints(2, 3, 10, 4)],
            mode=_mode,
            coordinate_transformation_mode=_coordinates,
            nearest_mode="floor",
        )
for _rounding in ("round_prefer_floor", "round_prefer_ceil", "ceil"):
    VARIANTS[f"resize {_rounding}"] = single(
        "Resize", [PLANE, None, np.array([1, 1, 2, 0.5], np.float32)], mode="nearest", nearest_mode=_rounding
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_operators_compute_the_same(name: str) -> None:
    proto, feeds = VARIANTS[name]
    wanted, found = Session(proto, PLAIN).run(feeds)["o0"], run(Network(proto), feeds)["o0"]
    assert found.shape == wanted.shape
    if wanted.dtype.kind == "f":
        assert relative(found, wanted) <= TOLERANCE
    else:
        np.testing.assert_array_equal(found, wanted)


def test_every_operator_of_the_table_is_compared() -> None:
    graphs = [*(GRAPHS[name]() for name in GRAPHS if name not in REFUSED), *(proto for proto, _ in VARIANTS.values())]
    assert set(TABLE) <= {(node.domain, node.op_type) for proto in graphs for node in proto.graph.node}


def test_gradients_are_those_of_the_graph() -> None:
    """Compare with central differences of what ONNX Runtime computes."""
    b = image()
    x = b.add("Tanh", b.add("InstanceNormalization", b.conv("x", 3, 4), b.positive(4), b.weight(4)))
    proto = b.finish(b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), 4, 5))
    feeds, network = feeds_for(load_model(proto), 0), Network(proto)
    found = gradients(network, feeds, lambda outputs: outputs["y"].square().sum())
    generator, step = np.random.default_rng(1), 1e-3
    for name, gradient in found.items():
        direction = generator.normal(size=gradient.shape).astype(np.float32)
        losses = []
        for sign in (1, -1):
            moved = network.constants.values[name] + np.float32(sign * step) * direction
            y = Session(write_back(proto, {name: moved}, {}), PLAIN).run(feeds)["y"].astype(np.float64)
            losses.append(float((y**2).sum()))
        slope = (losses[0] - losses[1]) / (2 * step)
        expected = float((gradient.astype(np.float64) * direction).sum())
        # The third derivative leaves some 1e-6 at this step; roundings of the loss, 1e-7 of it, some 1e-4.
        assert slope == pytest.approx(expected, rel=2e-2, abs=2e-3), name


def test_weights_are_told_from_formulas() -> None:
    b = Builder(["N", 7, 10])
    table, epsilon, factor = (
        b.weight(5, 10),
        b.constant(np.float32([1e-5]), "epsilon"),
        b.constant(np.float32(0.5), "factor"),
    )
    turned = b.add("Transpose", b.add("Identity", b.weight(6, 10)), perm=[1, 0])
    x = b.add("Add", "x", b.add("Gather", table, b.constant(np.array([0, 1, 2, 3, 4, 0, 1]))))
    x = b.add("Mul", b.add("Add", b.add("MatMul", x, turned), epsilon), factor)
    x = b.add("LayerNormalization", x, b.positive(6), b.weight(6))
    network = Network(b.finish(x))
    kinds = {name: network.constants.values[name].shape for name in network.weights}
    assert sorted(kinds.values()) == [(5, 10), (6,), (6,), (6, 10)]
    assert not {"epsilon", "factor"} & set(network.weights)


def test_masks_that_are_not_finite_are_no_weights() -> None:
    b = Builder(["N", 7, 10])
    mask = np.where(np.tri(7), 0, -np.inf).astype(np.float32)
    x = b.add("Softmax", b.add("Add", b.add("MatMul", "x", b.weight(10, 7)), b.constant(mask, "mask")))
    assert "mask" not in Network(b.finish(x)).weights


def test_weights_in_constant_nodes_are_trained_and_written() -> None:
    proto = GRAPHS["weights_through_nodes"]()
    network = Network(proto)
    (inside,) = {n.output[0] for n in proto.graph.node if n.op_type == "Constant"} & set(network.weights)
    assert len(network.weights) == 2
    with torch.no_grad():
        network.weights[inside].mul_(2)
    feeds = feeds_for(load_model(proto), 0)
    written = write_back(proto, network.changed(), {})
    wanted = Session(written, PLAIN).run(feeds)["y"]
    assert relative(run(network, feeds)["y"], wanted) <= TOLERANCE
    assert relative(Session(proto, PLAIN).run(feeds)["y"], wanted) > 0.1


@pytest.mark.parametrize("name", ["conv_grouped", "weights_through_nodes", "half_precision_weights", "tied_embedding"])
def test_weights_that_did_not_change_are_not_written(name: str) -> None:
    proto = GRAPHS[name]()
    network = Network(proto)
    assert network.changed() == {}
    assert write_back(proto, network.changed(), {}).SerializeToString() == proto.SerializeToString()


def test_writing_changes_values_and_nothing_else() -> None:
    proto = GRAPHS["residual"]()
    proto.graph.initializer[0].doc_string = "the first"
    proto.metadata_props.add(key="who", value="me")
    name = proto.graph.initializer[0].name
    values = numpy_helper.to_array(proto.graph.initializer[0]) + np.float32(1)
    written = write_back(proto, {name: values}, {"who": "you", "what": "training"})
    np.testing.assert_array_equal(numpy_helper.to_array(written.graph.initializer[0]), values)
    assert {one.key: one.value for one in written.metadata_props} == {"who": "you", "what": "training"}
    assert written.graph.initializer[0].doc_string == "the first"
    written.graph.initializer[0].CopyFrom(proto.graph.initializer[0])
    del written.metadata_props[:]
    written.metadata_props.extend(proto.metadata_props)
    assert written.SerializeToString() == proto.SerializeToString()


def test_values_in_typed_fields_are_replaced() -> None:
    proto = GRAPHS["residual"]()
    tensor = proto.graph.initializer[0]
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.ravel().tolist()))
    written = write_back(proto, {tensor.name: values + 1}, {})
    np.testing.assert_array_equal(numpy_helper.to_array(written.graph.initializer[0]), values + 1)


def test_half_weights_keep_what_training_did_not_move_by_half_a_step() -> None:
    proto = GRAPHS["half_precision_weights"]()
    network = Network(proto)
    (name,) = [n for n in network.weights if network.constants.values[n].dtype == np.float16]
    with torch.no_grad():
        network.weights[name][0].mul_(1.5)
        network.weights[name][1:].mul_(1 + 1e-6)
    changed = network.changed()
    assert list(changed) == [name]
    assert changed[name].dtype == np.float16
    np.testing.assert_array_equal(changed[name][1:], network.constants.values[name][1:])
    assert (changed[name][0] != network.constants.values[name][0]).any()


def node_by_node(proto: onnx.ModelProto, network: Any, feeds: Mapping[str, Array]) -> float:
    """Return the largest relative difference of a node's output, each from what ONNX Runtime computed before it."""
    names = [name for node in proto.graph.node for name in node.output if node.op_type != "Constant"]
    known = {**network.constants.values, **feeds, **Session(with_outputs(proto, names), PLAIN).run(feeds, names)}
    by_register = {register: name for name, register in network._register.items()}
    worst = 0.0
    with torch.no_grad():
        for step in network._steps:
            operands = [torch.from_numpy(np.array(known[by_register[r]])) if r else None for r in step.reads]
            wanted = known[by_register[step.writes[0]]]
            if wanted.dtype.kind == "f" and wanted.any():
                worst = max(worst, relative(step.function(*operands).numpy(), wanted))
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_architectures_compute_the_same_and_learn(name: str) -> None:
    proto = refill(name)
    network = Network(proto)
    (value,) = proto.graph.input
    dims = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
    feeds = {value.name: normal(*dims)}
    (wanted,) = Session(proto, RuntimeOptions(threads=1)).run(feeds).values()
    (plain,) = Session(proto, PLAIN).run(feeds).values()
    (found,) = run(network, feeds).values()
    # Deep networks of random weights may amplify roundings, by as much as ONNX Runtime's own optimisations show.
    own = relative(plain, wanted)
    decidable = own < UNDECIDABLE
    assert relative(found, wanted) <= max(DEEP_TOLERANCE, 10 * own)
    if own > DEEP_TOLERANCE:
        assert node_by_node(proto, network, feeds) <= DEEP_TOLERANCE
    labels = torch.arange(dims[0])

    def loss(outputs: Mapping[str, Any]) -> Any:
        (logits,) = outputs.values()
        return torch.nn.functional.cross_entropy(logits, labels)

    found = gradients(network, feeds, loss)
    norm = float(np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in found.values())))
    assert np.isfinite(norm)
    assert all(g.any() for g in found.values())
    with torch.no_grad():
        before = float(loss(network(network.tensors(feeds))))
        # A step along the gradient that lowers a linear function by a hundredth of the loss.
        for weight, gradient in found.items():
            network.weights[weight] -= torch.from_numpy(gradient) * (0.01 * before / norm**2)
        assert not decidable or float(loss(network(network.tensors(feeds)))) < before


def test_statistics_of_batch_norms_are_no_weights() -> None:
    proto = GRAPHS["batch_normalisation"]()
    network = Network(proto)
    (node,) = [n for n in proto.graph.node if n.op_type == "BatchNormalization"]
    assert set(network.statistics) == set(node.input[3:])
    assert set(node.input[1:3]) <= set(network.weights)
    assert find_constants(proto).statistics == set(node.input[3:])
    feeds = feeds_for(load_model(proto), 0, batch=8)
    run(network, feeds)
    assert network.changed() == {}
    network.mode.batch_statistics, network.mode.momentum = True, 1.0
    run(network, feeds)
    convolution = next(n for n in proto.graph.node if n.op_type == "Conv").output[0]
    inner = run(Network(proto, [convolution]), feeds)[convolution]
    np.testing.assert_allclose(network.changed()[node.input[3]], inner.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_statistic_that_is_stored_once_with_an_offset_is_no_weight() -> None:
    b = image()
    zeros = b.constant(np.zeros(4, np.float32), "zeros")
    mean = b.add("Identity", zeros)
    x = b.add("BatchNormalization", b.conv("x", 3, 4), b.positive(4), zeros, mean, b.positive(4))
    proto = b.finish(x)
    network = Network(proto)
    assert "zeros" in network.statistics
    assert "zeros" not in network.weights
    network.mode.batch_statistics = True
    found = gradients(network, feeds_for(load_model(proto), 0), lambda outputs: outputs["y"].square().sum())
    assert len(found) == 3
    assert "zeros" in network.changed()
