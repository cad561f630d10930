"""Branches that vanish as a whole, with their nodes."""

import numpy as np
import onnx
import pytest
from graphs import GRAPHS, Builder, head, image
from oracle import analysed, check_removal_equals_masking

from oamip_onnx.budget import uniform_widths


def _residual(*, batch_norm: bool) -> onnx.ModelProto:
    b = image()
    stem = b.add("Relu", b.conv("x", 3, 8))
    inner = b.conv(b.add("Relu", b.conv(stem, 8, 6)), 6, 8, bias=not batch_norm)
    if batch_norm:
        inner = b.add("BatchNormalization", inner, b.positive(8), b.weight(8, scale=1), b.weight(8), b.positive(8))
    return head(b, b.conv(b.add("Relu", b.add("Add", inner, stem)), 8, 4), 4)


def _without(proto: onnx.ModelProto, width: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the canonical model and the one without the group of that width, which may vanish."""
    found = analysed(proto)
    (group,) = [g for g in found.analysis.groups if g.width == width]
    assert group.minimum_width == 0
    kept = np.ones(found.analysis.unit_count, dtype=np.bool_)
    kept[group.units] = False
    return found.model.proto, check_removal_equals_masking(found, kept)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_residual_branch_disappears_with_its_nodes(batch_norm: bool) -> None:  # noqa: FBT001 - a test's parameter
    before, after = _without(_residual(batch_norm=batch_norm), 6)
    convolutions = [sum(n.op_type == "Conv" for n in proto.graph.node) for proto in (before, after)]
    assert convolutions == [4, 2]
    assert {t.name for t in after.graph.initializer}.isdisjoint(before.graph.node[2].input[1:])


def test_gate_becomes_a_constant() -> None:
    before, after = _without(GRAPHS["squeeze_and_excite_wide"](), 4)
    assert sum(n.op_type == "Conv" for n in before.graph.node) - sum(n.op_type == "Conv" for n in after.graph.node) == 2
    assert not any(n.op_type == "GlobalAveragePool" for n in after.graph.node)


def test_feed_forward_block_disappears() -> None:
    _, after = _without(GRAPHS["feed_forward_with_residual"](), 16)
    assert not any(n.op_type in {"MatMul", "LayerNormalization"} for n in after.graph.node)


def test_branch_and_narrowed_rest() -> None:
    found = analysed(_residual(batch_norm=True))
    kept = np.ones(found.analysis.unit_count, dtype=np.bool_)
    for group in found.analysis.groups:
        kept[group.units] = np.arange(group.width) % 2 == 0 if group.width != 6 else False
    check_removal_equals_masking(found, kept)


def test_a_layer_in_line_never_vanishes() -> None:
    found = analysed(GRAPHS["conv_relu_flatten_gemm"]())
    assert [g.minimum_width for g in found.analysis.groups] == [1]
    assert uniform_widths(found.analysis.groups, 0.999) == (1,)


def test_widths_reach_zero_only_where_a_branch_may_vanish() -> None:
    groups = analysed(_residual(batch_norm=False)).analysis.groups
    widths = {g.width: w for g, w in zip(groups, uniform_widths(groups, 0.95), strict=True)}
    assert widths == {8: 1, 6: 0, 4: 1}
    assert 0 not in uniform_widths(groups, 0.8, round_to=8)


def test_group_below_its_minimum_is_refused() -> None:
    from oamip_onnx.surgery import cut

    found = analysed(GRAPHS["conv_relu_flatten_gemm"]())
    with pytest.raises(ValueError, match="keeps 0 units and needs 1"):
        cut(found.model, found.analysis, np.zeros(found.analysis.unit_count, dtype=np.bool_))


def test_branch_that_is_read_elsewhere_stays() -> None:
    b = Builder(["N", 6])
    stem = b.gemm("x", 6, 8)
    hidden = b.add("Relu", b.gemm(stem, 8, 5))
    x = b.add("Add", b.gemm(hidden, 5, 8), stem)
    groups = analysed(b.finish(b.add("Concat", b.gemm(x, 8, 3), b.gemm(hidden, 5, 3), axis=1))).analysis.groups
    assert {g.width: g.minimum_width for g in groups} == {8: 1, 5: 1}
