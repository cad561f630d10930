"""Repair makes up for removal, never makes it worse; verification finds every wrong cut."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import GRAPHS, Builder, image
from onnx import numpy_helper
from oracle import Analysed, analysed, feeds_for, random_kept

from oamip_onnx.calibration import Samples
from oamip_onnx.channels import BoolArray
from oamip_onnx.errors import VerificationError
from oamip_onnx.repair import REPAIRS, RepairContext, repair_bias, repair_least_squares, with_biases
from oamip_onnx.repair.fits import find_fits
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.surgery import cut
from oamip_onnx.verify import (
    check_result,
    compare_with_masked,
    measure_drift,
    require_passed,
    run_output,
    with_scattered,
)

OPTIONS = RuntimeOptions(threads=1)


def context_of(found: Analysed, kept: BoolArray, count: int = 200) -> RepairContext:
    samples = Samples(feeds_for(found.model, 7, count))
    return RepairContext(found.model, found.analysis, kept, cut(found.model, found.analysis, kept), samples, OPTIONS)


@pytest.mark.parametrize("repair", sorted(REPAIRS))
@pytest.mark.parametrize(
    "name", ["conv_stride_dilation_auto_pad", "residual", "concat_branches", "matmul_tokens", "pools", "conv_depthwise"]
)
def test_repair_brings_the_outputs_closer(name: str, repair: str) -> None:
    found = analysed(GRAPHS[name]())
    context = context_of(found, random_kept(found.analysis, 0, 0.6))
    repaired = REPAIRS[repair](context)
    fresh = Samples(feeds_for(found.model, 8, 100))
    before = measure_drift(found.model.proto, context.cut, "y", fresh, OPTIONS).sqnr_db
    after = measure_drift(found.model.proto, repaired.proto, "y", fresh, OPTIONS).sqnr_db
    assert repaired.updates or all(step.skipped for step in repaired.steps)
    assert after >= before
    if repair == "least-squares":
        assert after > before + 1
    for step in repaired.steps:
        if not step.skipped:
            assert step.error_before is not None
            assert step.error_after is not None
            assert step.error_after <= step.error_before


def test_least_squares_restores_a_redundant_layer_exactly() -> None:
    b = Builder(["N", 6])
    first = b.random.normal(size=(8, 6)).astype(np.float32)
    first[4:] = first[:4]  # every unit has a twin
    x = b.add("Relu", b.add("Gemm", "x", b.constant(first), transB=1))
    found = analysed(b.finish(b.gemm(x, 8, 5)))
    kept = np.array([True] * 4 + [False] * 4)
    context = context_of(found, kept)
    repaired = repair_least_squares(context)
    fresh = Samples(feeds_for(found.model, 8, 100))
    assert measure_drift(found.model.proto, context.cut, "y", fresh, OPTIONS).sqnr_db < 20
    assert measure_drift(found.model.proto, repaired.proto, "y", fresh, OPTIONS).sqnr_db > 60


def test_bias_repair_is_exact_for_a_constant_unit() -> None:
    b = Builder(["N", 6])
    x = b.add("Gemm", "x", b.weight(6, 6), transB=1)
    constant = b.constant(np.array([1, 1, 1, 0, 1, 1], np.float32))
    x = b.add("Add", b.add("Mul", x, constant), b.constant(np.array([0, 0, 0, 2, 0, 0], np.float32)))
    found = analysed(b.finish(b.gemm(x, 6, 5)))
    kept = np.array([True, True, True, False, True, True])
    repaired = repair_bias(context_of(found, kept))
    fresh = Samples(feeds_for(found.model, 8, 100))
    assert measure_drift(found.model.proto, repaired.proto, "y", fresh, OPTIONS).sqnr_db > 80


def test_repaired_weights_scattered_back_pass_the_oracle() -> None:
    found = analysed(GRAPHS["residual"]())
    kept = random_kept(found.analysis, 0)
    context = context_of(found, kept)
    repaired = repair_least_squares(context)
    wide = with_scattered(found.model, found.analysis, kept, repaired.updates)
    passed = compare_with_masked(wide, found.analysis, kept, repaired.proto, context.samples, OPTIONS)
    assert passed.passed
    unrepaired = compare_with_masked(found.model, found.analysis, kept, repaired.proto, context.samples, OPTIONS)
    assert not unrepaired.passed, "the oracle must see a change of the weights"


def test_biases_are_added_where_they_lack_and_change_nothing() -> None:
    found = analysed(GRAPHS["conv_without_bias"]())
    model = with_biases(found.model)
    assert len(model.initializers) == len(found.model.initializers) + 2
    feeds = feeds_for(found.model, 0)
    assert np.array_equal(Session(model.proto).run(feeds)["y"], Session(found.model.proto).run(feeds)["y"])
    assert with_biases(model) is model


def test_shared_weights_are_left_alone_and_said() -> None:
    found = analysed(GRAPHS["shared_bias"]())
    repaired = repair_least_squares(context_of(found, random_kept(found.analysis, 0)))
    assert any("share its weight or bias" in step.skipped for step in repaired.steps)


def test_a_sum_is_refit_as_one_and_makes_up_for_what_is_added() -> None:
    """Both convolutions of a sum read the same pruned tensor; each alone could not restore it."""
    b = image(seed=5)
    hidden = b.add("Relu", b.conv("x", 3, 8))
    total = b.add("Add", b.conv(hidden, 8, 6), b.conv(hidden, 8, 6, 1))
    found = analysed(b.finish(b.gemm(b.add("Flatten", b.add("Relu", total)), 6 * 64, 5)))
    kept = np.ones(found.analysis.unit_count, dtype=np.bool_)
    kept[[1, 4, 6]] = False
    repaired = repair_least_squares(context_of(found, kept))
    assert [step.node for step in repaired.steps][:1] == [found.model.node_name(3)]
    assert len(repaired.steps) == 2  # the sum, and what reads it


def test_a_residual_branch_makes_up_for_the_stream() -> None:
    b = image(seed=6)
    stream = b.add("Relu", b.conv("x", 3, 8))
    inner = b.add("Relu", b.conv(stream, 8, 8))
    total = b.add("Add", b.conv(inner, 8, 8), stream)
    found = analysed(b.finish(b.gemm(b.add("Flatten", total), 8 * 64, 5)))
    context = context_of(found, random_kept(found.analysis, 1, 0.6))
    fits, _ = find_fits(context)
    rest = {fit.rest for fit in fits}
    assert stream in rest
    assert total in {fit.target for fit in fits}


def test_only_what_the_activation_lets_through_counts() -> None:
    """Far below zero the original's values do not matter: nearer targets leave a smaller error behind the ReLU."""
    b = Builder(["N", 8], seed=11)
    hidden = b.add("Relu", b.gemm("x", 8, 24))
    found = analysed(b.finish(b.add("Relu", b.gemm(hidden, 24, 12))))
    kept = random_kept(found.analysis, 2, 0.5)
    context = context_of(found, kept, 2000)
    fits, _ = find_fits(context)
    assert [fit.bounds is not None for fit in fits] == [True]
    fresh = Samples(feeds_for(found.model, 8, 500))
    with_activation = repair_least_squares(context)
    blind = [replace(fit, bounds=None) for fit in fits]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oamip_onnx.repair.refit.find_fits", lambda _: (blind, []))
        without = repair_least_squares(context)
    first, second = (
        measure_drift(found.model.proto, repaired.proto, "y", fresh, OPTIONS).sqnr_db
        for repaired in (with_activation, without)
    )
    assert first > second + 0.2


