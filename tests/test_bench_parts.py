"""Profiles, cold starts, misaligned widths and configurations of a benchmark."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import GRAPHS
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.bench import (
    BenchModel,
    BenchSettings,
    Inputs,
    NodeTime,
    cold,
    measure,
    measure_cold_start,
    misaligned_widths,
    profile_nodes,
    rehearse,
    sweep,
    times_by_operator,
    vector_block,
)
from oamip_onnx.bench.profile import node_times
from oamip_onnx.errors import DataError, ModelError, UsageError
from oamip_onnx.runtime import RuntimeOptions

OPTIONS = RuntimeOptions(threads=1)
Feeds = dict[str, npt.NDArray[np.generic]]


def chain(*widths: int, batch: int | str = "N") -> onnx.ModelProto:
    """Return matrix products from width to width, with a tanh behind each, from `x` to `y`."""
    generator = np.random.default_rng(0)
    nodes, weights, source = [], [], "x"
    for number, (rows, columns) in enumerate(pairwise(widths)):
        target = "y" if number == len(widths) - 2 else f"t{number}"
        weights.append(numpy_helper.from_array(generator.normal(size=(rows, columns)).astype(np.float32), f"w{number}"))
        nodes.append(helper.make_node("MatMul", [source, f"w{number}"], [f"m{number}"], name=f"product{number}"))
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [target], name=f"tanh{number}"))
        source = target
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, widths[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, widths[-1]])
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def loop(rounds: int) -> onnx.ModelProto:
    """Return a loop of matrix products by `w`."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"], name="inner"),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["N", 256]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["N", 256]),
        ],
    )
    weights = [
        numpy_helper.from_array(np.eye(256, dtype=np.float32), "w"),
        numpy_helper.from_array(np.array(rounds, np.int64), "rounds"),
    ]
    nodes = [helper.make_node("Loop", ["rounds", "", "x"], ["y"], name="outer", body=body)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 256]) for name in "xy")
    graph = helper.make_graph(nodes, "loop", [x], [y], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def ones(width: int, batch: int = 4) -> Feeds:
    return {"x": np.ones((batch, width), np.float32)}


# --- profile


def test_profile_has_every_node_in_order_of_execution() -> None:
    times = profile_nodes(chain(16, 32, 8), ones(16), OPTIONS, runs=4)
    assert [time.node for time in times] == ["product0", "tanh0", "product1", "tanh1"]
    assert [time.operator for time in times] == ["MatMul", "Tanh"] * 2
    assert all(time.milliseconds >= 0 and time.calls == 1 for time in times)


def test_profile_finds_where_the_time_goes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(chain(512, 1024, 1), path)
    by_operator = times_by_operator(profile_nodes(path, ones(512, 64), OPTIONS, runs=5))
    assert next(iter(by_operator)) == "MatMul"
    assert list(by_operator.values()) == sorted(by_operator.values(), reverse=True)


def test_loop_is_not_counted_on_top_of_its_body() -> None:
    times = profile_nodes(loop(30), ones(256, 64), OPTIONS, runs=3)
    (outer,) = [time for time in times if time.operator == "Loop"]
    (inner,) = [time for time in times if time.operator == "MatMul"]
    assert (outer.calls, inner.calls) == (1, 30)
    # What the loop itself does takes far less than 30 products of 64 × 256 × 256.
    assert 0 <= outer.milliseconds < inner.milliseconds


def test_warming_up_and_other_events_are_left_out() -> None:
    def event(name: str, begin: int, duration: int, category: str = "Node") -> dict[str, object]:
        arguments = {"op_name": "Conv", "node_index": "0"}
        return {"cat": category, "name": name, "ts": begin, "dur": duration, "tid": 1, "args": arguments}

    runs = [event("model_run", begin, 90, "Session") for begin in (0, 100, 200)]
    nodes = [event("a_kernel_time", begin + 10, 20 + begin // 10) for begin in (0, 100, 200)]
    other = [event("a_fence_before", 110, 5), event("model_loading", 0, 9, "Session")]
    assert node_times([*nodes, *runs, *other], warmup_runs=1) == (NodeTime("a", "Conv", 0.035, 1.0),)
    # Of four runs, the shortest and the longest do not count: other programs may have held it up.
    lengths = (90, 70, 80, 4000)
    uneven = [event("model_run", 5000 * n, length, "Session") for n, length in enumerate(lengths)]
    nodes_of = [event("a_kernel_time", 5000 * n + 1, length - 10) for n, length in enumerate(lengths)]
    assert node_times([*nodes_of, *uneven], warmup_runs=0) == (NodeTime("a", "Conv", 0.075, 1.0),)
    with pytest.raises(ModelError, match="holds 3 runs, of which 3 warm up"):
        node_times([*nodes, *runs], warmup_runs=3)
    with pytest.raises(ModelError, match="recorded no node"):
        node_times(runs, warmup_runs=1)


def test_profile_refuses_what_it_cannot_run() -> None:
    with pytest.raises(DataError, match="takes float32 of shape"):
        profile_nodes(chain(16, 8), ones(17), OPTIONS)
    with pytest.raises(UsageError, match="at least one run"):
        profile_nodes(chain(16, 8), ones(16), OPTIONS, runs=0)


# --- cold start


def test_cold_start_is_measured_in_fresh_processes(tmp_path: Path) -> None:
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    onnx.save(chain(16, 8), small)
    onnx.save(chain(2048, 2048, 2048), large)
    (less,) = measure_cold_start([small], ones(16), OPTIONS, processes=1)
    (more,) = measure_cold_start([large], ones(2048), OPTIONS, processes=2)
    assert (less.processes, more.processes) == (1, 2)
    for found in (less, more):
        assert 0 < found.load_ms < found.first_output_ms
    if sys.platform == "linux":
        assert less.peak_memory_bytes is not None
        assert more.peak_memory_bytes is not None
        # Two weights of 16 MiB are held at least once; this process, whose own memory is far larger, does not count.
        assert more.peak_memory_bytes >= 2 * 2048 * 2048 * 4
        assert less.peak_memory_bytes < 64 * 2**20


def test_the_fresh_process_imports_nothing_of_this_package(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(chain(16, 8), path)
    code = (
        f"import runpy, sys; runpy.run_path({str(cold._SCRIPT)!r});"
        "print([name for name in sys.modules if name.partition('.')[0] in ('oamip_onnx', 'onnx', 'scipy', 'pydantic')])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_that_fails_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"A fresh process could not run .*[^.]\. Leave .*--no-cold-start"):
        measure_cold_start([path], ones(16), OPTIONS, processes=1)
    with pytest.raises(UsageError, match="at least one process"):
        measure_cold_start([path], ones(16), OPTIONS, processes=0)
    with pytest.raises(DataError, match="plain numbers only, but these are 'x' of object"):
        measure_cold_start([path], {"x": np.array([["a"]], object)}, OPTIONS, processes=1)


def test_a_provider_that_falls_back_in_the_process_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(chain(16, 8), path)
    names = iter([["CPUExecutionProvider"], ["CUDAExecutionProvider"]])
    monkeypatch.setattr(RuntimeOptions, "provider_names", lambda _: next(names))
    with pytest.raises(UsageError, match="offers CUDAExecutionProvider but fell back"):
        measure_cold_start([path], ones(16), OPTIONS, processes=1)


# --- misaligned widths


def test_widths_that_do_not_fit_the_vector_are_counted() -> None:
    found = misaligned_widths(chain(16, 20, 32, 13, 10), block=8)
    assert found.layers == (("product0", 20), ("product2", 13))
    assert found.considered == 3
    assert found.describe("m.onnx").startswith("2 of 3 convolutions and matrix products of m.onnx have a width")
    assert "'product0' has 20" in found.describe("m.onnx")
    assert "--round-to 8" in found.describe("m.onnx")


def test_widths_that_the_task_gives_are_no_waste() -> None:
    assert misaligned_widths(chain(16, 10), block=8).describe("m.onnx") == ""
    assert misaligned_widths(chain(5, 16, 32, 10), block=8).describe("m.onnx") == ""


def test_widths_of_convolutions_count() -> None:
    model = GRAPHS["residual"]()
    widths = [t.dims[0] for t in model.graph.initializer if len(t.dims) == 4]
    found = misaligned_widths(model, block=5)
    assert {width for _, width in found.layers} <= {width for width in widths if width % 5}
    assert found.layers


def test_vector_block_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, block in (("flags : avx2 avx512f", 16), ("flags : avx2", 8)):
        monkeypatch.setattr(Path, "read_text", lambda *_, text=flags, **__: text)
        assert vector_block() == block


# --- configurations


def test_a_sweep_is_every_combination() -> None:
    inputs = [Inputs(ones(16, batch), batch) for batch in (1, 8)]
    found = sweep(["cpu"], [1, 2], inputs)
    assert [(c.options.threads, c.inputs.samples) for c in found] == [(1, 1), (1, 8), (2, 1), (2, 8)]
    assert found[1].input_shapes == {"x": (8, 16)}


@pytest.mark.parametrize(
    ("providers", "threads", "count", "message"),
    [
        (["cpu"], [1], 33, "make 33 configurations"),
        (["cpu"], [], 1, "make 0 configurations"),
        (["cpu"], [-1], 1, "cannot be -1"),
        (["cpu"], [1, 99999], 1, "99999 threads are more than this machine can use; give at most"),
        (["cpu", "warp"], [1], 1, "no provider 'warp'"),
    ],
)
def test_impossible_sweeps_are_refused(providers: list[str], threads: list[int], count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweep(providers, threads, [Inputs(ones(16), 4)] * count)


def saved(folder: Path, proto: onnx.ModelProto, name: str) -> BenchModel:
    path = folder / name
    onnx.save(proto, path)
    return BenchModel(name, name, "", path, path.stat().st_size)


def test_a_rehearsal_names_the_model_and_the_configuration(tmp_path: Path) -> None:
    flexible, fixed = saved(tmp_path, chain(16, 8), "free.onnx"), saved(tmp_path, chain(16, 8, batch=1), "fixed.onnx")
    configurations = sweep(["cpu"], [1], [Inputs(ones(16, batch), batch) for batch in (1, 4)])
    rehearse([flexible], configurations)
    with pytest.raises(DataError, match=r"Input 'x' of fixed.onnx takes float32 of shape \(1, 16\)"):
        rehearse([flexible, fixed], configurations)
    # The graph declares a free batch but computes with a fixed one, which only a run tells.
    hidden = chain(16, 8)
    hidden.graph.initializer.append(numpy_helper.from_array(np.array([1, 16], np.int64), "shape"))
    hidden.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["one"]))
    hidden.graph.node[1].input[0] = "one"
    with pytest.raises(ModelError, match=r"hidden.onnx cannot run on cpu with x=4,16: "):
        rehearse([saved(tmp_path, hidden, "hidden.onnx")], configurations)
    hidden.graph.node[0].op_type = "Unheard"
    with pytest.raises(ModelError, match=r"unheard.onnx cannot run on cpu: ONNX Runtime does not accept the model"):
        rehearse([saved(tmp_path, hidden, "unheard.onnx")], configurations)


def test_a_configuration_measures_what_is_asked_for(tmp_path: Path) -> None:
    models = [saved(tmp_path, chain(16, width, 8), f"{width}.onnx") for width in (64, 32)]
    (configuration,) = sweep(["cpu"], [1], [Inputs(ones(16), 4)])
    parts: list[str] = []
    settings = BenchSettings(5, 0.0, 1, 0.0, cold_processes=1)
    found = measure(models, configuration, settings, profile=True, started=parts.append)
    assert parts == ["latency", "cold start", "profile"]
    assert found.latency.samples_ms.shape == (2, 5)
    assert (len(found.cold_starts), len(found.profiles), found.profile_runs) == (2, 2, 200)
    plain = measure(models, configuration, BenchSettings(5, 0.0, 1, 0.0, cold_processes=0))
    assert (plain.cold_starts, plain.profiles, plain.profile_runs) == ((), (), 0)
