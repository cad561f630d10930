"""Scores are what they claim to be: exact for one unit, repeatable, and blind to the order of channels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import GRAPHS, Builder, image
from onnx import numpy_helper
from oracle import PLAIN, Analysed, analysed, feeds_for

from oamip_onnx.calibration import Samples
from oamip_onnx.channels import analyse, select_units
from oamip_onnx.errors import DataError, SolverError, UnsupportedOperatorError, UsageError
from oamip_onnx.formulation import response_program
from oamip_onnx.importance import (
    CRITERIA,
    ImportanceContext,
    Scores,
    find_logits,
    heads,
    joint_scores,
    layerwise_scores,
    response_scores,
    score,
)
from oamip_onnx.importance import measuring as measuring_module
from oamip_onnx.importance.logits import balanced_rows, loss_of
from oamip_onnx.importance.measuring import Responses
from oamip_onnx.masking import MaskedSession, MaskedSuffixes
from oamip_onnx.model import infer_shapes, load_model
from oamip_onnx.runtime import RuntimeOptions
from oamip_onnx.solvers import SolverOptions, SolverStatus

ONE_THREAD = RuntimeOptions(threads=1)


def classifier(seed: int = 1) -> onnx.ModelProto:
    b = image(seed=seed)
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("MaxPool", b.add("Relu", b.conv(x, 8, 6)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.add("Relu", b.gemm(b.add("Flatten", x), 96, 10))
    return b.finish(b.gemm(x, 10, 4))


def context_of(subject: Analysed, *, count: int = 24, share: float = 0.5, seed: int = 0) -> ImportanceContext:
    feeds = feeds_for(subject.model, seed=3, batch=count)
    widths = tuple(
        max(g.minimum_width, round(g.width * share / g.block_count) * g.block_count) for g in subject.analysis.groups
    )
    return ImportanceContext(
        subject.model,
        subject.analysis,
        Samples(feeds),
        PLAIN,
        widths,
        seed,
        find_logits(subject.model, subject.analysis.types),
    )


def with_oamip(context: ImportanceContext, **settings: Any) -> ImportanceContext:
    return replace(context, oamip=replace(context.oamip, **settings))


def with_permuted_channels(proto: onnx.ModelProto, order: npt.NDArray[np.int64]) -> onnx.ModelProto:
    """Return the classifier with the output channels of its second convolution in another order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in copy.graph.initializer}
    second = [n for n in copy.graph.node if n.op_type == "Conv"][1]
    gemm = next(n for n in copy.graph.node if n.op_type == "Gemm")
    arrays[second.input[1]] = arrays[second.input[1]][order]
    arrays[second.input[2]] = arrays[second.input[2]][order]
    weight = arrays[gemm.input[1]]
    arrays[gemm.input[1]] = weight.reshape(len(weight), len(order), -1)[:, order].reshape(weight.shape)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    return copy


def test_magnitude_is_the_norm_of_the_producing_rows() -> None:
    b = Builder(["N", 2])
    x = b.add("Gemm", "x", b.constant(np.array([[3, 4], [0, 5], [0, 0], [6, 8]], np.float32)), transB=1)
    y = b.add("MatMul", b.add("Relu", x), b.constant(np.ones((4, 3), np.float32)))
    scores = score("magnitude", context_of(analysed(b.finish(y))))
    np.testing.assert_allclose(scores.values, np.array([5, 5, 0, 10]) / 10)


def test_magnitude_reads_convolution_kernels() -> None:
    b = image()
    kernel = np.zeros((4, 3, 3, 3), np.float32)
    kernel[:, 0, 0, 0] = [1, 2, 3, 4]
    x = b.add("Relu", b.add("Conv", "x", b.constant(kernel), pads=[1, 1, 1, 1]))
    scores = score("magnitude", context_of(analysed(b.finish(b.gemm(b.add("Flatten", x), 256, 5)))))
    np.testing.assert_allclose(scores.values, [0.25, 0.5, 0.75, 1.0])


