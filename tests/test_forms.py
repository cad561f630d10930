"""Each form of the program agrees with ONNX Runtime, in the sense that the form has, on every small network."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import GRAPHS, Builder, image
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from oracle import PLAIN, Analysed, analysed, feeds_for, random_kept

from oamip_onnx.channels import FIXED
from oamip_onnx.formulation import (
    GATE_FORM,
    SHIFT_FORM,
    Constraint,
    JointOptions,
    JointProgram,
    MaxPool,
    Relu,
    build_network,
    joint_program,
    max_pool,
    max_pool_at_winner,
)
from oamip_onnx.formulation.expressions import depends_on_scores
from oamip_onnx.importance.heads import Head, fit_head, head_of, quadrants
from oamip_onnx.masking import MaskedSession
from oamip_onnx.runtime import Session
from oamip_onnx.solvers import ConicSolver, IntegerSolver, SolverStatus
from oamip_onnx.tasks import TaskData

Feeds = Mapping[str, npt.NDArray[np.generic]]

# The network computes in float64, ONNX Runtime in float32.
TOLERANCE = 1e-4

# Rows are products of float64 numbers of moderate size.
ROUNDING = 1e-7


def dense() -> onnx.ModelProto:
    b = Builder(["N", 6], seed=1)
    x = b.add("Relu", b.gemm("x", 6, 8))
    x = b.add("Relu", b.gemm(x, 8, 7))
    return b.finish(b.gemm(x, 7, 4))


def pooled() -> onnx.ModelProto:
    b = image(seed=2)
    x = b.add("Relu", b.conv("x", 3, 4))
    x = b.add("MaxPool", b.add("Relu", b.conv(x, 4, 3)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.add("Relu", b.gemm(b.add("Flatten", x), 48, 6))
    return b.finish(b.gemm(x, 6, 4))


SMALL = {
    "dense": dense,
    "pooled": pooled,
    **{
        name: GRAPHS[name]
        for name in (
            "batch_normalisation",
            "batch_normalisation_before_conv",
            "concat_branches",
            "conv_grouped",
            "conv_relu_flatten_gemm",
            "global_pools",
            "pools",
            "residual",
        )
    },
}


def relative_error(value: npt.NDArray[np.float64], reference: npt.NDArray[np.generic]) -> float:
    expected = np.asarray(reference, np.float64).reshape(value.shape)
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def joint_of(subject: Analysed, feeds: Feeds, options: JointOptions) -> JointProgram:
    network = build_network(subject.model, subject.analysis, subject.model.output_names[0])
    count = len(next(iter(feeds.values())))
    return joint_program(network, feeds, np.zeros(count, np.int64), options)


def logits_of(joint: JointProgram, x: npt.NDArray[np.float64], samples: int) -> npt.NDArray[np.float64]:
    return np.asarray(x[joint.program.block("logits").columns].reshape(samples, -1))


def assert_rows_hold(joint: JointProgram, x: npt.NDArray[np.float64]) -> None:
    violations = joint.program.violations(x)
    assert max(violations.values()) < ROUNDING * max(1.0, float(np.abs(x).max())), violations


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_mask_in_the_gate_form_is_the_masked_model(name: str, seed: int) -> None:
    """With s a 0/1 mask and v, ζ from the forward pass, no row is violated and q is the masked model's."""
    subject = analysed(SMALL[name]())
    feeds = feeds_for(subject.model, seed=seed)
    joint = joint_of(subject, feeds, JointOptions(form="gate"))
    kept = random_kept(subject.analysis, seed=seed)
    x = joint.point(kept.astype(np.float64))
    assert_rows_hold(joint, x)
    expected = MaskedSession(subject.model, subject.analysis, PLAIN).run(feeds, kept)["y"]
    assert relative_error(logits_of(joint, x, len(expected)), expected.reshape(len(expected), -1)) < TOLERANCE


@pytest.mark.parametrize("name", ["dense", "pooled", "residual", "conv_grouped"])
def test_the_gate_form_leaves_a_mask_one_value(name: str) -> None:
    """With s fixed to a mask, the smallest and the largest logit that the rows admit are the masked model's."""
    subject = analysed(SMALL[name]())
    feeds = {n: v[:1] for n, v in feeds_for(subject.model, seed=3).items()}
    joint = joint_of(subject, feeds, JointOptions(form="gate", loss_weight=0.0))
    kept = random_kept(subject.analysis, seed=2).astype(np.float64)
    expected = joint.point(kept)
    for sign in (1.0, -1.0):
        extreme = extreme_logit(joint, kept, sign)
        column = joint.program.block("logits").start
        assert extreme == pytest.approx(expected[column], abs=1e-4 * max(1.0, abs(expected[column])))


def extreme_logit(joint: JointProgram, scores: npt.NDArray[np.float64], sign: float) -> float:
    from dataclasses import replace

    program = joint.program
    block = program.block("scores")
    fixed = replace(block, lower=scores, upper=scores)
    blocks = tuple(fixed if b is block else b for b in program.blocks)
    cost = np.zeros(program.variable_count)
    column = program.block("logits").start
    cost[column] = sign
    found = IntegerSolver().solve(replace(program, blocks=blocks, cost=cost, exponentials=None, start=None))
    return float(found.x[column])