def test_a_product_takes_its_bias_from_the_add_behind_it() -> None:
    b = Builder(["N", 5, 8], seed=2)
    hidden = b.add("Relu", b.add("MatMul", "x", b.weight(8, 16)))
    out = b.add("Add", b.add("MatMul", hidden, b.weight(16, 6)), b.constant(np.arange(6, dtype=np.float32)))
    found = analysed(b.finish(out))
    repaired = repair_bias(context_of(found, random_kept(found.analysis, 0)))
    (add,) = (node for node in found.model.nodes if node.op_type == "Add")
    assert list(repaired.updates) == [next(name for name in add.input if found.model.is_constant(name))]


@pytest.mark.parametrize("name", ["conv_grouped", "conv_transpose", "conv_transpose_3d", "conv_transpose_grouped"])
def test_grouped_and_transposed_convolutions_are_refit(name: str) -> None:
    found = analysed(GRAPHS[name]())
    context = context_of(found, random_kept(found.analysis, 0, 0.6))
    repaired = repair_least_squares(context)
    assert all(not step.skipped for step in repaired.steps)
    fresh = Samples(feeds_for(found.model, 8, 100))
    before = measure_drift(found.model.proto, context.cut, "y", fresh, OPTIONS).sqnr_db
    assert measure_drift(found.model.proto, repaired.proto, "y", fresh, OPTIONS).sqnr_db > before + 1


