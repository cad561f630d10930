"""Last layers that get other classes, and weights that are drawn anew."""

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import image
from graphs.builder import Builder
from onnx import helper
from oracle import initializers

from oamip_onnx.errors import ModelError
from oamip_onnx.model import Model, bind_inputs, infer_shapes, load_model
from oamip_onnx.runtime import Session
from oamip_onnx.transferring.initialise import fresh_weights, initialise
from oamip_onnx.transferring.last_layer import LastLayer, find_last_layer, replace_last_layer

Images = dict[str, Any]


def images(count: int = 2, seed: int = 0) -> Images:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def last_layer(proto: onnx.ModelProto, feeds: Images) -> tuple[Model, LastLayer]:
    model = load_model(proto)
    return model, find_last_layer(model, infer_shapes(model, bind_inputs(model, feeds), feeds))


def pooled(b: Builder) -> str:
    """Return 4 features a sample."""
    return b.add("Flatten", b.add("GlobalAveragePool", b.add("Relu", b.conv("x", 3, 4))))


def matmul_with_bias() -> onnx.ModelProto:
    b = image()
    return b.finish(b.add("Add", b.add("MatMul", pooled(b), b.weight(4, 5)), b.weight(5)))


def gemm_not_transposed() -> onnx.ModelProto:
    b = image()
    return b.finish(b.add("Gemm", pooled(b), b.weight(4, 5), b.weight(1, 5)))


def convolution_pooled_last() -> onnx.ModelProto:
    b = image()
    x = b.add("Relu", b.conv(b.add("Relu", b.conv("x", 3, 4)), 4, 5, 1))
    return b.finish(b.add("Flatten", b.add("GlobalAveragePool", x)))


def reshaped_softmax() -> onnx.ModelProto:
    b = image()
    x = b.add("GlobalAveragePool", b.conv(b.add("Relu", b.conv("x", 3, 4)), 4, 5, 1, bias=False))
    return b.finish(b.add("Softmax", b.add("Reshape", x, b.constant(np.array([-1, 5])))))


def scaled() -> onnx.ModelProto:
    b = image()
    return b.finish(b.add("Mul", b.gemm(pooled(b), 4, 5), b.constant(np.float32(0.5))))


def shared_bias() -> onnx.ModelProto:
    """Return a graph whose last layer reads the bias that an earlier one reads as well."""
    b = image()
    bias = b.weight(5)
    x = b.add("Relu", b.add("Gemm", pooled(b), b.weight(5, 4), bias, transB=1))
    return b.finish(b.add("Gemm", x, b.weight(5, 5), bias, transB=1))


CLASSIFIERS = (matmul_with_bias, gemm_not_transposed, convolution_pooled_last, reshaped_softmax, scaled, shared_bias)


