"""`oamip explain`: a true answer for every name of a graph."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import FAST, failed, oamip
from graphs import GRAPHS, Builder, head, image
from onnx import helper
from rich.console import Console

from oamip_onnx.channels import CONSTRAINTS, FIXED, REMEDIES, Constraint, PinCode
from oamip_onnx.config import make_config
from oamip_onnx.model import Model, TensorType, infer_shapes, load_model
from oamip_onnx.report import Explainer, Explanation, inspect_channels


def typed(proto: onnx.ModelProto) -> tuple[Model, dict[str, TensorType]]:
    model = load_model(proto)
    shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return model, infer_shapes(model, shapes)


def explained(proto: onnx.ModelProto, name: str, **settings: Any) -> Explanation:
    return Explainer(*typed(proto), make_config(settings)).explain(name)


def explain_json(work: Path, *arguments: object) -> dict[str, Any]:
    ran = oamip("explain", *arguments, "--json", "-", cwd=work)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def codes(found: Explanation) -> set[str]:
    held = [h for t in found.tensors for axes in t.channels for h in axes.held]
    return {h.code for h in [*held, *(t.absence for t in found.tensors if t.absence)]}


@pytest.mark.parametrize("name", GRAPHS)
def test_every_tensor_and_node_is_explained_as_the_analysis_has_it(name: str) -> None:
    model, types = typed(GRAPHS[name]())
    explainer = Explainer(model, types, make_config())
    analysis = explainer.analysis
    owner, labels = analysis.group_of_unit(), [group.name for group in analysis.groups]
    pinned = {pin.tensor: pin for pin in analysis.pinned}
    names = {n for node in model.graph.node for n in [*node.input, *node.output] if n}
    for tensor in sorted(names):
        (found,) = explainer.explain(f"tensor:{tensor}").tensors
        units = (
            {int(u) for f in analysis.labels[tensor].factors for u in f.ravel()} if tensor in analysis.labels else {}
        )
        groups = {labels[owner[u]] for u in units if u != FIXED}
        assert {g for axes in found.channels for g in axes.groups} == groups, tensor
        assert bool(found.channels) != bool(found.absence), tensor
        reasons = [h for axes in found.channels for h in axes.held] + ([found.absence] if found.absence else [])
        for axes in found.channels:
            assert axes.cells == np.prod([types[tensor].shape[a] for a in axes.axes])
            assert axes.removable + sum(h.cells for h in axes.held) <= axes.cells
        assert all(h.reason for h in reasons)
        assert all(h.remedy == REMEDIES[PinCode(h.code)].change for h in reasons if h.code)
        if tensor in pinned:
            assert (pinned[tensor].code, pinned[tensor].reason) in {(h.code, h.reason) for h in reasons}, tensor
    for index, node in enumerate(model.graph.node):
        found = explainer.explain(f"node:{model.node_name(index)}")
        assert {t.name for t in found.tensors} == {n for n in [*node.input, *node.output] if n}
        carried = {g for t in found.tensors for axes in t.channels for g in axes.groups}
        assert {g.name for g in found.groups} == carried
    assert len(set(labels)) == len(labels)
    for group, label in zip(analysis.groups, labels, strict=True):
        (found,) = explainer.explain(f"group:{label}").groups
        assert (found.tensors, found.width, found.blocks) == (list(group.tensors), group.width, group.block_count)
        assert set(found.tensors) <= set(found.activations)
        assert found.producers
        assert 0 < found.parameters_share <= 1


def test_every_code_and_constraint_has_a_remedy() -> None:
    assert set(REMEDIES) == set(PinCode)
    assert set(CONSTRAINTS) == set(Constraint)
    for remedy in [*REMEDIES.values(), *CONSTRAINTS.values()]:
        for sentence in (remedy.meaning, remedy.change):
            assert sentence.endswith(".")
            assert len(sentence) > 20
    assert len({remedy.change for remedy in REMEDIES.values()}) == len(PinCode)


def test_a_node_reads_one_group_and_makes_another(fashion: Path) -> None:
    found = explain_json(fashion, "resnet8.onnx", "/blocks/blocks.0/first/first.0/Conv")
    assert (found["kind"], found["operator"]) == ("node", "Conv")
    roles = {t["role"]: [g for axes in t["channels"] for g in axes["groups"]] for t in found["tensors"][:2]}
    assert roles == {
        "made": ["/blocks/blocks.0/first/first.0/Conv_output_0"],
        "read": ["/stem/stem.0/Conv_output_0"],
    }
    made, read = found["groups"]
    assert (made["width"], made["minimum_width"], read["minimum_width"]) == (16, 0, 1)
    assert [p["operator"] for p in made["producers"]] == ["Conv"]
    assert {s["initializer"]: s["axes"] for s in made["slices"]}["onnx::Conv_91"] == [0]
    assert {s["initializer"]: s["axes"] for s in made["slices"]}["onnx::Conv_94"] == [1]
    # 3×3 filters and a bias at the producer, 3×3 filters at the reader, on planes of 14×14.
    assert made["step_parameters"] == 16 * 9 + 1 + 16 * 9
    assert made["step_macs"] == 2 * 16 * 9 * 14 * 14
    assert made["macs"] == 16 * made["step_macs"]
    text = oamip("explain", "resnet8.onnx", "/blocks/blocks.0/first/first.0/Conv", cwd=fashion).out
    for words in ("16 on axis 1", "can be cut to 0–15", "weight magnitude (needs no data)", "first to go"):
        assert words in text


def test_a_tensor_that_stays_says_why_and_what_would_help(work: Path) -> None:
    ran = oamip("explain", "model.onnx", "y", cwd=work)
    assert ran.code == 0, ran.err
    for words in ("all of which stay", "(graph-output)", "onnx.utils.extract_model"):
        assert words in ran.out
    assert "keep their shape" in oamip("explain", "model.onnx", "x", cwd=work).out
    (tensor,) = explain_json(work, "model.onnx", "t0", "--ignore", "Conv_0")["tensors"]
    assert [h["code"] for axes in tensor["channels"] for h in axes["held"]] == ["ignored"]


def test_ranks_are_those_that_prune_goes_by(work: Path) -> None:
    arguments = ["model.onnx", "out.onnx", "--data", "data.npz", "--round-to", 1, *FAST, "--json", "run.json"]
    assert oamip("prune", *arguments, cwd=work).code == 0
    run = json.loads((work / "run.json").read_text())["groups"][0]
    removed = run["before"] - run["after"]
    ranked = {}
    for position in range(run["before"]):
        unit = explain_json(work, "model.onnx", f"group:{run['name']}[{position}]")["unit"]
        assert (unit["unit"], unit["rank_of"]) == (position, run["before"])
        ranked[unit["rank"]] = position
    assert sorted(ranked) == list(range(1, run["before"] + 1))
    assert {ranked[r] for r in range(1, removed + 1)} == set(range(run["before"])) - set(run["kept"])
    told = explain_json(work, "model.onnx", f"{run['name']}[{ranked[1]}]", "--result", "run.json")
    assert told["unit"]["kept"] is False
    assert told["unit"]["score"] == pytest.approx(run["importance"][ranked[1]])
    assert told["groups"][0]["kept"] == run["kept"]
    assert "from the run of 'run.json'" in told["groups"][0]["ranking"]["source"]


def test_scores_come_from_a_file_with_its_settings(work: Path) -> None:
    arguments = ["model.onnx", "--data", "data.npz", "--importance", "random", "--ignore", "Conv_0"]
    assert oamip("score", *arguments, "--out", "scores.json", cwd=work).code == 0
    stored = json.loads((work / "scores.json").read_text())["groups"][0]
    # Without the settings of the file the model would have another group, and the scores would not fit.
    found = explain_json(work, "model.onnx", f"{stored['name']}[2]", "--scores", "scores.json")
    assert found["unit"]["score"] == stored["importance"][2]
    ranking = found["groups"][0]["ranking"]
    assert (ranking["lowest"], ranking["highest"]) == (min(stored["importance"]), max(stored["importance"]))
    assert ranking["first_to_go"][0] == int(np.argmin(stored["importance"]))
    assert ranking["source"] == "random, from 'scores.json'"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["Conv_o"], 2, "is called 'Conv_o'; did you mean 'Conv_"),
        (["Conv_o[3]"], 2, "is called 'Conv_o'; did you mean"),
        (["t0[8]"], 2, "has 8 channels on axis 1; the last one is 7, not 8"),
        (["group:t0[8]"], 2, "has 8 units; the last one is 7"),
        (["t0[:,:,1]"], 2, "carries no channels on axis 2"),
        (["x[0]"], 2, "carries no channels, so that it has no unit 0: Inputs of the graph keep their shape"),
        (["t0", "--scores", "none.json"], 3, "cannot be read"),
        (["t0", "--scores", "data.npz"], 3, "is no JSON"),
        (["t0", "--scores", "other.json"], 3, "holds no settings of a run"),
        (["t0", "--result", "empty.json"], 3, "has no schema version"),
        (["t0", "--heads", "half"], 2, "does not take 'half'"),
    ],
)
def test_errors(work: Path, arguments: list[str], code: int, message: str) -> None:
    (work / "other.json").write_text("[]")
    (work / "empty.json").write_text('{"config": {}}')
    failed(oamip("explain", "model.onnx", *arguments, cwd=work), code, message)


def test_a_result_of_another_model_is_refused(work: Path) -> None:
    onnx.save(GRAPHS["conv_transpose"](), work / "other.onnx")
    arguments = ["model.onnx", "out.onnx", "--data", "data.npz", *FAST, "--json", "run.json"]
    assert oamip("prune", *arguments, cwd=work).code == 0
    failed(
        oamip("explain", "other.onnx", "t0", "--result", "run.json", cwd=work), 3, "it belongs to another model, or to"
    )


def test_a_name_of_a_node_and_a_tensor_is_the_node() -> None:
    b = image()
    proto = head(b, b.add("Relu", b.conv("x", 3, 8)), 8)
    proto.graph.node[1].name = "t0"
    taken = explained(proto, "t0")
    assert (taken.kind, taken.operator) == ("node", "Relu")
    assert taken.notes == ["A tensor is called 't0' as well; tensor:t0 explains it."]
    assert explained(proto, "tensor:t0").kind == "tensor"
    assert explained(proto, "group:t0[2]").unit.unit == 2
    proto.graph.node[0].name = ""
    assert explained(proto, "Conv → t0").operator == "Conv"


def test_a_name_with_brackets_is_taken_as_it_stands_first() -> None:
    proto = helper.make_model(GRAPHS["residual"]().graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for node in proto.graph.node:
        node.input[:] = ["t[1]" if n == "t1" else n for n in node.input]
        node.output[:] = ["t[1]" if n == "t1" else n for n in node.output]
    del proto.graph.value_info[:]
    assert explained(proto, "t[1]").unit is None
    assert explained(proto, "t[1][2]").unit.position == 2


def test_axes_of_a_weight_are_chosen_by_colons() -> None:
    proto = GRAPHS["residual"]()
    weight = next(n for n in proto.graph.node if n.op_type == "Conv" and n.input[0] != "x").input[1]
    first, second = explained(proto, f"{weight}[1]").unit, explained(proto, f"{weight}[:,1]").unit
    assert (first.axes, second.axes) == ([0], [1])
    assert first.group != second.group


def test_heads_are_units_of_many_channels_and_the_other_setting_is_tried() -> None:
    proto = GRAPHS["attention_heads"]()
    found = explained(proto, "MatMul_0[4]")
    (group,) = found.groups
    assert "tied" in {c.name for c in group.constraints}
    assert found.unit.goes_with == [3, 5]
    (change,) = [c for c in found.changes if c.setting == "--heads dimension"]
    assert (change.units_now, change.units_then) == (4, 12)
    opened = explained(proto, "MatMul_0", heads="dimension").groups[0]
    assert (opened.width, opened.blocks, opened.step) == (12, 4, 4)
    assert "blocks" in {c.name for c in opened.constraints}
    # One unit of every block goes at a time.
    assert len(opened.ranking.first_to_go) >= 4
    assert {u // 3 for u in opened.ranking.first_to_go[:4]} == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["layer_normalisation", "softmax_over_channels", "single_LRN"])
def test_allow_inexact_is_tried_for_normalisations(name: str) -> None:
    proto = GRAPHS[name]()
    model, types = typed(proto)
    closed, opened = (Explainer(model, types, make_config({"allow_inexact": a})) for a in (False, True))
    tensors = [p.tensor for p in closed.analysis.pinned if p.code is PinCode.NORMALISATION]
    assert tensors
    for tensor in tensors:
        found = closed.explain(tensor)
        assert "normalisation" in codes(found)
        (change,) = [c for c in found.changes if c.setting == "--allow-inexact"]
        then = opened.explain(tensor)
        assert change.units_then == sum(axes.units for t in then.tensors for axes in t.channels)
        assert (change.units_then > 0) == (name != "single_LRN")


def test_grouped_convolutions_have_blocks_and_say_where() -> None:
    model, types = typed(GRAPHS["conv_grouped"]())
    explainer = Explainer(model, types, make_config())
    blocked = next(g for g in explainer.analysis.groups if g.block_count > 1)
    (group,) = explainer.explain(f"group:{blocked.name}").groups
    (blocks,) = [c for c in group.constraints if c.name == "blocks"]
    assert "keep equally many, because of the split at" in blocks.detail
    assert group.step == blocked.block_count


def test_sizes_and_what_other_operators_make_have_no_channels() -> None:
    b = image()
    x = b.conv("x", 3, 8)
    y = b.add("NhwcMaxPool", x, domain="com.microsoft")
    z = b.add("Relu", y)
    for name in (y, z):
        b.declare(name, ["N", 8, 8, 8])
    model = load_model(b.finish(z))
    # ONNX Runtime has the operator, but no kernel for these types, so that it infers nothing.
    types = {name: TensorType((1, 8, 8, 8), 1) for name in (x, y, z, "y")} | {"x": TensorType((1, 3, 8, 8), 1)}
    types |= {t.name: TensorType(tuple(t.dims), t.data_type) for t in model.graph.initializer}
    explainer = Explainer(model, types, make_config())
    for name in (x, y, z):
        assert codes(explainer.explain(name)) == {"unknown-operator"}, name
    model, types = typed(GRAPHS["reshape_computed_batch"]())
    explainer = Explainer(model, types, make_config())
    sizes = next(node.output[0] for node in model.graph.node if node.op_type == "Shape")
    assert "shape value" in explainer.explain(sizes).tensors[0].absence.reason
    assert codes(explainer.explain(sizes)) == {""}


def test_groups_on_one_tensor_have_labels_of_their_own() -> None:
    model, types = typed(GRAPHS["split_halves"]())
    explainer = Explainer(model, types, make_config())
    first, second = (explainer.explain(f"group:t0#{number}").groups[0] for number in (1, 2))
    assert [first.name, second.name] == ["t0#1", "t0#2"]
    assert first.activations != second.activations
    assert {g.name for g in explainer.explain("tensor:t0").groups} == {"t0#1", "t0#2"}


def test_a_single_unit_is_too_narrow() -> None:
    b = Builder(["N", 10])
    proto = b.finish(b.gemm(b.add("Relu", b.gemm("x", 10, 2)), 2, 5))
    found = explained(proto, "t1", ignore=["t0"])
    assert codes(found) == {"ignored"}
    (change,) = found.changes
    assert (change.setting, change.units_now, change.units_then) == ("neither --ignore nor --only", 0, 2)


def test_embeddings_have_no_magnitude(work: Path) -> None:
    found = explained(GRAPHS["embedding_of_tokens"](), "t4")
    assert any(group.ranking is None for group in found.groups)
    console = Console(file=io.StringIO(), width=100)
    console.print(found)
    assert "no weight produces these units" in console.file.getvalue()
    onnx.save(GRAPHS["embedding_of_tokens"](), work / "tokens.onnx")


@pytest.mark.parametrize("width", [40, 120])
@pytest.mark.parametrize("name", ["residual", "attention_heads", "layer_normalisation"])
def test_output_is_readable_on_a_narrow_console_without_colour(name: str, width: int) -> None:
    model, types = typed(GRAPHS[name]())
    explainer = Explainer(model, types, make_config())
    console = Console(file=io.StringIO(), width=width, no_color=True)
    for index in range(len(model.graph.node)):
        console.print(explainer.explain(model.node_name(index)))
    inspection = inspect_channels(model, explainer.analysis)
    console.print(inspection)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    # Names stay in one piece.
    for group in explainer.analysis.groups:
        assert any(group.name in line for line in lines)
    assert all(remedy.split()[0] in " ".join(lines) for remedy in inspection.remedies.values())


def test_inspect_gives_a_remedy_for_every_code(work: Path) -> None:
    onnx.save(GRAPHS["layer_normalisation"](), work / "stream.onnx")
    found = json.loads(oamip("inspect", "stream.onnx", "--json", "-", cwd=work).out)
    assert set(found["remedies"]) == {pin["code"] for pin in found["pinned"]}
    assert "normalisation: --allow-inexact opens" in oamip("inspect", "stream.onnx", cwd=work).out
    assert all(group["macs"] > 0 for group in found["groups"])
