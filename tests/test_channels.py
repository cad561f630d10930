"""Groups, pins with typed reasons, patterns, slicing, and the rule table."""

import numpy as np
import onnx
import pytest
from graphs import GRAPHS, Builder, head, image
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from oracle import analysed

from oamip_onnx.channels import FIXED, Labels, PinCode, analyse, kept_shape, scatter_array, slice_array
from oamip_onnx.channels.rules import Family, all_rules
from oamip_onnx.errors import UsageError
from oamip_onnx.model import TensorType, bind_inputs, infer_shapes, load_model


def test_residual_stream_is_one_group() -> None:
    analysis = analysed(GRAPHS["residual"]()).analysis
    widths = {g.name: (g.width, len(g.tensors)) for g in analysis.groups}
    assert sorted(widths.values()) == [(6, 1), (8, 2)]
    assert [p.code for p in analysis.pinned] == [PinCode.GRAPH_OUTPUT]


def test_concatenated_branches_are_groups_of_their_own() -> None:
    analysis = analysed(GRAPHS["concat_branches"]()).analysis
    assert sorted(g.width for g in analysis.groups) == [3, 4, 5, 8]


def test_split_parts_are_groups_of_their_own() -> None:
    analysis = analysed(GRAPHS["split_halves"]()).analysis
    assert sorted(g.width for g in analysis.groups) == [4, 5, 5, 6]


def test_grouped_convolution_keeps_equal_blocks() -> None:
    analysis = analysed(GRAPHS["conv_grouped"]()).analysis
    blocks = {g.width: g.block_count for g in analysis.groups}
    assert blocks == {8: 2, 12: 2, 4: 1}
    for group in analysis.groups:
        assert group.minimum_width == group.block_count


def test_attention_goes_by_whole_heads() -> None:
    analysis = analysed(GRAPHS["attention_heads"]()).analysis
    assert [g.width for g in analysis.groups] == [4]


def test_labels_of_a_flattened_map_repeat_each_channel() -> None:
    found = analysed(GRAPHS["conv_relu_flatten_gemm"]())
    weight = next(n for n in found.model.nodes if n.op_type == "Gemm").input[1]
    (factor,) = found.analysis.labels[weight].factors
    assert factor.shape == (1, 512)
    assert np.array_equal(factor.ravel(), np.repeat(np.arange(8), 64))


def _pins(proto: onnx.ModelProto) -> dict[str, PinCode]:
    return {p.tensor: p.code for p in analysed(proto).analysis.pinned}


def test_graph_output_pins() -> None:
    b = image()
    assert _pins(b.finish(b.add("Relu", b.conv("x", 3, 8)))) == {"t0": PinCode.GRAPH_OUTPUT}


def test_pinned_operator_gives_its_reason() -> None:
    b = image()
    x = b.add(
        "OneHot",
        b.add("Cast", b.conv("x", 3, 8), to=7),
        b.constant(np.array(4)),
        b.constant(np.array([0, 1], np.float32)),
    )
    b.declare(x, ["N", 8, 8, 8, 4])
    x = b.add("ReduceMean", x, axes=[1, 2, 3], keepdims=0)
    pin = next(p for p in analysed(b.finish(x)).analysis.pinned if p.tensor == "t0")
    assert pin.code == PinCode.PINNED_OPERATOR
    assert pin.reason == "OneHot 'OneHot_2' has an output whose size depends on the data."


def test_operator_of_another_domain_pins() -> None:
    b = image()
    b.nodes.append(helper.make_node("NhwcMaxPool", [b.conv("x", 3, 8)], ["custom"], "pool", domain="com.microsoft"))
    b.declare("custom", ["N", 8, 8, 8])
    model = load_model(head(b, "custom", 8))
    types = {
        v.name: TensorType(tuple(d.dim_value or 1 for d in v.type.tensor_type.shape.dim), 1)
        for v in [*model.graph.input, *model.graph.value_info, *model.graph.output]
    }
    types |= {t.name: TensorType(tuple(t.dims), t.data_type) for t in model.graph.initializer}
    analysis = analyse(model, types)
    assert [p.reason for p in analysis.pinned if p.tensor == "t0"] == ["NhwcMaxPool 'pool' has no rule for channels."]