@pytest.mark.parametrize("make", CLASSIFIERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("classes", [3, 7])
def test_the_last_layer_gets_other_classes_and_the_others_stay(make: Any, classes: int) -> None:
    proto, feeds = make(), images()
    model, layer = last_layer(proto, feeds)
    found = replace_last_layer(model, layer, classes, feeds, seed=1)
    onnx.checker.check_model(found, full_check=True)
    values = Session(found).run(feeds)["y"]
    assert values.shape == (2, classes)
    dims = found.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [0, classes]
    # Every node in front of the last layer reads what it read, with the values that it had.
    before, after = initializers(model.proto), initializers(found)
    for old, new in zip(model.graph.node[: layer.node], found.graph.node[: layer.node], strict=True):
        assert old == new
        assert all((after[name] == before[name]).all() for name in new.input if name in before)
    assert load_model(proto).proto == model.proto, "the model that was given changed"


def test_a_new_last_layer_is_small_repeatable_and_without_bias() -> None:
    feeds = images()
    model, layer = last_layer(matmul_with_bias(), feeds)
    one, again, other = (initializers(replace_last_layer(model, layer, 1000, feeds, seed)) for seed in (0, 0, 1))
    weight, bias = (model.graph.node[o.node].input[o.position] for o in (layer.weight, layer.biases[0]))
    assert (one[weight] == again[weight]).all()
    assert (one[weight] != other[weight]).any()
    # Uniform within 1/√4; of 4,000 draws the largest lies within 1 % of the bound but for a chance of 0.99^4000.
    assert 0.495 < np.abs(one[weight]).max() <= 0.5
    assert one[weight].dtype == np.float32
    assert not one[bias].any()
    assert one[bias].shape == (1000,)


def joined() -> onnx.ModelProto:
    b = image()
    x = pooled(b)
    return b.finish(b.add("Add", b.gemm(x, 4, 5), b.gemm(x, 4, 5)))


def scaled_by_class() -> onnx.ModelProto:
    b = image()
    return b.finish(b.add("Mul", b.gemm(pooled(b), 4, 5), b.positive(5)))


def einsum() -> onnx.ModelProto:
    b = image()
    return b.finish(b.add("Einsum", pooled(b), b.weight(4, 5), equation="nc,ck->nk"))


def computed_weights() -> onnx.ModelProto:
    b = image()
    x = pooled(b)
    return b.finish(b.add("MatMul", x, b.add("MatMul", b.add("Transpose", x, perm=[1, 0]), x)))


def planes() -> onnx.ModelProto:
    b = image()
    return b.finish(b.conv("x", 3, 4))


def no_layer() -> onnx.ModelProto:
    b = image()
    return b.finish(b.add("Flatten", b.add("GlobalAveragePool", b.add("Relu", "x"))))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (joined, "stands 'Add_6' (Add), which joins two layers; the last layer has to be a Gemm, a MatMul or a Conv"),
        (scaled_by_class, r"stands 'Mul_5' (Mul), which has numbers of its own of shape (5,)"),
        (einsum, "stands 'Einsum_4' (Einsum), which transfer cannot adapt to another number of classes"),
        (computed_weights, "stands 'MatMul_6' (MatMul), whose weights are not constant"),
        (planes, "which is no vector of classes, so there is no last layer to replace"),
        (no_layer, "No layer of the model makes the logits"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_what_has_no_replaceable_last_layer_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ModelError) as error:
        last_layer(make(), images())
    assert said in str(error.value)


def test_shapes_computed_from_the_old_number_of_classes_are_refused() -> None:
    b = image()
    rows = b.add("Gather", b.add("Shape", "x"), b.constant(np.array([0])))
    shape = b.add("Concat", rows, b.constant(np.array([5])), axis=0)
    feeds = images()
    model, layer = last_layer(b.finish(b.add("Reshape", b.gemm(pooled(b), 4, 5), shape)), feeds)
    with pytest.raises(ModelError, match="shapes between them are computed from the old number of classes"):
        replace_last_layer(model, layer, 7, feeds, seed=0)


def test_fresh_weights_keep_the_scale_of_activations_from_layer_to_layer() -> None:
    b = Builder(["N", 256])
    x, inner = "x", []
    for _ in range(10):
        x = b.add("Relu", b.gemm(x, 256, 256))
        inner.append(x)
    proto = b.finish(b.gemm(x, 256, 5))
    proto.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 256]) for name in inner)
    feeds = {"x": np.random.default_rng(0).normal(size=(200, 256)).astype(np.float32)}
    model, layer = last_layer(proto, feeds)
    found = Session(initialise(model, layer.node, seed=0)).run(feeds)
    sizes = [float((found[name] ** 2).mean()) for name in inner]
    # Each layer keeps the mean square up to a relative deviation of about √(5/256) = 0.14 by the draw: after ten layers
    # 0.14·√10 = 0.44, three of which are a factor of e^1.3 = 3.7. Twice the variance would be 2^10.
    assert 1 / 3.7 < sizes[-1] / sizes[0] < 3.7
    assert float(found["y"].std()) < 1.0


def several_kinds() -> onnx.ModelProto:
    b = image()
    norm = [b.positive(8), b.weight(8), b.weight(8), b.positive(8)]
    x = b.add("BatchNormalization", b.conv("x", 3, 8), *norm)
    x = b.add("Mul", b.add("Sub", x, b.weight(8, 1, 1)), b.constant(np.float32(0.3)))
    x = b.add("PRelu", x, b.weight(8, 1, 1))
    return b.finish(b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), 8, 5))


def test_fresh_weights_follow_the_kind_of_layer() -> None:
    proto = several_kinds()
    model, layer = last_layer(proto, images())
    fresh = fresh_weights(model, layer.node, seed=0)
    conv, batch_norm, subtraction, _, prelu, _, _, gemm, _ = (list(node.input) for node in proto.graph.node)
    values = fresh.values
    # Uniform within √(3/27), in front of which stands no activation: 216 draws have a standard deviation of 1/√27, to
    # 10 %. The layer behind the PRelu is the last one for once, and for once not.
    assert np.abs(values[conv[1]]).max() <= np.sqrt(3 / 27)
    assert values[conv[1]].std() == pytest.approx(np.sqrt(1 / 27), rel=0.1)
    weight = gemm[1]
    assert 0.9 * np.sqrt(1 / 8) < np.abs(values[weight]).max() <= np.sqrt(1 / 8)
    inner = fresh_weights(model, 99, seed=0).values
    assert 0.9 * np.sqrt(6 / 8) < np.abs(inner[weight]).max() <= np.sqrt(6 / 8)
    for name, value in zip(batch_norm[1:], (1.0, 0.0, 0.0, 1.0), strict=True):
        assert (values[name] == value).all()
    assert (values[prelu[1]] == 0.25).all()
    assert not values[conv[2]].any()
    assert fresh.untouched == (subtraction[1],)
    assert all(values[name].dtype == np.float32 for name in values)
    # A layer is drawn the same whatever comes before and behind it.
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[2:]
    copy.graph.output[0].name = "t1"
    assert (fresh_weights(load_model(copy), 99, seed=0).values[conv[1]] == values[conv[1]]).all()
