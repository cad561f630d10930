"""A detector: outputs whose shape depends on the data, integers among them."""

import numpy as np
import onnx
import pytest
from graphs import Builder
from onnx import helper

import oamip_onnx

SAMPLES = 16


def _detector(outputs: list[str]) -> onnx.ModelProto:
    """Return boxes and scores from a small network, with a selection of boxes behind them."""
    b = Builder([1, 3, 16, 16])
    x = b.add("Relu", b.conv("x", 3, 16))
    x = b.add("Relu", b.conv(x, 16, 24, strides=[2, 2]))
    flat = [b.add("Reshape", b.conv(x, 24, k, 1), b.constant(np.array([1, k, 64]))) for k in (4, 5)]
    boxes, scores = b.add("Transpose", flat[0], perm=[0, 2, 1]), b.add("Sigmoid", flat[1])
    limits = [b.constant(np.array([10])), *(b.constant(np.array([0.5], np.float32)) for _ in range(2))]
    chosen = b.add("NonMaxSuppression", boxes, scores, *limits)
    column = b.add("Slice", chosen, *(b.constant(np.array([v])) for v in (2, 3, 1)))
    picked = b.add("Gather", boxes, b.add("Squeeze", column, b.constant(np.array([1]))), axis=1)
    types = {"chosen": (chosen, 7, ["k", 3]), "picked": (picked, 1, [1, "k", 4]), "scores": (scores, 1, [1, 5, 64])}
    values = []
    for name in outputs:
        tensor, element_type, shape = types[name]
        b.nodes.append(helper.make_node("Identity", [tensor], [name]))
        values.append(helper.make_tensor_value_info(name, element_type, shape))
    graph = helper.make_graph(b.nodes, "detector", b.inputs, values, b.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


@pytest.mark.parametrize(
    "outputs", [["scores", "chosen"], ["chosen", "picked"], ["chosen"]], ids=["scores", "boxes", "indices"]
)
def test_detector_is_narrowed_verified_and_measured_before_the_selection(outputs: list[str]) -> None:
    generator = np.random.default_rng(0)
    data = [{"x": generator.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(SAMPLES)]
    settings = {"importance": "magnitude", "round_to": 1, "bench": False}
    result = oamip_onnx.prune(_detector(outputs), data, **settings)
    report = result.report
    assert report.verification.passed
    assert report.pruned.macs < 0.5 * report.original.macs
    assert 0.3 < report.drift.cosine < 1
    assert [o.name for o in result.model.graph.output] == outputs
