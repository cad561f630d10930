"""Conversions to int8 and float16: close outputs within a derived bound, the same interface, the input left alone."""

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import GRAPHS
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.converters.to_float16 import to_float16  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.converters.to_int8 import to_int8  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import DataError, ModelError
from oamip_onnx.runtime import Session

Array = npt.NDArray[np.float32]
WIDTH, OUTPUTS, SAMPLES = 64, 24, 128


def layer(weight: Array, opset: int = 17) -> onnx.ModelProto:
    """Return y = x·w, without a bias whose rounding would add to the bound."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", weight.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weight.shape[1]])
    graph = helper.make_graph([node], "layer", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def network(batch: str | int = "N") -> onnx.ModelProto:
    """Return a convolution with batch norm and ReLU, a pooling, and a classifier."""
    generator = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.normal(0, 0.3, shape).astype(np.float32), name)

    weights = [weight("c", 8, 3, 3, 3), weight("g", 8, 10), weight("b", 10)]
    weights += [numpy_helper.from_array(np.full(8, value, np.float32), name) for name, value in NORM.items()]
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["h", *NORM], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "b"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])
    graph = helper.make_graph(nodes, "network", [x], [y], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


NORM = {"scale": 1.1, "shift": 0.1, "mean": 0.2, "variance": 0.9}


def images(count: int = 32) -> Array:
    return np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)


def run(model: onnx.ModelProto, x: Array) -> Array:
    return np.asarray(Session(model).run({"x": x})["y"], np.float32)


def test_int8_errs_by_no_more_than_its_rounding() -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(WIDTH, OUTPUTS)).astype(np.float32)
    x = generator.uniform(-1, 2, (SAMPLES, WIDTH)).astype(np.float32)
    exact = x @ weight
    # Half a step of each scale: activations have 255 steps over their range, which holds 0; weights 64 to each side.
    x_step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    y_step = (exact.max() - exact.min()) / 255
    w_step = np.abs(weight).max(axis=0) / 63
    bound = (
        np.abs(x).sum(axis=1, keepdims=True) * w_step / 2
        + np.abs(weight).sum(axis=0) * x_step / 2
        + WIDTH * x_step * w_step / 4
        + y_step / 2
    )
    # Rounding of the scales themselves to float32, and of the zero points to whole steps.
    bound = bound * 1.01 + y_step / 2
    error = np.abs(run(to_int8(layer(weight), [{"x": x}]), x) - exact)
    assert (error <= bound).all()
    assert error.mean() < bound.mean() / 4


def test_float16_errs_by_no_more_than_its_rounding() -> None:
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(WIDTH, OUTPUTS)).astype(np.float32)
    x = generator.normal(size=(SAMPLES, WIDTH)).astype(np.float32)
    exact = x.astype(np.float64) @ weight
    # The unit round-off is 2⁻¹¹: once each for weight, input and output; sums in float16 round once more a term.
    unit = 2.0**-11
    bound = (WIDTH + 3) * unit * (np.abs(x) @ np.abs(weight))
    assert (np.abs(run(to_float16(layer(weight)), x) - exact) <= bound).all()


@pytest.mark.parametrize("convert", [to_float16, lambda model: to_int8(model, [{"x": images()}])])
def test_conversion_keeps_interface_and_original(convert: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    converted = convert(model)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(converted, full_check=True)
    for own, other in ((model.graph.input, converted.graph.input), (model.graph.output, converted.graph.output)):
        assert [(v.name, v.type.tensor_type.elem_type) for v in own] == [
            (v.name, v.type.tensor_type.elem_type) for v in other
        ]
    assert {opset.domain for opset in converted.opset_import} == {""}
    exact, found = run(model, images()), run(converted, images())
    # Tens of roundings of a hundredth each, of random sign.
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


def test_int8_quantises_the_weights_of_every_layer() -> None:
    converted = to_int8(network(), [{"x": images()}])
    kinds = {tensor.name: tensor.data_type for tensor in converted.graph.initializer}
    quantised = [name for name, kind in kinds.items() if kind == TensorProto.INT8 and name.endswith("_quantized")]
    assert len(quantised) == 2
    assert not any(node.op_type == "BatchNormalization" for node in converted.graph.node)


def test_float16_halves_the_weights() -> None:
    kinds = {tensor.data_type for tensor in to_float16(network()).graph.initializer}
    assert kinds == {TensorProto.FLOAT16}


def test_int8_of_a_model_with_a_fixed_batch_and_an_old_opset() -> None:
    weight = np.random.default_rng(2).normal(size=(8, 8)).astype(np.float32)
    x = np.ones((4, 8), np.float32)
    fixed = to_int8(network(4), [{"x": images(4)}, {"x": images(4)}])
    assert run(fixed, images(4)).shape == (4, 10)
    assert run(to_int8(layer(weight, opset=11), [{"x": x}]), x).shape == (4, 8)


def test_int8_of_a_model_with_computed_shapes() -> None:
    model = GRAPHS["group_normalisation_written_out"]()
    shape = [d.dim_value or 4 for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    converted = to_int8(model, [{"x": x}])
    exact, found = (next(iter(Session(m).run({"x": x}).values())) for m in (model, converted))
    assert found.shape == exact.shape


def test_conversions_are_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    to_int8(network(), [{"x": images()}])
    to_float16(layer(np.array([[1e-9, 1e9]], np.float32)))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert logging.root.manager.disable == logging.NOTSET


def test_what_cannot_be_converted_is_one_sentence() -> None:
    with pytest.raises(DataError, match="none were given"):
        to_int8(network(), [])
    with pytest.raises(ModelError, match="cannot quantise the model to int8"):
        to_int8(network(), [{"x": np.ones((1, 3, 9, 9), np.float32)}])
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy")
    plain = helper.make_model(
        helper.make_graph([node], "plain", [x], [y]), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    with pytest.raises(ModelError, match="found nothing in the model to quantise"):
        to_int8(plain, [{"x": np.ones((1, 2), np.float32)}])
    with pytest.raises(ModelError, match="has no float32 weights"):
        to_float16(plain)
    with pytest.raises(ModelError, match="quantised already"):
        to_float16(to_int8(network(), [{"x": images()}]))
