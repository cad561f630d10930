"""Models with states and settings beside the data: each sample is a run of its own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Builder
from graphs.recurrent import recurrent
from onnx import TensorProto, helper

import oamip_onnx
from oamip_onnx.calibration import load_samples
from oamip_onnx.errors import DataError
from oamip_onnx.model import load_model

RUNS = 6


def _speech() -> onnx.ModelProto:
    """Return a model of a chunk of frames, the states of two layers, and a scalar that scales the chunk.

    The states of the second layer come in and go out, and stay; those of the first are zero. A body of an If captures
    one layer's output and a weight.
    """
    b = Builder(["frames", 1, 6])
    b.inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 1, 5]))
    b.inputs.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    x = b.add("Mul", "x", b.add("Cast", "rate", to=TensorProto.FLOAT))
    x = b.add("Relu", b.add("MatMul", x, b.weight(6, 8)))
    x = b.add("Squeeze", recurrent(b, x, "LSTM", 8, 7), b.constant(np.array([1])))
    part = b.add("Split", "state", b.constant(np.array([1, 1])), outputs=2, axis=0)
    states = ("", part, b.nodes[-1].output[1])
    x = b.add("Squeeze", recurrent(b, x, "LSTM", 7, 5, states=states, outputs=3), b.constant(np.array([1])))
    hidden = b.nodes[-2].output
    weight = b.weight(5, 5)
    bodies = [
        helper.make_graph(
            [helper.make_node("MatMul", [x, weight], ["scaled"]), helper.make_node(op_type, ["scaled"], ["result"])],
            "body",
            [],
            [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
        )
        for op_type in ("Relu", "Tanh")
    ]
    wide = b.add("Greater", "rate", b.constant(np.array(1)))
    x = b.add("If", wide, then_branch=bodies[0], else_branch=bodies[1])
    b.declare(x, ["frames", 1, 5])
    b.nodes.append(helper.make_node("Concat", list(hidden[1:3]), ["new_state"], axis=0))
    model = b.finish(b.add("MatMul", x, b.weight(5, 3)))
    model.graph.output.append(helper.make_tensor_value_info("new_state", TensorProto.FLOAT, [2, 1, 5]))
    return model


def _runs(frames: int = 4) -> list[dict[str, np.ndarray]]:  # type: ignore[type-arg]
    generator = np.random.default_rng(0)
    return [
        {
            "x": generator.normal(size=(frames, 1, 6)).astype(np.float32),
            "state": generator.normal(size=(2, 1, 5)).astype(np.float32),
            "rate": np.array(1 + i % 2, dtype=np.int64),
        }
        for i in range(RUNS)
    ]


def test_speech_model_is_narrowed_around_its_states(tmp_path: Path) -> None:
    model = _speech()
    settings = {"importance": "magnitude", "round_to": 1, "bench": False}
    result = oamip_onnx.prune(model, _runs(), **settings)
    report = result.report
    assert report.verification.passed
    assert [(g.before, g.after) for g in report.groups] == [(8, 4), (7, 4)]
    assert {p.code for p in report.pinned} >= {"control-flow", "fixed-axis"}
    assert result.save(tmp_path / "narrow.onnx") < len(model.SerializeToString())
    bodies = [a.g for n in result.model.graph.node if n.op_type == "If" for a in n.attribute]
    assert not any(body.initializer for body in bodies), "a captured weight was copied into the bodies"
    assert report.pruned.parameters < report.original.parameters


def test_runs_are_kept_apart_and_checked() -> None:
    model = load_model(_speech())
    samples = load_samples(_runs(), model)
    assert samples.by_run
    assert samples.count == RUNS
    batches = list(samples.take(slice(0, 2)).batches(64))
    assert [b["x"].shape for b in batches] == [(4, 1, 6), (4, 1, 6)]
    assert batches[1]["rate"].shape == ()
    stacked = {name: np.stack([run[name] for run in _runs()]) for name in _runs()[0]}
    assert load_samples(stacked, model).count == RUNS
    wrong = _runs()
    wrong[3] = {**wrong[3], "state": np.zeros((2, 1, 4), np.float32)}
    with pytest.raises(DataError, match=r"'state' .* differ in shape"):
        load_samples(wrong, model)
