"""The program's network is ONNX Runtime's, its bounds hold, and its rows say what the equations say."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import GRAPHS, Builder, image
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PLAIN, Analysed, analysed, feeds_for, random_kept
from scipy import sparse

from oamip_onnx.channels import FIXED, analyse
from oamip_onnx.errors import SolverError, UnsupportedOperatorError
from oamip_onnx.formulation import (
    BUILDERS,
    Affine,
    JointOptions,
    Network,
    NodeView,
    Program,
    Relu,
    Same,
    Shift,
    build_network,
    gate_response,
    interval_bounds,
    joint_bounds,
    joint_program,
    shift_response,
)
from oamip_onnx.masking import MaskedSession
from oamip_onnx.model import infer_shapes, load_model
from oamip_onnx.runtime import Session

FloatArray = npt.NDArray[np.float64]
Feeds = Mapping[str, npt.NDArray[np.generic]]

# The network computes in float64, ONNX Runtime in float32.
TOLERANCE = 1e-4

# Graphs of the shared table that the joint program can express; the others must be refused by name.
EXPRESSIBLE = {
    "arithmetic",
    "batch_normalisation",
    "batch_normalisation_before_conv",
    "concat_branches",
    "concat_with_input",
    "conv_1d",
    "conv_3d",
    "conv_channel_multiplier",
    "conv_depthwise",
    "conv_grouped",
    "conv_relu_flatten_gemm",
    "conv_stride_dilation_auto_pad",
    "conv_without_bias",
    "gather_channels",
    "global_pools",
    "identity_and_dropout",
    "pad_plane",
    "pools",
    "reduce_mean_plane",
    "reshape_computed_batch",
    "residual",
    "slice_channels",
    "transpose_channels_last",
}


def network_of(subject: Analysed) -> Network:
    return build_network(subject.model, subject.analysis, subject.model.output_names[0])


def dense_net() -> onnx.ModelProto:
    b = Builder(["N", 1, 28, 28], seed=3)
    x = b.gemm(b.add("Flatten", "x"), 784, 300)
    x = b.gemm(b.add("Relu", x), 300, 100)
    return b.finish(b.gemm(b.add("Relu", x), 100, 10))


def small_net() -> onnx.ModelProto:
    b = Builder(["N", 6], seed=1)
    x = b.add("Relu", b.gemm("x", 6, 8))
    x = b.add("Relu", b.gemm(x, 8, 7))
    return b.finish(b.gemm(x, 7, 4))


def relative_error(value: FloatArray, reference: npt.NDArray[np.generic]) -> float:
    expected = np.asarray(reference, np.float64).reshape(value.shape)
    return float(np.abs(value - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", sorted(EXPRESSIBLE))
def test_network_computes_what_onnx_runtime_computes(name: str) -> None:
    subject = analysed(GRAPHS[name]())
    feeds = feeds_for(subject.model, seed=1)
    network = network_of(subject)
    expected = Session(subject.model.proto, PLAIN).run(feeds)["y"]
    assert relative_error(network.forward(feeds)[network.logits], expected) < TOLERANCE


@pytest.mark.parametrize("name", sorted(EXPRESSIBLE))
def test_scores_act_where_the_mask_acts(name: str) -> None:
    """With every score 0 or 1 and h = s·ReLU(a), the network is the masked model."""
    subject = analysed(GRAPHS[name]())
    feeds = feeds_for(subject.model, seed=2)
    kept = random_kept(subject.analysis, seed=5)
    scores = kept.astype(np.float64)
    network = network_of(subject).with_scaled_bias(scores)
    value = network.forward(feeds, gate_response(scores))[network.logits]
    expected = MaskedSession(subject.model, subject.analysis, PLAIN).run(feeds, kept)["y"]
    assert relative_error(value, expected) < TOLERANCE


@pytest.mark.parametrize("name", ["matmul_activations", "squeeze_and_excite", "gemm_layouts", "conv_transpose"])
def test_inexpressible_operator_is_refused_by_name(name: str) -> None:
    subject = analysed(GRAPHS[name]())
    with pytest.raises(UnsupportedOperatorError, match=r"operator \w+ of the node '\w+'.*position \d+.*layer-wise"):
        network_of(subject)


def test_user_can_add_an_operator() -> None:
    b = image()
    x = b.add("Neg", b.add("Relu", b.conv("x", 3, 4)))
    subject = analysed(b.finish(b.gemm(b.add("Flatten", x), 256, 5)))

    def negative(view: NodeView) -> Affine | Same:
        return view.affine(sparse.csr_array(-sparse.eye_array(int(np.prod(view.shape())))))

    logits = subject.model.output_names[0]
    network = build_network(subject.model, subject.analysis, logits, {**BUILDERS, "Neg": negative})
    feeds = feeds_for(subject.model, seed=0)
    expected = Session(subject.model.proto, PLAIN).run(feeds)["y"]
    assert relative_error(network.forward(feeds)[network.logits], expected) < TOLERANCE


def fixed_at_start(program: Program) -> tuple[FloatArray, dict[str, float]]:
    assert program.start is not None
    return program.start, program.violations(program.start)


def assert_start_is_the_original(program: Program, expected: npt.NDArray[np.generic]) -> None:
    x, violations = fixed_at_start(program)
    np.testing.assert_allclose(x[program.block("scores").columns], 1.0)
    # With s and h fixed, the rows of the family "logits" leave one value for q: ONNX Runtime's.
    logits = x[program.block("logits").columns].reshape(len(expected), -1)
    assert relative_error(logits, expected) < TOLERANCE
    assert max(violations.values()) < 1e-7, violations


def test_lenet_program_at_one_gives_onnx_runtimes_logits(fashion: Path) -> None:
    model = load_model(fashion / "lenet5.onnx")
    data = np.load(fashion / "calibration.npz")
    feeds = {model.input_names[0]: data["x"][:10].astype(np.float32).reshape(10, 1, 28, 28) / 255}
    analysis = analyse(model, infer_shapes(model, {n: v.shape for n, v in feeds.items()}, feeds))
    network = build_network(model, analysis, model.output_names[0])
    expected = Session(model.proto, PLAIN).run(feeds)[model.output_names[0]]
    program = joint_program(network, feeds, data["labels"][:10].astype(np.int64)).program
    assert_start_is_the_original(program, expected)


def test_dense_program_at_one_gives_onnx_runtimes_logits() -> None:
    subject = analysed(dense_net())
    feeds = {"x": np.random.default_rng(0).uniform(0, 1, (10, 1, 28, 28)).astype(np.float32)}
    expected = Session(subject.model.proto, PLAIN).run(feeds)["y"]
    assert_start_is_the_original(joint_program(network_of(subject), feeds, np.arange(10)).program, expected)


@pytest.mark.parametrize("name", sorted(EXPRESSIBLE))
def test_small_program_at_one_gives_onnx_runtimes_logits(name: str) -> None:
    subject = analysed(GRAPHS[name]())
    network = network_of(subject)
    feeds = feeds_for(subject.model, seed=1)
    expected = Session(subject.model.proto, PLAIN).run(feeds)["y"].reshape(2, -1)
    assert_start_is_the_original(joint_program(network, feeds, np.zeros(2, np.int64)).program, expected)


def test_first_layer_needs_neither_rows_nor_variables() -> None:
    b = image()
    x = b.add("MaxPool", b.add("Relu", b.conv("x", 3, 6)), kernel_shape=[2, 2], strides=[2, 2])
    subject = analysed(b.finish(b.gemm(b.add("Flatten", x), 96, 5)))
    feeds = feeds_for(subject.model, seed=1)
    program = joint_program(network_of(subject), feeds, np.zeros(2, np.int64)).program
    assert [rows.family for rows in program.rows] == ["logits"]
    assert program.columns("activations").size == 0


def test_first_layer_is_linear_in_its_scores() -> None:
    b = image()
    x = b.add("MaxPool", b.add("Relu", b.conv("x", 3, 6)), kernel_shape=[2, 2], strides=[2, 2])
    subject = analysed(b.finish(b.gemm(b.add("Flatten", x), 96, 5)))
    feeds = feeds_for(subject.model, seed=1)
    network = network_of(subject)
    program = joint_program(network, feeds, np.zeros(2, np.int64)).program
    scores = np.random.default_rng(0).uniform(0, 1, network.unit_count)
    expected = network.forward(feeds, gate_response(scores))[network.logits]
    np.testing.assert_allclose(logits_at(program, scores), expected, rtol=1e-9, atol=1e-12)


def logits_at(program: Program, scores: FloatArray) -> FloatArray:
    """Return the logits that the rows leave for given scores, where no activation is a variable."""
    (rows,) = [r for r in program.rows if r.family == "logits"]
    block = program.block("logits")
    x = np.zeros(program.variable_count)
    x[program.block("scores").columns] = scores
    logits = rows.matrix @ x - rows.lower
    samples = program.block("losses").size
    return np.asarray(logits, np.float64).reshape(samples, block.size // samples)


def test_shift_rows_hold_inside_the_trust_region() -> None:
    """Any s for which no row is violated gives the network with h = ReLU(a - (1 - s)U⁺)."""
    subject = analysed(small_net())
    network = network_of(subject)
    feeds = feeds_for(subject.model, seed=4, batch=3)
    options = JointOptions()
    program = joint_program(network, feeds, np.zeros(3, np.int64), options).program
    values = network.forward(feeds)
    bounds = joint_bounds(network, feeds, values, options)
    assert program.columns("activations").size == 0
    checked = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        scores = 1 - 10 ** random.uniform(-6, -1) * random.uniform(0, 1, network.unit_count)
        x = np.zeros(program.variable_count)
        x[program.block("scores").columns] = scores
        violations = [
            max(float((rows.lower - rows.matrix @ x).max()), float((rows.matrix @ x - rows.upper).max()))
            for rows in program.rows
            if rows.family.startswith("relu")
        ]
        if max(violations) > 0:
            continue
        checked += 1
        expected = network.forward(feeds, shift_response(network, bounds, scores))[network.logits]
        np.testing.assert_allclose(logits_at(program, scores), expected, rtol=1e-9, atol=1e-9)
    assert checked >= 3


@pytest.mark.parametrize("hidden", [8, 7])
def test_a_mask_on_live_units_violates_the_authors_rows(hidden: int) -> None:
    subject = analysed(small_net())
    network = network_of(subject)
    feeds = feeds_for(subject.model, seed=4, batch=3)
    program = joint_program(network, feeds, np.zeros(3, np.int64), JointOptions(inactive_rows=True)).program
    layer = next(layer for layer in network.layers if isinstance(layer, Relu) and layer.size == hidden)
    live = (network.forward(feeds)[layer.output] > 1e-2).any(axis=0)
    x = np.zeros(program.variable_count)
    x[program.block("scores").columns] = 1.0
    x[program.block("scores").start + layer.units[np.flatnonzero(live)[0]]] = 0.0
    below = [float((rows.lower - rows.matrix @ x).max()) for rows in program.rows if rows.family.startswith("relu")]
    above = [float((rows.matrix @ x - rows.upper).max()) for rows in program.rows if rows.family.startswith("relu")]
    # A unit of the last hidden layer misses h >= 0 by U - a only, a few times the radius of the box.
    assert max(below + above) > (0.01 if hidden == 8 else 1e-5)


def test_the_authors_rows_add_what_inactive_units_ask() -> None:
    subject = analysed(small_net())
    feeds = feeds_for(subject.model, seed=4, batch=3)
    families = {
        inactive: {
            r.family for r in joint_program(network_of(subject), feeds, np.zeros(3, np.int64), options).program.rows
        }
        for inactive, options in ((False, JointOptions()), (True, JointOptions(inactive_rows=True)))
    }
    assert families[True] - families[False] == {"relu off: L ≤ a ≤ 0"}


def test_too_many_open_states_shrink_the_box_and_are_noted() -> None:
    subject = analysed(small_net())
    feeds = feeds_for(subject.model, seed=4, batch=3)
    options = JointOptions(radius=1.0, largest_open=3)
    program = joint_program(network_of(subject), feeds, np.zeros(3, np.int64), options).program
    assert program.binary_count == 0
    assert any("shrunk" in note for note in program.notes)


def test_anchor_bounds_the_logits() -> None:
    subject = analysed(small_net())
    network = network_of(subject)
    feeds = feeds_for(subject.model, seed=4, batch=3)
    program = joint_program(network, feeds, np.zeros(3, np.int64), JointOptions(anchor=0.25)).program
    original = network.forward(feeds)[network.logits].reshape(-1)
    np.testing.assert_allclose(program.block("logits").lower, original - 0.25)
    np.testing.assert_allclose(program.block("logits").upper, original + 0.25)


def test_largest_layer_means_value_the_original() -> None:
    """At s = 1 every mean of (s - 2) is -1, and K - 1 of them are summed."""
    subject = analysed(small_net())
    feeds = feeds_for(subject.model, seed=4, batch=3)
    options = JointOptions(layer_rescale="largest", loss_weight=0.0)
    program = joint_program(network_of(subject), feeds, np.zeros(3, np.int64), options).program
    x, violations = fixed_at_start(program)
    assert max(violations.values()) < 1e-9
    assert program.objective(x) == pytest.approx(-1.0)


def test_program_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from oamip_onnx.formulation import rows

    monkeypatch.setattr(rows, "LARGEST_PROGRAM", 10)
    subject = analysed(small_net())
    feeds = feeds_for(subject.model, seed=4, batch=3)
    with pytest.raises(SolverError, match=r"exceeds 10 coefficients.*fewer samples"):
        joint_program(network_of(subject), feeds, np.zeros(3, np.int64))


POOLED = analysed(GRAPHS["pools"]())
RESIDUAL = analysed(GRAPHS["residual"]())


@settings(max_examples=25)
@given(
    subject=st.sampled_from([POOLED, RESIDUAL]),
    seed=st.integers(0, 2**16),
    radius=st.floats(1e-6, 0.5),
)
def test_bounds_contain_every_sampled_activation(subject: Analysed, seed: int, radius: float) -> None:
    network = network_of(subject)
    feeds = feeds_for(subject.model, seed=seed)
    bounds = interval_bounds(network, feeds, radius)
    random = np.random.default_rng(seed)
    moved = {n: v + random.uniform(-radius, radius, v.shape) for n, v in feeds.items()}
    for name, values in network.forward(moved).items():
        slack = 1e-9 * (1 + np.abs(values))
        assert (bounds.lower[name] <= values + slack).all()
        assert (values <= bounds.upper[name] + slack).all()


def test_the_box_is_clipped_to_the_domain() -> None:
    subject = analysed(small_net())
    feeds = {"x": np.array([[0.0, 1.0, 0.5, 0.5, 0.5, 0.5]], np.float32)}
    bounds = interval_bounds(network_of(subject), feeds, radius=0.3, domain=(0.0, 0.8))
    np.testing.assert_allclose(bounds.lower["x"][0, :3], [-0.3, 0.7, 0.2])
    np.testing.assert_allclose(bounds.upper["x"][0, :3], [0.3, 1.1, 0.8])


def test_unscored_cells_are_fixed() -> None:
    subject = analysed(GRAPHS["concat_with_input"]())
    network = network_of(subject)
    units = np.concatenate([layer.units for layer in network.layers if isinstance(layer, Relu | Shift)])
    assert (units != FIXED).any()
    assert units.max() < network.unit_count