@pytest.mark.parametrize("form", ["shift", "gate"])
@pytest.mark.parametrize("inactive_rows", [False, True])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_original_is_a_point_of_every_form(name: str, form: str, inactive_rows: bool) -> None:  # noqa: FBT001 - parameter
    subject = analysed(SMALL[name]())
    feeds = feeds_for(subject.model, seed=1)
    options = JointOptions(form="gate" if form == "gate" else "shift", inactive_rows=inactive_rows)
    joint = joint_of(subject, feeds, options)
    assert joint.program.start is not None
    assert_rows_hold(joint, joint.program.start)
    expected = Session(subject.model.proto, PLAIN).run(feeds)["y"]
    logits = logits_of(joint, joint.program.start, len(expected))
    assert relative_error(logits, expected.reshape(len(expected), -1)) < TOLERANCE


def shifted_in_runtime(
    subject: Analysed, joint: JointProgram, scores: npt.NDArray[np.float64], feeds: Feeds
) -> npt.NDArray[np.generic]:
    """Return what ONNX Runtime computes with (1 - s)U⁺ subtracted in front of every ReLU."""
    proto = onnx.ModelProto()
    proto.CopyFrom(subject.model.proto)
    depends = depends_on_scores(joint.network)
    values, offsets = joint.network.forward(feeds), {}
    relus = {layer.output: layer for layer in joint.network.layers if isinstance(layer, Relu)}
    for index in reversed(range(len(proto.graph.node))):
        node = proto.graph.node[index]
        if node.op_type != "Relu" or node.output[0] not in relus:
            continue
        layer = relus[node.output[0]]
        # The first layer is exact: there U = a.
        upper = np.where(depends[layer.input], joint.bounds.upper[layer.input], values[layer.input])
        share = np.where(layer.units == FIXED, 0.0, 1.0 - np.append(scores, 1.0)[layer.units])
        shape = subject.analysis.types[node.input[0]].shape
        name = f"offset_{index}"
        offsets[name] = (share * np.maximum(upper, 0.0)).reshape(-1, *shape[1:]).astype(np.float32)
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, offsets[name].shape))
        proto.graph.node.insert(index, helper.make_node("Sub", [node.input[0], name], [f"shifted_{index}"]))
        proto.graph.node[index + 1].input[0] = f"shifted_{index}"
    return Session(proto, PLAIN).run({**feeds, **offsets})["y"]


# Networks whose every scored tensor comes out of a ReLU, in front of which ONNX Runtime can shift.
SHIFTED = ("batch_normalisation", "conv_relu_flatten_gemm", "dense", "global_pools", "pooled", "residual")


@pytest.mark.parametrize("name", SHIFTED)
def test_the_valid_shift_form_is_the_shifted_network(name: str) -> None:
    """Any s that stays inside the trust region meets every row, and q is what ONNX Runtime computes with the shift."""
    subject = analysed(SMALL[name]())
    feeds = feeds_for(subject.model, seed=4)
    # The winner of a max-pool may change inside the region, so its binaries are needed.
    table: Mapping[type, Constraint] = {MaxPool: max_pool}
    joint = joint_of(subject, feeds, JointOptions(trust_radius=1.0, constraints=table))
    inside = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        scores = 1 - random.uniform(0, 0.3) * random.uniform(0, 1, joint.network.unit_count)
        values = joint.forward(scores)
        layers = [layer for layer in joint.network.layers if isinstance(layer, Relu)]
        if not all(
            (joint.bounds.lower[k.input] <= values[k.input]).all()
            and (values[k.input] <= joint.bounds.upper[k.input]).all()
            for k in layers
        ):
            continue
        inside += 1
        x = joint.point(scores)
        rows = {family: v for family, v in joint.program.violations(x).items() if not family.startswith("variable")}
        assert max(rows.values()) < ROUNDING * max(1.0, float(np.abs(x).max())), rows
        expected = shifted_in_runtime(subject, joint, scores, feeds)
        assert relative_error(logits_of(joint, x, len(expected)), expected.reshape(len(expected), -1)) < TOLERANCE
    assert inside >= 3


@pytest.mark.parametrize("name", sorted(SMALL))
def test_both_solvers_agree_where_every_state_is_decided(name: str) -> None:
    subject = analysed(SMALL[name]())
    feeds = feeds_for(subject.model, seed=4)
    joint = joint_of(subject, feeds, JointOptions(largest_open=0))
    assert joint.open_count == 0
    conic, integer = ConicSolver().solve(joint.program), IntegerSolver().solve(joint.program)
    assert conic.result.objective == pytest.approx(integer.result.objective, abs=1e-3)
    assert integer.result.bound == pytest.approx(integer.result.objective, abs=1e-3)