def test_normalisation_over_channels_pins() -> None:
    b = Builder(["N", 7, 10])
    x = b.add("MatMul", "x", b.weight(10, 12))
    x = b.add("LayerNormalization", x, b.weight(12), b.weight(12), axis=-1)
    assert _pins(b.finish(b.add("MatMul", x, b.weight(12, 5))))["t0"] == PinCode.NORMALISATION


def test_reduction_over_channels_pins() -> None:
    b = image()
    x = b.add("ReduceMean", b.conv("x", 3, 8), axes=[1], keepdims=1)
    assert _pins(head(b, x, 1))["t0"] == PinCode.NORMALISATION


def test_sum_with_the_input_pins() -> None:
    b = Builder(["N", 8, 8, 8])
    x = b.add("Add", b.conv("x", 8, 8), "x")
    assert _pins(head(b, x, 8))["t0"] == PinCode.FIXED_AXIS


def test_captured_by_a_body_pins() -> None:
    b = image()
    x = b.conv("x", 3, 8)
    branch = helper.make_graph(
        [helper.make_node("Relu", [x], ["inner"])], "then", [], [helper.make_tensor_value_info("inner", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", [x], ["inner2"])], "else", [], [helper.make_tensor_value_info("inner2", 1, None)]
    )
    condition = b.constant(np.array(True))
    x = b.add("If", condition, then_branch=branch, else_branch=other)
    assert _pins(head(b, x, 8))["t0"] == PinCode.CONTROL_FLOW


def test_channel_count_beside_a_dynamic_plane_is_frozen_and_not_pinned() -> None:
    found = analysed(GRAPHS["number_of_channels_in_arithmetic"]())
    assert [g.width for g in found.analysis.groups] == [8]
    assert not any(n.op_type == "Shape" for n in found.model.nodes)
    assert "sizes which never change" in " ".join(found.model.notes)


def test_target_from_the_data_pins() -> None:
    b = Builder(["N", 10])
    x = b.gemm("x", 10, 12)
    length = b.add("Cast", b.add("Add", b.add("ReduceMax", "x", keepdims=0), b.constant(np.float32(2.5))), to=7)
    length = b.add("Add", b.add("Mul", length, b.constant(np.array(0))), b.constant(np.array(12)))
    target = b.add("Concat", b.constant(np.array([-1])), b.add("Unsqueeze", length, b.constant(np.array([0]))), axis=0)
    assert _pins(b.finish(b.gemm(b.add("Reshape", x, target), 12, 5)))["t0"] == PinCode.SHAPE_VALUE


def test_single_channel_is_too_narrow() -> None:
    b = image()
    analysis = analysed(head(b, b.conv(b.add("Relu", b.conv("x", 3, 1)), 1, 4), 4)).analysis
    assert [g.width for g in analysis.groups] == [4]


def test_branches_that_share_blocks_are_one_group() -> None:
    analysis = analysed(GRAPHS["conv_grouped_across_branches"]()).analysis
    shared = next(g for g in analysis.groups if g.width == 8 and g.block_count == 2)
    assert len(shared.tensors) == 2


def test_blocks_that_do_not_nest_stay() -> None:
    b = image()
    x = b.conv(b.conv("x", 3, 12), 12, 12, group=3)
    pins = _pins(head(b, b.conv(b.conv(x, 12, 12, group=2), 12, 4), 4))
    assert pins["t1"] in {PinCode.CONFLICTING_GRID, PinCode.TOO_NARROW}


def test_channels_on_an_axis_with_the_batch_are_not_contracted_there() -> None:
    found = analysed(GRAPHS["attention_batch_beside_heads"](), heads="dimension")
    assert {p.code for p in found.analysis.pinned} == {PinCode.SHAPE_VALUE, PinCode.GRAPH_OUTPUT}


def test_channel_shuffle_goes_by_the_same_position_in_every_block() -> None:
    found = analysed(GRAPHS["channel_shuffle"]())
    shuffled = found.analysis.groups[0]
    assert (shuffled.name, shuffled.width, shuffled.blocks) == ("t0", 4, None)
    weight = found.model.nodes[0].input[1]
    assert found.analysis.labels[weight].factors[0].ravel().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_ignore_and_only() -> None:
    proto = GRAPHS["residual"]()
    model = load_model(proto)
    types = infer_shapes(model, bind_inputs(model))
    assert [g.width for g in analyse(model, types, ignore=["Conv_2"]).groups] == [8]
    assert [g.width for g in analyse(model, types, only=["Conv_2"]).groups] == [6]
    pins = {p.tensor: p.code for p in analyse(model, types, ignore=["Conv_2"]).pinned}
    assert pins["t2"] == PinCode.IGNORED
    with pytest.raises(UsageError, match=r"'Conv_22' matches no node and no tensor; did you mean 'Conv_2'"):
        analyse(model, types, ignore=["Conv_22"])
    with pytest.raises(UsageError, match="'none'"):
        analyse(model, types, only=["none"])
    assert [g.width for g in analyse(model, types, ignore=[r"re:_2$"]).groups] == [8]
    with pytest.raises(UsageError, match=r"'re:\(' is no regular expression"):
        analyse(model, types, ignore=["re:("])
    with pytest.raises(UsageError, match="matches no node"):
        analyse(model, types, ignore=["re:^Pool"])


def test_rule_table_covers_each_family_once() -> None:
    rules = all_rules()
    assert {r.family for r in rules} == set(Family)
    for row in rules:
        overlapping = [
            r
            for r in rules
            if (r.domain, r.op_type) == (row.domain, row.op_type)
            and r is not row
            and r.since <= (row.until or 10**6)
            and row.since <= (r.until or 10**6)
        ]
        assert not overlapping, row
        if not row.domain:
            assert onnx.defs.has(row.op_type), f"{row.op_type} is no ONNX operator"


def test_every_operator_of_the_standard_domain_has_an_answer() -> None:
    latest = onnx.defs.onnx_opset_version()
    for schema in onnx.defs.get_all_schemas():
        if schema.domain:
            continue
        rules = [r for r in all_rules() if r.op_type == schema.name and not r.domain]
        assert rules, f"{schema.name} has no rule"
        covered = [r for r in rules if r.since <= latest and (r.until is None or r.until >= schema.since_version)]
        assert covered, f"{schema.name} has no rule for opset {schema.since_version} and newer"
    for row in all_rules():
        assert bool(row.reason) == (row.family is Family.PINNED), row


# Nothing of these can be run beside channels: they make constants or counts, or ONNX Runtime has no kernel.
WITHOUT_A_GRAPH = {("", "Constant"), ("", "Range"), ("", "CumProd")}


def test_every_rule_is_held_against_the_masked_model() -> None:
    used = {(n.domain, n.op_type) for make in GRAPHS.values() for n in load_model(make()).nodes}
    rules = {(r.domain, r.op_type) for r in all_rules() if r.family is not Family.PINNED}
    assert rules - used == WITHOUT_A_GRAPH


@given(st.integers(0, 2**32 - 1))
def test_slicing_and_scattering_are_inverse(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, columns = int(generator.integers(1, 6)), int(generator.integers(2, 6))
    labels = Labels(
        (rows, columns, 2),
        (
            np.arange(rows).reshape(rows, 1, 1) if rows > 1 else np.full((1, 1, 1), FIXED),
            (10 + np.arange(columns)).reshape(1, columns, 1),
        ),
    )
    kept = generator.random(20) < 0.6
    array = generator.normal(size=(rows, columns, 2))
    narrow = slice_array(array, labels, kept)
    assert narrow.shape == kept_shape(labels, kept) or narrow.size == 0
    back = scatter_array(narrow, np.zeros_like(array), labels, kept)
    alive = np.broadcast_to(labels.alive(kept), array.shape)
    assert np.array_equal(back[alive], array[alive])
    assert not back[~alive].any()


def test_ragged_rows_are_refused_where_counts_differ() -> None:
    labels = Labels((2, 3), (np.arange(6).reshape(2, 3),))
    assert kept_shape(labels, np.array([1, 1, 0, 0, 1, 1], dtype=np.bool_)) == (2, 2)
    assert kept_shape(labels, np.array([1, 1, 0, 0, 0, 0], dtype=np.bool_)) == (1, 2)
    with pytest.raises(ValueError, match="keep"):
        kept_shape(labels, np.array([1, 1, 0, 0, 0, 1], dtype=np.bool_))


def test_scores_of_groups_cover_all_units_once() -> None:
    analysis = analysed(GRAPHS["concat_branches"]()).analysis
    owners = analysis.group_of_unit()
    assert len(owners) == analysis.unit_count
    for number, group in enumerate(analysis.groups):
        assert (owners[group.units] == number).all()