def test_too_few_samples_are_said() -> None:
    found = analysed(GRAPHS["conv_stride_dilation_auto_pad"]())
    kept = random_kept(found.analysis, 0, 0.6)
    assert repair_least_squares(context_of(found, kept)).notes == ()
    b = Builder(["N", 30], seed=1)
    wide = analysed(b.finish(b.gemm(b.add("Relu", b.gemm("x", 30, 40)), 40, 5)))
    few = repair_least_squares(context_of(wide, random_kept(wide.analysis, 0, 0.6), 10))
    (note,) = few.notes
    width = int(random_kept(wide.analysis, 0, 0.6).sum())
    assert f"needs {width + 1} samples" in note
    assert note.startswith("10 samples are too few to refit 1 layers freely")
    assert few.updates or all(step.skipped for step in few.steps)


def test_dead_and_equal_features_are_no_obstacle() -> None:
    b = Builder(["N", 6], seed=2)
    weights = b.random.normal(size=(6, 8)).astype(np.float32)
    weights[:, 1] = weights[:, 0]  # equal
    weights[:, 2] = 0.0  # dead
    hidden = b.add("Relu", b.add("MatMul", "x", b.constant(weights)))
    found = analysed(b.finish(b.gemm(hidden, 8, 3)))
    kept = np.ones(found.analysis.unit_count, dtype=np.bool_)
    kept[-1] = False
    repaired = repair_least_squares(context_of(found, kept))
    assert repaired.updates
    for values in repaired.updates.values():
        assert np.isfinite(values.astype(np.float64)).all()


def batch_norm(b: Builder, x: str, channels: int) -> str:
    """Add a batch norm with statistics that are not those of its input."""
    parameters = [b.random.normal(size=channels) for _ in range(3)] + [b.random.uniform(0.5, 2, channels)]
    return b.add("BatchNormalization", x, *(b.constant(values.astype(np.float32)) for values in parameters))


