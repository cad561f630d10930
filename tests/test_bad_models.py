"""Broken, odd and hostile models: one clear sentence, or a clear reason, and never a traceback."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import GRAPHS, Builder, head, image
from onnx import TensorProto, helper, numpy_helper
from oracle import Analysed, analysed

from oamip_onnx.channels import PinCode
from oamip_onnx.errors import DataError, ModelError, NothingToPruneError
from oamip_onnx.preparation import require_groups


def _weight(proto: onnx.ModelProto, position: int, *shape: int) -> None:
    tensor = proto.graph.initializer[position]
    tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), tensor.name))


def _attribute(proto: onnx.ModelProto, name: str, value: int) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute(name, value))


def _dimension(proto: onnx.ModelProto, value: int) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = value


def _initializer(proto: onnx.ModelProto, **fields: object) -> None:
    for name, value in fields.items():
        setattr(proto.graph.initializer[0], name, value)


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "channels of a weight": (lambda p: _weight(p, 0, 8, 5, 3, 3), "reads 3 channels; its weight .* expects 5"),
    "length of a bias": (lambda p: _weight(p, 1, 7), r"has a bias of shape \(7,\) for 8 channels"),
    "no groups": (lambda p: _attribute(p, "group", 0), "has 0 groups"),
    "groups that do not divide": (lambda p: _attribute(p, "group", 5), "has 5 groups"),
    "negative groups": (lambda p: _attribute(p, "group", -1), "has -1 groups"),
    "dimension that overflows": (lambda p: p.graph.initializer[0].dims.__setitem__(0, 2**40), "too small"),
    "negative dimension": (lambda p: p.graph.initializer[0].dims.__setitem__(0, -3), "Negative dimension"),
    "weight cut short": (lambda p: _initializer(p, raw_data=b"1234"), "too small"),
    "weight of no type": (lambda p: _initializer(p, data_type=99), "type"),
    "unnamed weight": (lambda p: _initializer(p, name=""), "non-empty name"),
    "input beyond all memory": (lambda p: _dimension(p, 2**62), "does not fit into memory"),
    "output that nothing makes": (lambda p: setattr(p.graph.output[0], "name", "z"), "'z' is not an output"),
    "operand that nothing makes": (lambda p: p.graph.node[3].input.__setitem__(0, "z"), "topologically sorted"),
    "name given twice": (lambda p: p.graph.node[3].output.__setitem__(0, p.graph.node[0].output[0]), "single static"),
    "operator that does not exist": (lambda p: setattr(p.graph.node[1], "op_type", "Reloo"), "No Op registered"),
    "intermediate format of the future": (lambda p: setattr(p, "ir_version", 99), "ir_version 99 is higher"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_model_is_refused_in_a_sentence(name: str) -> None:
    breaks, message = BROKEN[name]
    proto = GRAPHS["residual"]()
    breaks(proto)
    with pytest.raises((ModelError, DataError), match=message) as caught:
        analysed(proto)
    assert "\n" not in str(caught.value)


def _missing_kernel() -> onnx.ModelProto:
    proto = GRAPHS["residual"]()
    proto.graph.node[1].domain = "org.example"
    proto.opset_import.append(helper.make_opsetid("org.example", 1))
    return proto


def test_operator_of_an_unknown_domain_in_the_middle() -> None:
    # Nothing can run it, so that shapes behind it stay unknown.
    with pytest.raises(ModelError, match=r"org\.example:Relu"):
        analysed(_missing_kernel())


@pytest.mark.parametrize(
    ("indices", "message"), [([3, 15], "out of bounds"), ([3, -13], "out of bounds")], ids=["above", "below"]
)
def test_indices_out_of_range(indices: list[int], message: str) -> None:
    b = Builder(["N", 10])
    x = b.add("Gather", b.gemm("x", 10, 12), b.constant(np.array(indices)), axis=1)
    with pytest.raises(ModelError, match=message):
        analysed(b.finish(b.gemm(x, 2, 3)))


def test_target_that_does_not_fit() -> None:
    b = Builder(["N", 10])
    x = b.add("Reshape", b.gemm("x", 10, 12), b.constant(np.array([7, -1])))
    with pytest.raises(ModelError, match="Reshape"):
        analysed(b.finish(x))


def _reasons(found: Analysed) -> set[PinCode]:
    return {p.code for p in found.analysis.pinned}


def test_zero_sized_weight_is_left_alone() -> None:
    b = Builder(["N", 10])
    x = b.add("Gemm", "x", b.constant(np.zeros((0, 10), np.float32)), transB=1)
    assert not analysed(b.finish(b.add("Concat", x, "x", axis=1))).analysis.groups


def test_empty_slice_beside_channels() -> None:
    b = image()
    part = [b.constant(np.array(v)) for v in ([3], [3], [1])]
    x = b.add("Concat", b.add("Slice", b.conv("x", 3, 8), *part), b.conv("x", 3, 4), axis=1)
    assert any(g.width == 4 for g in analysed(head(b, b.conv(x, 4, 4), 4)).analysis.groups)


def test_sequences_and_optionals_pin_what_enters_them() -> None:
    b = image()
    x = b.conv("x", 3, 8)
    b.nodes.append(helper.make_node("SequenceConstruct", [x, x], ["sequence"], "pair"))
    b.nodes.append(helper.make_node("ConcatFromSequence", ["sequence"], ["joined"], "join", axis=1))
    b.declare("joined", ["N", 16, 8, 8])
    found = analysed(head(b, b.conv("joined", 16, 4), 4))
    assert PinCode.NO_TENSOR in _reasons(found)
    assert [g.width for g in found.analysis.groups] == [4]


def test_loop_pins_what_it_carries() -> None:
    relu = [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Relu", ["carried"], ["result"])]
    inside = [("count", TensorProto.INT64), ("go", TensorProto.BOOL), ("carried", TensorProto.FLOAT)]
    inputs = [helper.make_tensor_value_info(n, t, [] if n != "carried" else None) for n, t in inside]
    outputs = [helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])]
    outputs.append(helper.make_tensor_value_info("result", TensorProto.FLOAT, None))
    b = image()
    x = b.conv("x", 3, 8)
    y = b.add(
        "Loop",
        b.constant(np.array(3)),
        b.constant(np.array(True)),
        x,
        body=helper.make_graph(relu, "body", inputs, outputs),
    )
    b.declare(y, ["N", 8, 8, 8])
    found = analysed(head(b, b.conv(y, 8, 4), 4))
    assert PinCode.CONTROL_FLOW in _reasons(found)
    assert [g.width for g in found.analysis.groups] == [4]


def test_layers_inside_bodies_are_named_where_nothing_else_is_left() -> None:
    weight = numpy_helper.from_array(np.ones((4, 10), np.float32), "w")
    branches = [
        helper.make_graph(
            [helper.make_node("Gemm", ["x", "w"], [out], transB=1)],
            out,
            [],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
            [weight],
        )
        for out in ("left", "right")
    ]
    b = Builder(["N", 10])
    y = b.add("If", b.constant(np.array(True)), then_branch=branches[0], else_branch=branches[1])
    b.declare(y, ["N", 4])
    found = analysed(b.finish(y))
    with pytest.raises(NothingToPruneError, match="layers inside the bodies of If 'If_0' are left"):
        require_groups(found.model, found.analysis)


def test_model_without_layers_says_so() -> None:
    b = Builder(["N", 10])
    found = analysed(b.finish(b.add("Relu", "x")))
    with pytest.raises(NothingToPruneError, match="no Conv, Gemm or MatMul with weights"):
        require_groups(found.model, found.analysis)