def features(seed: int, count: int = 30) -> npt.NDArray[np.float64]:
    return np.abs(np.random.default_rng(seed).normal(size=(count, 9, 5)))


@pytest.mark.parametrize("classifies", [True, False])
@pytest.mark.parametrize("kind", ["linear", "hidden", "pooled"])
def test_a_layers_program_is_its_head_on_masked_activations(kind: str, classifies: bool) -> None:  # noqa: FBT001 - parameter
    values = features(0)
    random = np.random.default_rng(1)
    targets = np.eye(3)[random.integers(0, 3, 30)] if classifies else random.normal(size=(30, 3))
    head = fitted(kind, values, targets, classifies=classifies)
    units = np.tile(np.arange(5), 9)
    network = head.network(units, 5)
    flat = values.reshape(30, -1)
    options = JointOptions(form="gate", loss="marginal-softmax" if classifies else "squared-error")
    joint = joint_program(network, {"activations": flat}, targets, options)
    for mask in (np.ones(5), np.array([1, 0, 0, 1, 1.0]), np.zeros(5)):
        x = joint.point(mask)
        assert_rows_hold(joint, x)
        np.testing.assert_allclose(logits_of(joint, x, 30), head(flat * mask[units]), rtol=1e-6, atol=1e-9)


def fitted(kind: str, values: npt.NDArray[np.float64], targets: npt.NDArray[np.float64], *, classifies: bool) -> Head:
    arrays = {"features": values, "targets": targets, "pooling": quadrants((3, 3))}
    return head_of(fit_head(TaskData(arrays, {"kind": kind, "classifies": classifies, "seed": 0})))


@pytest.mark.parametrize("kind", ["linear", "hidden", "pooled"])
def test_a_head_learns_what_its_layer_tells(kind: str) -> None:
    """The label is which channel is largest on average; every head finds it on its own samples."""
    values = features(2, 120)
    labels = values.mean(axis=1).argmax(axis=1)
    head = fitted(kind, values, np.eye(5)[labels], classifies=True)
    assert (head(values.reshape(120, -1)).argmax(axis=1) == labels).mean() > 0.8


def test_quadrants_average_each_axis_to_two() -> None:
    matrix = quadrants((4, 3))
    assert matrix.shape == (4, 12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    np.testing.assert_allclose(matrix[0].reshape(4, 3), [[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0], [0, 0, 0]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), samples=st.integers(1, 4))
def test_a_hinge_point_has_the_losses_of_its_logits(seed: int, samples: int) -> None:
    subject = analysed(dense())
    feeds = feeds_for(subject.model, seed=seed, batch=samples)
    network = build_network(subject.model, subject.analysis, "y")
    labels = np.random.default_rng(seed).integers(0, 4, samples)
    joint = joint_program(network, feeds, labels, JointOptions(loss="hinge", form="gate"))
    x = joint.point(random_kept(subject.analysis, seed=seed).astype(np.float64))
    assert_rows_hold(joint, x)
    q = logits_of(joint, x, samples)
    margin = 1.0 + q - q[np.arange(samples), labels][:, None]
    margin[np.arange(samples), labels] = 0.0
    np.testing.assert_allclose(x[joint.program.block("losses").columns], np.maximum(margin.max(axis=1), 0.0))


def test_the_table_of_constraints_can_be_overridden() -> None:
    subject = analysed(pooled())
    feeds = feeds_for(subject.model, seed=1)
    plain = joint_of(subject, feeds, JointOptions(form="gate"))
    fixed = joint_of(subject, feeds, JointOptions(form="gate", constraints={MaxPool: max_pool_at_winner}))
    assert plain.program.columns("winners").size > 0
    assert fixed.program.columns("winners").size == 0
    assert any("fixed at the winner" in note for note in fixed.program.notes)
    assert set(SHIFT_FORM) == set(GATE_FORM)


def test_binary_scores_are_searched_and_proven() -> None:
    """Binary scores on the last hidden layer: SCIP's optimum is the best of all subsets."""
    subject = analysed(dense())
    feeds = feeds_for(subject.model, seed=3, batch=3)
    network = build_network(subject.model, subject.analysis, "y")
    labels = network.forward(feeds)[network.logits].argmax(axis=1)
    last = subject.analysis.group_of_unit() == 1
    widths = [8, 3]
    options = JointOptions(form="gate", widths=widths, binary_scores=last, loss_weight=1.0)
    joint = joint_program(network, feeds, labels, options)
    found = IntegerSolver(gap=0.0).solve(joint.program)
    assert found.result.status is SolverStatus.OPTIMAL
    chosen = found.x[joint.program.block("scores").columns][8:]
    np.testing.assert_allclose(chosen, np.round(chosen), atol=1e-5)
    masks = [m for m in np.indices((2,) * 7).reshape(7, -1).T if m.sum() == 3]
    values = [joint.program.objective(joint.point(np.concatenate([np.ones(8), m]).astype(np.float64))) for m in masks]
    assert found.result.objective == pytest.approx(min(values), abs=1e-3)