def test_statistics_of_batch_norms_are_those_of_what_reaches_them() -> None:
    b = Builder(["N", 3, 8, 8], seed=4)
    hidden = b.add("Relu", batch_norm(b, b.conv("x", 3, 8), 8))
    found = analysed(b.finish(b.add("Relu", batch_norm(b, b.conv(hidden, 8, 6), 6))))
    kept = random_kept(found.analysis, 0, 0.5)
    context = context_of(found, kept)
    repaired = REPAIRS["batch-norm"](context)
    last = [node for node in repaired.proto.graph.node if node.op_type == "BatchNormalization"][-1]
    values = run_output(repaired.proto, last.input[0], context.samples, OPTIONS).astype(np.float64)
    arrays = {t.name: numpy_helper.to_array(t) for t in repaired.proto.graph.initializer}
    np.testing.assert_allclose(arrays[last.input[3]], values.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(arrays[last.input[4]], values.var(axis=(0, 2, 3)), rtol=1e-4)
    masked = with_scattered(found.model, found.analysis, kept, repaired.updates)
    few = context.samples.take(slice(0, 16))
    assert compare_with_masked(masked, found.analysis, kept, repaired.proto, few, OPTIONS).passed


def test_batch_norms_that_cannot_be_set_are_said() -> None:
    b = Builder(["N", 3, 8, 8], seed=4)
    hidden = b.conv("x", 3, 8)
    shared = [b.constant(np.ones(8, np.float32)) for _ in range(4)]
    both = [b.add("BatchNormalization", hidden, *shared) for _ in range(2)]
    found = analysed(b.finish(b.conv(b.add("Add", *both), 8, 4)))
    context = context_of(found, random_kept(found.analysis, 0, 0.5), 8)
    repaired = REPAIRS["batch-norm"](context)
    assert not repaired.updates
    assert all("another node shares its statistics" in step.skipped for step in repaired.steps)
    assert len(repaired.steps) == 2


def test_a_memory_limit_that_is_too_small_is_said() -> None:
    found = analysed(GRAPHS["residual"]())
    context = replace(context_of(found, random_kept(found.analysis, 0)), memory_bytes=2000)
    repaired = repair_least_squares(context)
    assert not repaired.updates
    for step in repaired.steps:
        assert "features need" in step.skipped
        assert "--memory-limit " in step.skipped


def test_a_small_memory_limit_reads_fewer_rows_and_more_passes() -> None:
    found = analysed(GRAPHS["residual"]())
    context = context_of(found, random_kept(found.analysis, 0, 0.6))
    repaired = repair_least_squares(replace(context, memory_bytes=900_000))
    fresh = Samples(feeds_for(found.model, 8, 100))
    before = measure_drift(found.model.proto, context.cut, "y", fresh, OPTIONS).sqnr_db
    assert measure_drift(found.model.proto, repaired.proto, "y", fresh, OPTIONS).sqnr_db > before + 1


def test_wrong_cut_is_found() -> None:
    found = analysed(GRAPHS["residual"]())
    kept = random_kept(found.analysis, 0)
    wrong = kept.copy()
    group = found.analysis.groups[0].units
    wrong[group] = np.roll(kept[group], 1)
    assert wrong.tolist() != kept.tolist()
    narrow = cut(found.model, found.analysis, wrong)
    samples = Samples(feeds_for(found.model, 0, 8))
    verification = compare_with_masked(found.model, found.analysis, kept, narrow, samples, OPTIONS)
    assert not verification.passed
    with pytest.raises(VerificationError, match=r"relative error .* tolerance .*Nothing was written"):
        require_passed(verification, "after surgery")


@pytest.mark.parametrize("name", ["residual", "concat_branches", "attention_heads", "conv_grouped", "pools"])
def test_models_that_magnify_rounding_are_compared_by_segments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oamip_onnx.verify.oracle.LARGEST_TOLERANCE", 0.0)
    found = analysed(GRAPHS[name]())
    kept = random_kept(found.analysis, 0)
    samples = Samples(feeds_for(found.model, 0, 12))
    right = compare_with_masked(
        found.model, found.analysis, kept, cut(found.model, found.analysis, kept), samples, OPTIONS
    )
    assert (right.passed, right.samples, right.tolerance) == (True, 8, 1e-4)
    other = random_kept(found.analysis, 1)
    wrong = compare_with_masked(
        found.model, found.analysis, kept, cut(found.model, found.analysis, other), samples, OPTIONS
    )
    assert not wrong.passed


def test_other_output_shape_is_found() -> None:
    found = analysed(GRAPHS["residual"]())
    kept = random_kept(found.analysis, 0)
    narrow = cut(found.model, found.analysis, kept)
    last = narrow.graph.node[-2]
    for position in (1, 2):
        tensor = next(t for t in narrow.graph.initializer if t.name == last.input[position])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:4], tensor.name))
    samples = Samples(feeds_for(found.model, 0, 8))
    with pytest.raises(VerificationError, match="has shape"):
        compare_with_masked(found.model, found.analysis, kept, narrow, samples, OPTIONS)


def test_changed_interface_is_found() -> None:
    proto = GRAPHS["residual"]()
    other = onnx.ModelProto.FromString(proto.SerializeToString())
    other.graph.output[0].name = "z"
    with pytest.raises(VerificationError, match="outputs of the pruned model differ"):
        check_result(other, proto, OPTIONS)


def test_finding_of_the_checker_is_raised_unless_the_original_has_it() -> None:
    proto = GRAPHS["residual"]()
    stale = onnx.ModelProto.FromString(proto.SerializeToString())
    value = next(v for v in stale.graph.value_info if v.name == "t0")
    value.type.tensor_type.shape.dim[1].dim_value = 5
    with pytest.raises(VerificationError, match="checker refuses"):
        check_result(stale, proto, OPTIONS)
    check_result(proto, proto, OPTIONS)


def test_drift_of_a_model_against_itself_is_none() -> None:
    proto = GRAPHS["residual"]()
    samples = replace(Samples(feeds_for(analysed(proto).model, 0, 20)), labels=np.zeros(20, dtype=np.int64))
    drift = measure_drift(proto, proto, "y", samples, OPTIONS)
    assert drift.cosine == pytest.approx(1)
    assert drift.sqnr_db == np.inf
    assert drift.top1_agreement == 1
    assert drift.accuracy_original == drift.accuracy_pruned
    assert drift.samples == 20