def test_random_repeats_with_its_seed() -> None:
    subject = analysed(classifier())
    first, again, other = (score("random", context_of(subject, seed=s)).values for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_unknown_names_are_refused() -> None:
    context = context_of(analysed(classifier()))
    with pytest.raises(UsageError, match="did you mean 'magnitude'"):
        score("magnitud", context)
    with pytest.raises(UsageError, match="did you mean 'response'"):
        score("oamip", with_oamip(context, form="respons"))


def test_logits_are_taken_before_a_final_softmax() -> None:
    b = Builder(["N", 6])
    logits = b.gemm(b.add("Relu", b.gemm("x", 6, 8)), 8, 4)
    subject = analysed(b.finish(b.add("Softmax", logits, axis=1)))
    assert find_logits(subject.model, subject.analysis.types) == logits
    plain = analysed(classifier())
    assert find_logits(plain.model, plain.analysis.types) == "y"


def test_every_single_removal_is_the_masked_models() -> None:
    """The program's q with one score at 0 and the others at 1 is what the masked model computes."""
    subject = analysed(classifier())
    context = context_of(subject)
    responses = Responses(context, context.samples)
    units = context.analysis.unit_count
    base = responses(np.ones(units, np.bool_))
    masks = np.ones((units, units), np.bool_) & ~np.eye(units, dtype=np.bool_)
    changes = np.stack([(responses(mask) - base).ravel() for mask in masks])
    owner, widths = subject.analysis.group_of_unit(), [g.width for g in subject.analysis.groups]
    program = response_program("check", base, changes, responses.loss.targets, owner, classifies=True, widths=widths)
    defined = program.defined_logits()
    assert defined is not None
    _, matrix, constant = defined
    session = MaskedSession(subject.model, subject.analysis, PLAIN)
    for mask in masks:
        q = matrix[:, :units] @ mask.astype(np.float64) + constant
        expected = session.run(context.samples.feeds, mask)["y"]
        np.testing.assert_allclose(q.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_response_scores_keep_the_planned_widths() -> None:
    context = context_of(analysed(classifier()))
    scores = response_scores(context)
    assert scores.values.shape == (context.analysis.unit_count,)
    assert ((scores.values >= 0) & (scores.values <= 1)).all()
    assert [r.task for r in scores.solver[:4]] == [f"response round {k}/4" for k in range(1, 5)]
    assert all(r.task.startswith("response exchange") for r in scores.solver[4:-1])
    assert scores.solver[-1].task == "response certificate"
    assert all(r.status in {SolverStatus.OPTIMAL, SolverStatus.INACCURATE} for r in scores.solver)
    # What stays is in the upper half.
    assert [int((scores.values[g.units] >= 0.5).sum()) for g, _ in zip_groups(context)] == list(context.widths or ())


def zip_groups(context: ImportanceContext) -> list[tuple[object, int]]:
    return list(zip(context.analysis.groups, context.widths, strict=True))


def test_response_scores_repeat() -> None:
    context = context_of(analysed(classifier()))
    np.testing.assert_array_equal(response_scores(context).values, response_scores(context).values)


@pytest.mark.parametrize("form", ["response", "layerwise", "shift", "gate"])
def test_scores_follow_a_permutation_of_channels(form: str) -> None:
    order = np.array([3, 0, 5, 1, 4, 2])
    proto = classifier()
    plain = score("oamip", with_oamip(context_of(analysed(proto)), form=form))
    moved = score("oamip", with_oamip(context_of(analysed(with_permuted_channels(proto, order))), form=form))
    expected = plain.values.copy()
    expected[8:14] = expected[8:14][order]
    np.testing.assert_allclose(moved.values, expected, atol=0.02)


def test_response_beats_random_on_its_own_loss() -> None:
    context = context_of(analysed(classifier()), share=0.4)
    measured = Responses(context, context.samples)
    losses = {}
    for name, scores in (("response", response_scores(context)), ("random", score("random", context))):
        kept = select_units(context.analysis, context.widths, scores.values)
        losses[name] = measured.loss(measured(kept))
    assert losses["response"] < losses["random"]


def test_blocks_keep_equal_counts() -> None:
    subject = analysed(GRAPHS["conv_grouped"]())
    context = context_of(subject)
    scores = score("oamip", context)
    kept = select_units(context.analysis, context.widths, scores.values)
    blocked = [g for g in subject.analysis.groups if g.blocks is not None]
    assert blocked
    for group in blocked:
        counts = np.bincount(np.asarray(group.blocks)[kept[group.units]], minlength=group.block_count)
        assert len(set(counts)) == 1


@pytest.mark.parametrize("form", ["response", "layerwise", "shift", "gate"])
def test_a_model_that_does_not_classify_is_scored_by_squares(form: str) -> None:
    b = image()
    x = b.add("Relu", b.conv("x", 3, 8))
    subject = analysed(b.finish(b.conv(x, 8, 2)))
    scores = score("oamip", with_oamip(context_of(subject), form=form))
    assert scores.form == form
    assert np.isfinite(scores.values).all()
    assert scores.values.max() > scores.values.min()


def test_many_classes_are_read_at_the_likeliest() -> None:
    values = np.random.default_rng(0).normal(size=(5, 100))
    loss = loss_of(values.shape, values)
    assert loss.targets.shape == (5, 32)
    np.testing.assert_allclose(loss.targets.sum(axis=1), 1.0)
    assert loss.read(values).min() >= np.sort(values, axis=1)[:, -32].min()
    assert loss(loss.read(values)) == pytest.approx(0.0, abs=1e-12)
    assert loss(loss.read(values + 3.0)) == pytest.approx(0.0, abs=1e-9)


def test_response_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring_module, "_LARGEST_PROGRAM", 100)
    with pytest.raises(SolverError, match=r"needs [\d,]+ responses.*layerwise"):
        response_scores(context_of(analysed(classifier())))


def test_values_that_are_no_numbers_are_an_error() -> None:
    context = context_of(analysed(classifier()))
    feeds = {name: np.full_like(values, np.nan) for name, values in context.samples.feeds.items()}
    with pytest.raises((SolverError, DataError), match="finite"):
        response_scores(replace(context, samples=Samples(feeds)))


@pytest.mark.parametrize("form", ["shift", "gate"])
def test_a_joint_program_names_an_operator_that_it_cannot_express(form: str) -> None:
    b = image()
    x = b.add("Tanh", b.conv("x", 3, 4))
    subject = analysed(b.finish(b.gemm(b.add("Flatten", x), 256, 5)))
    with pytest.raises(UnsupportedOperatorError, match="operator Tanh"):
        score("oamip", with_oamip(context_of(subject), form=form))


def test_shift_finds_dead_units() -> None:
    """A unit whose bias keeps it off for every image is free to go."""
    b = Builder(["N", 6], seed=4)
    bias = np.array([0.1, -50, 0.2, 0.1, -50, 0.3], np.float32)
    x = b.add("Relu", b.gemm("x", 6, 8))
    x = b.add("Relu", b.add("Gemm", x, b.weight(6, 8), b.constant(bias), transB=1))
    scores = joint_scores(with_oamip(context_of(analysed(b.finish(b.gemm(x, 6, 4)))), form="shift", images=8))
    np.testing.assert_allclose(scores.values[8:][[1, 4]], 0.0, atol=1e-3)
    assert scores.values[8:].max() > 0.1


def test_layerwise_meets_every_width() -> None:
    context = context_of(analysed(classifier()))
    scores = layerwise_scores(context)
    for group, width in zip(context.analysis.groups, context.widths, strict=True):
        assert scores.values[group.units].sum() == pytest.approx(width, abs=1e-3)


def test_auto_says_what_it_chose_and_why() -> None:
    scores = score("oamip", context_of(analysed(classifier())))
    assert scores.form in {"response", "layerwise"}
    assert any("gave the scores" in note for note in scores.notes)


def test_layerwise_works_where_no_operator_can_be_encoded() -> None:
    scores = score("oamip", with_oamip(context_of(analysed(GRAPHS["squeeze_and_excite"]())), form="layerwise"))
    assert np.isfinite(scores.values).all()


def test_rows_are_balanced_by_class() -> None:
    classes = np.array([0] * 50 + [1] * 5 + [2] * 45)
    counts = np.bincount(classes[balanced_rows(classes, 30, seed=0)])
    assert counts[1] == 5
    assert abs(int(counts[0]) - int(counts[2])) <= 1


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_gives_finite_scores(name: str) -> None:
    if name in {"taylor", "fisher", "snip"}:
        pytest.importorskip("torch", reason="needs PyTorch: pip install 'oamip-onnx[torch]'")
    scores: Scores = score(name, context_of(analysed(GRAPHS["residual"]())))
    # No repair follows that `auto` could judge by.
    assert scores.criterion == ("oamip" if name == "auto" else name)
    assert np.isfinite(scores.values).all()


def fashion_context(fashion: Path, name: str, share: float) -> tuple[ImportanceContext, npt.NDArray[np.float32]]:
    model = load_model(fashion / name)
    data = np.load(fashion / "calibration.npz")
    images = data["x"].astype(np.float32).reshape(-1, 1, 28, 28) / np.float32(255 if data["x"].dtype == np.uint8 else 1)
    feeds = {model.input_names[0]: images}
    analysis = analyse(model, infer_shapes(model, {n: v[:2].shape for n, v in feeds.items()}))
    widths = tuple(max(1, round(g.width * share)) for g in analysis.groups)
    logits = find_logits(model, analysis.types)
    return ImportanceContext(model, analysis, Samples(feeds), ONE_THREAD, widths, 0, logits), images


def masked_accuracy(context: ImportanceContext, scores: Scores, fashion: Path) -> float:
    data = np.load(fashion / "test.npz")
    images = data["x"].astype(np.float32).reshape(-1, 1, 28, 28) / np.float32(255 if data["x"].dtype == np.uint8 else 1)
    kept = select_units(context.analysis, context.widths, scores.values)
    session = MaskedSession(context.model, context.analysis, ONE_THREAD)
    logits = session.run({context.model.input_names[0]: images}, kept)[context.model.output_names[0]]
    return float(np.mean(logits.argmax(axis=1) == data["labels"]))


@pytest.mark.slow
def test_response_form_keeps_lenets_accuracy_without_repair(fashion: Path) -> None:
    context, _ = fashion_context(fashion, "lenet5.onnx", 0.6)
    assert masked_accuracy(context, response_scores(context), fashion) >= 0.80


@pytest.mark.slow
def test_shift_form_solves_lenet(fashion: Path) -> None:
    context, _ = fashion_context(fashion, "lenet5.onnx", 0.6)
    scores = joint_scores(with_oamip(context, form="shift"))
    assert scores.solver[0].status in {SolverStatus.OPTIMAL, SolverStatus.INACCURATE}
    assert scores.solver[0].seconds < 60


@pytest.mark.slow
def test_responses_are_solved_on_a_residual_network(fashion: Path) -> None:
    context, _ = fashion_context(fashion, "resnet8.onnx", 0.8)
    scores = response_scores(with_oamip(context, images=100))
    assert masked_accuracy(context, scores, fashion) > masked_accuracy(context, score("magnitude", context), fashion)


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_a_suffix_is_the_masked_model(name: str) -> None:
    """From a prefix at one mask, the part behind a group gives what the whole masked model gives at another."""
    subject = analysed(GRAPHS[name]())
    analysis, output = subject.analysis, subject.model.output_names[0]
    feeds = feeds_for(subject.model, seed=1)
    suffixes = MaskedSuffixes(subject.model, analysis, PLAIN, output)
    whole = MaskedSession(subject.model, analysis, PLAIN, [output])
    random = np.random.default_rng(0)
    alive = random.uniform(size=analysis.unit_count) < 0.7
    for number, group in enumerate(analysis.groups):
        prefix = suffixes.prefix(number, feeds, alive)
        other = alive.copy()
        unit = int(random.integers(group.units.start, group.units.stop))
        other[unit] = not other[unit]
        expected = whole.run(feeds, other)[output]
        np.testing.assert_allclose(suffixes.run(number, prefix, other), expected, rtol=1e-4, atol=1e-5)


def test_reweighting_drives_scores_apart() -> None:
    """A ReLU network is positively homogeneous, so that scores shrink evenly; reweighting decides between units."""
    context = with_oamip(context_of(analysed(classifier())), form="shift", images=8, loss_weight=1.0)
    plain, reweighted = (score("oamip", with_oamip(context, reweightings=k)) for k in (0, 3))
    assert len(reweighted.solver) == 4 * len(plain.solver)

    def undecided(values: npt.NDArray[np.float64]) -> float:
        return float((values * (1 - values)).sum())

    assert undecided(reweighted.values) < undecided(plain.values)


def test_binary_scores_of_the_last_group_are_searched() -> None:
    b = Builder(["N", 6], seed=1)
    x = b.add("Relu", b.gemm("x", 6, 8))
    x = b.add("Relu", b.gemm(x, 8, 7))
    subject = analysed(b.finish(b.gemm(x, 7, 4)))
    context = with_oamip(context_of(subject), form="gate", images=4, binary_scores=True)
    scores = score("oamip", context)
    assert "SCIP" in scores.solver[0].engine
    np.testing.assert_allclose(scores.values[8:], np.round(scores.values[8:]), atol=1e-5)
    (certificate,) = scores.certificates
    assert certificate.bound is not None
    assert certificate.bound <= certificate.objective


def test_tightened_bounds_raise_the_gate_forms_bound() -> None:
    """Bounds closer to the truth leave a relaxation less room, so that its optimum can only rise."""
    b = Builder(["N", 6], seed=3)
    x = b.add("Relu", b.gemm("x", 6, 8))
    x = b.add("Relu", b.gemm(x, 8, 8))
    x = b.add("Relu", b.gemm(x, 8, 7))
    subject = analysed(b.finish(b.gemm(x, 7, 4)))
    limits = SolverOptions(largest_binary=0)
    context = with_oamip(context_of(subject), form="gate", images=3, solver=limits)
    plain, tightened = (score("oamip", with_oamip(context, tighten_seconds=s)).solver[0] for s in (0.0, 5.0))
    assert plain.objective is not None
    assert tightened.objective is not None
    assert tightened.objective > plain.objective + 1e-6


def test_a_head_needs_samples_of_several_classes() -> None:
    features, targets = np.random.default_rng(0).normal(size=(8, 3)), np.tile([0.9, 0.1], (8, 1))
    with pytest.raises(DataError, match="takes all samples for one class"):
        heads._linear(features, targets, classifies=True)
