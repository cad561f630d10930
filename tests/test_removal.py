"""Removing channels equals zeroing them at their consumers, for every operator."""

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import GRAPHS
from oracle import analysed, check_removal_equals_masking, random_kept

from oamip_onnx.channels import kept_shape
from oamip_onnx.model import count_costs


@pytest.mark.parametrize("name", GRAPHS)
def test_removal_equals_masking(name: str) -> None:
    found = analysed(GRAPHS[name]())
    assert found.analysis.groups, found.analysis.pinned
    before = found.model.proto.SerializeToString(deterministic=True)
    for seed in range(3):
        kept = random_kept(found.analysis, seed)
        assert not kept.all()
        narrow = check_removal_equals_masking(found, kept, seed)
        cut_model = analysed(narrow)
        after = count_costs(cut_model.model, cut_model.analysis.types)
        full = count_costs(found.model, found.analysis.types)
        assert after.parameters < full.parameters
        assert after.macs < full.macs
    assert found.model.proto.SerializeToString(deterministic=True) == before, "the input was modified"


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("settings", [{"heads": "dimension"}, {"allow_inexact": True}], ids=["dimension", "inexact"])
def test_removal_equals_masking_with_other_settings(name: str, settings: dict[str, Any]) -> None:
    proto = GRAPHS[name]()
    usual, found = analysed(proto), analysed(proto, **settings)
    if [g.width for g in found.analysis.groups] == [g.width for g in usual.analysis.groups]:
        return  # the settings say nothing about this graph
    if found.analysis.groups:
        check_removal_equals_masking(found, random_kept(found.analysis, 0))


INEXACT = {
    "layer_normalisation": 12,
    "layer_normalisation_written_out": 12,
    "root_mean_square_normalisation": 12,
    "softmax_over_channels": 8,
}


@pytest.mark.parametrize("name", INEXACT)
def test_channels_under_a_normalisation_open_on_request_and_are_marked(name: str) -> None:
    proto = GRAPHS[name]()
    found = analysed(proto, allow_inexact=True)
    assert [g.width for g in found.analysis.groups if not g.exact] == [INEXACT[name]]
    assert not any(g.width == INEXACT[name] for g in analysed(proto).analysis.groups)
    for seed in range(3):
        check_removal_equals_masking(found, random_kept(found.analysis, seed), seed)


def test_head_dimensions_go_equally_from_every_head() -> None:
    found = analysed(GRAPHS["attention_heads"](), heads="dimension")
    assert [(g.width, g.block_count) for g in found.analysis.groups] == [(12, 4), (12, 4)]
    fused = analysed(GRAPHS["attention_fused_qkv"](), heads="dimension")
    assert [(g.width, g.block_count) for g in fused.analysis.groups] == [(24, 8)]
    check_removal_equals_masking(fused, random_kept(fused.analysis, 0, 0.67))


@pytest.mark.parametrize("name", ["residual", "concat_branches", "conv_grouped", "attention_heads", "split_halves"])
def test_pruning_twice_equals_pruning_the_union(name: str) -> None:
    first = analysed(GRAPHS[name]())
    once = random_kept(first.analysis, 1, 0.75)
    second = analysed(check_removal_equals_masking(first, once))
    again = random_kept(second.analysis, 2, 0.5)
    twice = check_removal_equals_masking(second, again)
    union = np.zeros_like(once)
    union[np.flatnonzero(once)[again]] = True
    at_once = check_removal_equals_masking(first, union)
    for left, right in zip(twice.graph.initializer, at_once.graph.initializer, strict=True):
        if left.data_type == onnx.TensorProto.FLOAT:
            assert np.array_equal(onnx.numpy_helper.to_array(left), onnx.numpy_helper.to_array(right))


@pytest.mark.parametrize("name", ["conv_relu_flatten_gemm", "residual", "attention_heads"])
def test_nothing_changes_when_nothing_is_pruned(name: str) -> None:
    from oamip_onnx.surgery import cut

    found = analysed(GRAPHS[name]())
    same = cut(found.model, found.analysis, np.ones(found.analysis.unit_count, dtype=np.bool_))
    assert [t.SerializeToString() for t in same.graph.initializer] == [
        t.SerializeToString() for t in found.model.graph.initializer
    ]
    assert list(same.graph.node) == list(found.model.graph.node)


def test_cut_twice_gives_the_same_bytes() -> None:
    from oamip_onnx.surgery import cut

    found = analysed(GRAPHS["residual"]())
    kept = random_kept(found.analysis, 0)
    first, second = (cut(found.model, found.analysis, kept, {"k": "v"}) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_metadata_and_interface_survive() -> None:
    from oamip_onnx.surgery import cut

    proto = GRAPHS["residual"]()
    proto.producer_name, proto.model_version, proto.domain, proto.doc_string = "someone", 7, "org.example", "a net"
    onnx.helper.set_model_props(proto, {"license": "MIT"})
    proto.graph.node[0].metadata_props.add(key="scope", value="stem")
    found = analysed(proto)
    narrow = cut(found.model, found.analysis, random_kept(found.analysis, 0), {"oamip.target": "ratio=0.5"})
    assert (narrow.producer_name, narrow.model_version, narrow.domain, narrow.doc_string) == (
        "someone",
        7,
        "org.example",
        "a net",
    )
    assert {p.key: p.value for p in narrow.metadata_props} == {"license": "MIT", "oamip.target": "ratio=0.5"}
    assert narrow.graph.node[0].metadata_props[0].value == "stem"
    assert narrow.ir_version == proto.ir_version
    assert list(narrow.opset_import) == list(proto.opset_import)
    assert list(narrow.graph.input) == list(proto.graph.input)
    assert list(narrow.graph.output) == list(proto.graph.output)


def test_kept_shape_matches_the_cut_model() -> None:
    found = analysed(GRAPHS["conv_grouped"]())
    kept = random_kept(found.analysis, 3)
    narrow = check_removal_equals_masking(found, kept)
    for tensor in narrow.graph.initializer:
        labels = found.analysis.labels.get(tensor.name)
        if labels is not None:
            assert tuple(tensor.dims) == kept_shape(labels, kept)
