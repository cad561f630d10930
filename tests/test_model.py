"""Loading, canonical form, shapes, costs and saving."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import GRAPHS, Builder, head, image
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.errors import DataError, ModelError, OutputError, UsageError
from oamip_onnx.model import bind_inputs, count_costs, infer_shapes, load_model, save_model
from oamip_onnx.runtime import RuntimeOptions, Session


def test_missing_file() -> None:
    with pytest.raises(ModelError, match=r"'no\.onnx' does not exist"):
        load_model("no.onnx")


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"not a model at all", b"", b"\x08\x07"])
def test_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is no ONNX model"):
        load_model(path)


def test_truncated_file(tmp_path: Path) -> None:
    content = GRAPHS["residual"]().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"truncated|no ONNX model|invalid"):
        load_model(path)


def test_old_opset() -> None:
    proto = GRAPHS["residual"]()
    proto.opset_import[0].version = 6
    with pytest.raises(ModelError, match="uses opset 6; ONNX Runtime takes 7"):
        load_model(proto)


def test_invalid_graph() -> None:
    proto = GRAPHS["residual"]()
    proto.graph.node[1].input[0] = "nowhere"
    with pytest.raises(ModelError, match="is invalid"):
        load_model(proto)


def test_cyclic_graph() -> None:
    proto = GRAPHS["residual"]()
    proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]
    with pytest.raises(ModelError, match="is invalid"):
        load_model(proto)


def test_bytes_and_message_and_path_agree(tmp_path: Path) -> None:
    proto = GRAPHS["residual"]()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    models = [load_model(source) for source in (proto, proto.SerializeToString(), path, str(path))]
    assert len({m.proto.SerializeToString(deterministic=True) for m in models}) == 1
    assert models[2].size_bytes == path.stat().st_size


def test_source_message_is_not_modified() -> None:
    proto = GRAPHS["weights_through_nodes"]()
    before = proto.SerializeToString()
    model = load_model(proto)
    assert proto.SerializeToString() == before
    assert len(model.nodes) < len(proto.graph.node), "constants were lifted in the copy"


def test_initializers_leave_the_inputs_of_ir_3() -> None:
    b = image()
    proto = head(b, b.add("Relu", b.conv("x", 3, 8)), 8)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model = load_model(proto)
    assert model.input_names == ("x",)
    assert model.proto.ir_version == 4
    assert any("IR version" in note for note in model.notes)


def test_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    b = image()
    proto = head(b, b.add("Relu", b.conv("x", 3, 8)), 8)
    proto.graph.node[1].CopyFrom(
        helper.make_node("Twice", [proto.graph.node[1].input[0]], [proto.graph.node[1].output[0]], domain="local")
    )
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    model = load_model(proto)
    assert [n.op_type for n in model.nodes] == ["Conv", "Add", "Flatten", "Gemm", "Identity"]


def test_shapes_bind_dynamic_dimensions_to_the_sample() -> None:
    model = load_model(GRAPHS["reshape_computed_batch"]())
    feeds = {"x": np.zeros((3, 3, 8, 8), np.float32)}
    types = infer_shapes(model, bind_inputs(model, feeds), feeds)
    assert types["y"].shape == (3, 5)
    assert set(types) >= {o for n in model.nodes for o in n.output}


def test_dynamic_dimension_without_a_sample() -> None:
    model = load_model(Builder(["N", "length", 10]).finish("x"))
    with pytest.raises(DataError, match="--input-shape x=1,"):
        bind_inputs(model)
    assert bind_inputs(model, input_shapes={"x": (1, 7, 10)}) == {"x": (1, 7, 10)}
    with pytest.raises(UsageError, match="no input 'z'"):
        bind_inputs(model, input_shapes={"z": (1,)})


def test_costs_of_a_known_network() -> None:
    b = image()
    model = load_model(head(b, b.add("Relu", b.conv("x", 3, 8)), 8))
    costs = count_costs(model, infer_shapes(model, bind_inputs(model)))
    assert costs.macs == 8 * 64 * 27 + 512 * 5
    assert costs.parameters == 8 * 27 + 8 + 512 * 5 + 5


def test_save_is_atomic_and_repeatable(tmp_path: Path) -> None:
    proto = GRAPHS["residual"]()
    path = tmp_path / "out.onnx"
    first = save_model(proto, path)
    content = path.read_bytes()
    assert first == len(content)
    assert save_model(proto, path) == first
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_external_data_round_trip(tmp_path: Path) -> None:
    b = Builder(["N", 100])
    proto = b.finish(b.gemm(b.add("Relu", b.gemm("x", 100, 80)), 80, 5))
    source = tmp_path / "source.onnx"
    onnx.save(onnx.ModelProto.FromString(proto.SerializeToString()), source, save_as_external_data=True, location="w")
    model = load_model(source)
    assert model.external_data
    assert model.size_bytes == source.stat().st_size + (tmp_path / "w").stat().st_size
    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    size = save_model(model.proto, out, external_data=True)
    assert size == sum(p.stat().st_size for p in out.parent.iterdir())
    x = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    again = Session(out, RuntimeOptions()).run({"x": x})["y"]
    assert np.array_equal(again, Session(proto).run({"x": x})["y"])
    # Other weights under the same name: the old data file goes, the new model finds its own.
    other = onnx.ModelProto.FromString(model.proto.SerializeToString())
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((80, 100), np.float32), "c0"))
    save_model(other, out, external_data=True)
    assert len(list(out.parent.iterdir())) == 2
    assert not np.array_equal(Session(out).run({"x": x})["y"], again)


def test_missing_external_data(tmp_path: Path) -> None:
    b = Builder(["N", 100])
    proto = b.finish(b.gemm("x", 100, 80))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"keeps weights in 'weights\.bin'"):
        load_model(tmp_path / "m.onnx")


def test_unwritable_target(tmp_path: Path) -> None:
    proto = GRAPHS["residual"]()
    with pytest.raises(OutputError, match="does not exist"):
        save_model(proto, tmp_path / "none" / "m.onnx")
    with pytest.raises(OutputError, match="is a folder"):
        save_model(proto, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Root may write everywhere, so the refusal is simulated.
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match="not writable: Permission denied"):
        save_model(GRAPHS["residual"](), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    save_model(GRAPHS["residual"](), path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_model(GRAPHS["prelu"](), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_model_above_the_protobuf_limit_goes_to_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oamip_onnx.model.save.PROTOBUF_LIMIT_BYTES", 1000)
    b = Builder(["N", 100])
    path = tmp_path / "m.onnx"
    save_model(b.finish(b.gemm("x", 100, 80)), path)
    assert len(list(tmp_path.iterdir())) == 2
    assert path.stat().st_size < 1000
    assert Session(path).run({"x": np.ones((1, 100), np.float32)})["y"].shape == (1, 80)


def test_unknown_provider_names_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"no provider 'nonsense'.*available: .*cpu"):
        RuntimeOptions("nonsense").provider_names()


def test_every_constant_form_is_lifted() -> None:
    b = Builder(["N", 4])
    for name, settings in {
        "f": {"value_float": 2.0},
        "fs": {"value_floats": [1.0, 2.0, 3.0, 4.0]},
        "i": {"value_int": 1},
        "is": {"value_ints": [-1, 4]},
    }.items():
        b.nodes.append(helper.make_node("Constant", [], [name], **settings))
    x = b.add("Mul", b.add("Add", "x", "fs"), "f")
    x = b.add("Reshape", x, "is")
    x = b.add("Gather", x, "i", axis=1)
    model = load_model(b.finish(x))
    assert {"f", "fs", "i", "is"} <= set(model.initializers)
    assert model.initializers["i"].data_type == TensorProto.INT64
    assert np.array_equal(model.array("fs"), np.array([1, 2, 3, 4], np.float32))
