"""Scores as files, fronts, subnetworks, the paper's preset, thresholds, labels, engines and certificates."""

import itertools
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from command import Ran, failed, oamip
from graphs import Builder, image
from hypothesis import given
from hypothesis import strategies as st
from oracle import PLAIN, analysed
from scipy.special import log_softmax, softmax

import oamip_onnx
from oamip_onnx.budget import paper_threshold, widths_above
from oamip_onnx.channels import ChannelAnalysis, ChannelGroup, select_units
from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.errors import MissingExtraError, UsageError
from oamip_onnx.formulation import JointOptions, build_network, joint_program
from oamip_onnx.importance import Scores
from oamip_onnx.masking import MaskedSession
from oamip_onnx.model import load_model
from oamip_onnx.preparation import Prepared, prepare
from oamip_onnx.report import require_plots
from oamip_onnx.runtime import Session
from oamip_onnx.scoring import plan_for, score
from oamip_onnx.solvers import ConicSolver
from oamip_onnx.tasks import cluster

FloatArray = npt.NDArray[np.float64]

IMAGES = 40

# Processes would take longer to start than these programs to solve.
MODEST = {"round_to": 1, "threads": 1, "workers": 1}
SETTINGS = ["--data", "data.npz", "--round-to", 1, "--set", "workers=1"]
SCORE = ["score", "model.onnx", *SETTINGS]
PRUNE = ["prune", "model.onnx", "out.onnx", *SETTINGS, "--no-bench"]


def dense(seed: int = 5, widths: tuple[int, int] = (8, 7)) -> onnx.ModelProto:
    b = Builder(["N", 6], seed=seed)
    x = b.add("Relu", b.gemm("x", 6, widths[0]))
    x = b.add("Relu", b.gemm(x, *widths))
    # Rows that sum to zero: activations are positive, and one class would win everywhere.
    last = b.random.normal(0, 2.0, (4, widths[1]))
    last = last - last.mean(axis=1, keepdims=True)
    return b.finish(b.add("Gemm", x, b.constant(last.astype(np.float32)), transB=1))


def convolutional() -> onnx.ModelProto:
    b = image(seed=2)
    x = b.add("Relu", b.conv("x", 3, 6))
    x = b.add("Relu", b.conv(x, 6, 5))
    return b.finish(b.add("Gemm", b.add("Flatten", x), b.weight(4, 320, scale=0.2), transB=1))


def plane_to_plane() -> onnx.ModelProto:
    b = image(seed=3)
    return b.finish(b.conv(b.add("Relu", b.conv("x", 3, 6)), 6, 2))


def with_few_useful_units() -> onnx.ModelProto:
    """Return a classifier that reads units 1, 4 and 6 of nine alone."""
    b = Builder(["N", 6], seed=5)
    x = b.add("Relu", b.gemm("x", 6, 9))
    last = np.zeros((3, 9), np.float32)
    last[[0, 1, 2], [1, 4, 6]] = 6.0
    return b.finish(b.add("Gemm", x, b.constant(last), transB=1))


def samples_of(proto: onnx.ModelProto, count: int = IMAGES, seed: int = 0) -> npt.NDArray[np.float32]:
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def predictions(proto: onnx.ModelProto, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.asarray(Session(proto, PLAIN).run({"x": x})["y"].argmax(axis=1), np.int64)


def write(folder: Path, proto: onnx.ModelProto, name: str = "model.onnx", data: str = "data.npz") -> None:
    onnx.save(proto, folder / name)
    np.savez(folder / data, x=samples_of(proto))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return a folder with a fully connected classifier and its samples."""
    write(tmp_path, dense())
    return tmp_path


def ready(proto: onnx.ModelProto, labels: npt.NDArray[np.int64] | None = None, **settings: Any) -> Prepared:
    return prepare(proto, {"x": samples_of(proto)}, make_config({**MODEST, **settings}), labels=labels)


def scores_of(proto: onnx.ModelProto, labels: npt.NDArray[np.int64] | None = None, **settings: Any) -> Scores:
    return score(ready(proto, labels), make_config({**MODEST, **settings}))[0]


def found(ran: Ran) -> dict[str, Any]:
    """Return the JSON that a command has written on standard output."""
    assert ran.code == 0, ran.err
    result: dict[str, Any] = json.loads(ran.out)
    return result


def kept_units(report: dict[str, Any]) -> dict[str, list[int]]:
    return {group["name"]: group["kept"] for group in report["groups"]}


def refused(arguments: list[Any], code: int, message: str, work: Path) -> None:
    """Assert that a command fails with one sentence and leaves the folder as it was."""
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    failed(oamip(*arguments, cwd=work), code, message, work)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before


# Scores as a file


@pytest.mark.parametrize(
    "settings",
    [
        ["--importance", "magnitude"],
        ["--set", "form=response"],
        ["--set", "form=layerwise"],
        ["--set", "form=shift", "--target", "threshold=0.3"],
    ],
    ids=" ".join,
)
def test_pruning_by_a_score_file_keeps_the_same_units(work: Path, settings: list[str]) -> None:
    assert oamip(*SCORE, *settings, "--out", "scores.json", cwd=work).code == 0
    target = settings[2:] if "--target" in settings else []
    by_file = found(oamip(*PRUNE, *target, "--scores", "scores.json", "--json", "-", cwd=work))
    directly = found(oamip(*PRUNE, *settings, "--json", "-", cwd=work))
    assert kept_units(by_file) == kept_units(directly)
    assert 0 < sum(group["after"] for group in by_file["groups"]) < 15
    assert by_file["importance"] == directly["importance"]
    assert by_file["verification"]["passed"]
    assert "The scores are those of 'scores.json'" in by_file["notes"][0]


def test_one_score_file_serves_several_targets(work: Path) -> None:
    assert oamip(*SCORE, "--set", "form=layerwise", "--out", "scores.json", cwd=work).code == 0
    reports = [
        found(oamip(*PRUNE, "--scores", "scores.json", "--target", target, "--json", "-", cwd=work))
        for target in ("ratio=0.5", "ratio=0.25", "macs=0.6", "threshold=0.5")
    ]
    widths = [[group["after"] for group in report["groups"]] for report in reports]
    assert widths[:2] == [[4, 4], [6, 5]]
    assert 0.4 < reports[2]["pruned"]["macs"] / reports[2]["original"]["macs"] <= 0.6
    for name, kept in kept_units(reports[0]).items():
        assert set(kept) < set(kept_units(reports[1])[name])
    for group in reports[3]["groups"]:
        assert group["kept"] == [u for u, value in enumerate(group["importance"]) if value > 0.5]


def test_scores_that_differ_in_the_eighth_digit_rank_alike_in_the_file(work: Path) -> None:
    b = Builder(["N", 1])
    weight = np.array([[1.0], [1.0 + 3e-7], [1.0 + 6e-7], [1.0 + 1e-6]], np.float32)
    write(work, b.finish(b.gemm(b.add("Relu", b.add("Gemm", "x", b.constant(weight), transB=1)), 4, 3)))
    arguments = ["--importance", "magnitude"]
    assert oamip(*SCORE, *arguments, "--out", "scores.json", cwd=work).code == 0
    kept = kept_units(found(oamip(*PRUNE, "--scores", "scores.json", "--json", "-", cwd=work)))
    assert kept == kept_units(found(oamip(*PRUNE, *arguments, "--json", "-", cwd=work))) == {"t0": [2, 3]}


def edited(text: str, **changes: object) -> str:
    return json.dumps({**json.loads(text), **changes})


def with_first_importance(text: str, value: object) -> str:
    report = json.loads(text)
    report["groups"][1]["importance"][0] = value
    return json.dumps(report)


def with_renamed_group(text: str) -> str:
    report = json.loads(text)
    report["groups"][0]["name"] = "t00"
    return json.dumps(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_renamed_group, "hold nothing for the group 't0' of 8 units; did you mean 't00'"),
        (lambda text: edited(text, schema_version=99), "have the schema version 99; this version reads 1"),
        (lambda text: edited(text, groups=[]), "hold nothing for the group 't0'"),
        (lambda text: with_first_importance(text, "NaN"), "of the group 't2' are not all finite"),
        (lambda text: with_first_importance(text, "-Infinity"), "of the group 't2' are not all finite"),
        (lambda text: with_first_importance(text, None), "holds no scores; write them with oamip score"),
        (lambda text: text[: len(text) // 2], "holds no scores"),
        (lambda _: '{"groups": {}}', "holds no scores"),
        (lambda _: "", "holds no scores"),
    ],
)
def test_score_file_that_is_not_usable_is_refused(work: Path, change: Callable[[str], str], message: str) -> None:
    assert oamip(*SCORE, "--importance", "magnitude", "--out", "scores.json", cwd=work).code == 0
    (work / "scores.json").write_text(change((work / "scores.json").read_text()))
    refused([*PRUNE, "--scores", "scores.json", "--json", "result.json"], 3, message, work)


def test_scores_of_another_model_or_no_scores_are_refused(work: Path) -> None:
    write(work, dense(widths=(6, 7)), "other.onnx")
    other = ["score", "other.onnx", "--data", "data.npz", "--importance", "magnitude", "--out", "other.json"]
    assert oamip(*other, cwd=work).code == 0
    refused([*PRUNE, "--scores", "other.json"], 3, "hold 6 units for the group 't0' of 8 units", work)
    refused([*PRUNE, "--scores", "none.json"], 3, "'none.json' cannot be read: No such file", work)
    refused([*PRUNE, "--scores", "."], 3, "'.' cannot be read: Is a directory", work)
    refused([*PRUNE, "--scores", "data.npz"], 3, "'data.npz' holds no scores", work)


# A front


@pytest.mark.parametrize("form", ["response", "layerwise", "shift"])
def test_front_goes_from_small_to_accurate(work: Path, form: str) -> None:
    ran = oamip(*SCORE, "--form", form, "--path", 5, "--out", "front.json", cwd=work)
    assert ran.code == 0, ran.err
    points = json.loads((work / "front.json").read_text())["points"]
    assert len(points) == 5
    weights, shares, expected, measured = (
        np.array([point[key] for point in points])
        for key in ("loss_weight", "share_kept", "program_loss", "measured_loss")
    )
    assert (np.diff(weights) > 0).all()
    assert (np.diff(shares) >= -1 / 15 - 1e-9).all()
    assert shares[-1] > shares[0]
    assert measured[-1] < measured[0]
    assert (measured >= -1e-9).all()
    assert np.isfinite(expected).all()
    assert [sum(point["kept"].values()) / 15 for point in points] == pytest.approx(list(shares))
    assert ran.out.count("%") == 5


@pytest.mark.parametrize(
    "settings",
    [["--form", "layerwise"], ["--form", "response"], ["--form", "shift"], ["--preset", "paper"]],
    ids=" ".join,
)
def test_expected_loss_of_a_front_falls_with_its_weight(work: Path, settings: list[str]) -> None:
    """A smaller expected loss at a smaller λ would contradict the optimality of one of both solutions."""
    points = found(oamip(*SCORE, *settings, "--path", 5, "--json", "-", cwd=work))["points"]
    expected = np.array([point["program_loss"] for point in points])
    assert (np.diff(expected) < 1e-4).all()
    assert expected[0] > expected[-1]


def test_front_is_drawn_beside_the_file_and_repeats(work: Path) -> None:
    pictures = []
    for name in ("front", "again"):
        assert oamip(*SCORE, "--form", "shift", "--path", 2, "--out", f"{name}.json", cwd=work).code == 0
        pictures.append((work / f"{name}.svg").read_text(encoding="utf-8"))
    root = ET.fromstring(pictures[0])  # noqa: S314 - as above
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = " ".join(element.text or "" for element in root.iter())
    assert "Share of units kept" in words
    assert "oamip (shift)" in words
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--path", 1], "A path has at least 2 points, not 1"),
        (["--path", 0], "A path has at least 2 points, not 0"),
        (["--path", 3, "--subnetworks", 3], "Give --path or --subnetworks, not both"),
        (["--path", 3, "--out", "front.svg"], "The plot is written beside the front as .svg"),
        (["--subnetworks", 0], "The number of subnetworks is 0"),
        (["--subnetworks", -1], "The number of subnetworks is -1"),
        (["--subnetworks", 3, "--target", "threshold=0.2"], "a threshold plans none"),
        (["--importance", "magnitude", "--target", "threshold=0.1"], "threshold=0.1 compares OAMIP's scores"),
    ],
)
def test_paths_and_subnetworks_that_make_no_sense(work: Path, arguments: list[Any], message: str) -> None:
    refused([*SCORE, "--out", "found.json", *arguments], 2, message, work)


def test_plots_without_matplotlib_say_what_to_install(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        MissingExtraError, match=r"needs matplotlib; install it with: pip install 'oamip-onnx\[report\]'"
    ):
        require_plots()
    refused([*SCORE, "--path", 2, "--out", "front.json"], 3, "pip install 'oamip-onnx[report]'", work)
    # Without a file there is nothing to draw.
    assert oamip(*SCORE, "--form", "shift", "--path", 2, cwd=work).code == 0


# Several subnetworks


def test_subnetworks_are_distinct_and_each_can_be_used(work: Path) -> None:
    arguments = [*SCORE, "--form", "response", "--set", "images=10", "--subnetworks", 3, "--out", "s.json"]
    report = found(oamip(*arguments, "--json", "-", cwd=work))
    assert report == json.loads((work / "s.json").read_text())
    networks = report["subnetworks"]
    assert [one["file"] for one in networks] == ["s-1.json", "s-2.json", "s-3.json"]
    assert len({json.dumps(one["kept"], sort_keys=True) for one in networks}) == 3
    assert networks[0]["overlap"] == 1
    assert all(0 < one["overlap"] < 1 for one in networks[1:])
    assert report["notes"] == []
    for one in networks:
        pruned = found(oamip(*PRUNE, "--scores", one["file"], "--json", "-", cwd=work))
        assert kept_units(pruned) == one["kept"]
        assert {name: len(kept) for name, kept in one["kept"].items()} == {"t0": 4, "t2": 4}
        assert one["measured_loss"] > 0
    first = set(networks[0]["kept"]["t0"]) & set(networks[1]["kept"]["t0"])
    second = set(networks[0]["kept"]["t2"]) & set(networks[1]["kept"]["t2"])
    assert networks[1]["overlap"] == pytest.approx((len(first) + len(second)) / 8)


def test_fewer_subnetworks_than_asked_for_are_said(work: Path) -> None:
    ran = oamip(*SCORE, "--importance", "magnitude", "--subnetworks", 3, "--out", "s.json", cwd=work)
    assert ran.code == 0
    assert "give 1 distinct" in ran.err
    assert len(json.loads((work / "s.json").read_text())["subnetworks"]) == 1
    assert sorted(path.name for path in work.glob("s*.json")) == ["s-1.json", "s.json"]


# The paper's preset and thresholds


def test_paper_preset_keeps_the_units_that_matter(work: Path) -> None:
    write(work, with_few_useful_units())
    report = found(oamip(*PRUNE, "--preset", "paper", "--json", "-", cwd=work))
    config = report["config"]
    assert (config["form"], config["target"], config["images"], config["loss_weight"]) == (
        "shift",
        "threshold=auto",
        10,
        5.0,
    )
    assert report["importance"] == "oamip (shift)"
    assert len(report["solver"]) == 1
    assert kept_units(report) == {"t0": [1, 4, 6]}
    notes = " ".join(report["notes"])
    assert "every ReLU state" in notes or "ReLU states open" in notes
    assert "Paper preset: the authors' rows and sparsity term. It differs from their code in that" in notes
    assert report["verification"]["passed"]


def test_paper_preset_is_another_program_than_the_shift_form() -> None:
    plain = scores_of(dense(), form="shift", target="threshold=auto", images=10)
    paper = scores_of(dense(), preset="paper")
    assert np.abs(paper.values - plain.values).max() > 0.1
    assert not any("Paper preset" in note for note in plain.notes)


def test_settings_override_the_preset(work: Path) -> None:
    arguments = [*PRUNE, "--preset", "paper", "--json", "-"]
    report = found(oamip(*arguments, "--target", "threshold=0.2", "--set", "images=6", cwd=work))
    assert (report["config"]["target"], report["config"]["images"]) == ("threshold=0.2", 6)
    for group in report["groups"]:
        assert group["kept"] == [u for u, value in enumerate(group["importance"]) if value > 0.2]
    ratio = found(oamip(*arguments, "--target", "ratio=0.5", cwd=work))
    assert [group["after"] for group in ratio["groups"]] == [4, 4]


def test_threshold_takes_one_program_in_the_response_form(work: Path) -> None:
    report = found(
        oamip(
            *PRUNE,
            "--set",
            "form=response",
            "--target",
            "threshold=0.5",
            "--set",
            "loss_weight=10",
            "--json",
            "-",
            cwd=work,
        )
    )
    assert len(report["solver"]) == 1
    assert any("one program with λ = 10" in note for note in report["notes"])
    for group in report["groups"]:
        assert group["kept"] == [u for u, value in enumerate(group["importance"]) if value > 0.5]
        assert 0 < group["after"] < group["before"]


@pytest.mark.parametrize("target", ["threshold=0.1", "threshold=auto"])
def test_threshold_needs_scores_of_oamip(work: Path, target: str) -> None:
    message = f"The target {target} compares OAMIP's scores; the importance magnitude needs"
    refused([*PRUNE, "--importance", "magnitude", "--target", target], 2, message, work)
    assert oamip(*SCORE, "--importance", "magnitude", "--out", "scores.json", cwd=work).code == 0
    refused([*PRUNE, "--scores", "scores.json", "--target", target], 2, message, work)


@pytest.mark.parametrize(("convolutions", "threshold"), [(0, 0.1), (1, 0.2), (2, 0.2), (3, 0.3), (5, 0.3)])
def test_papers_threshold_goes_by_the_architecture(convolutions: int, threshold: float) -> None:
    b, x = image(), "x"
    for number in range(convolutions):
        x = b.add("Relu", b.conv(x, 4 if number else 3, 4))
    proto = b.finish(b.gemm(b.add("Flatten", x), 64 * (4 if convolutions else 3), 5))
    assert paper_threshold(load_model(proto)) == threshold


def test_papers_threshold_is_what_auto_means() -> None:
    prepared = ready(convolutional())
    values = np.tile([0.25, 0.15, 0.35], prepared.analysis.unit_count)[: prepared.analysis.unit_count]
    scores = Scores(values, "oamip", "shift")
    auto, same, other = (
        plan_for(prepared, make_config({"target": f"threshold={text}", "round_to": 1}), scores)
        for text in ("auto", "0.2", "0.3")
    )
    assert auto == same != other


@st.composite
def grouped_scores(draw: st.DrawFn) -> tuple[tuple[ChannelGroup, ...], FloatArray]:
    """Draw groups with and without blocks, and a score for every unit."""
    groups: list[ChannelGroup] = []
    first = 0
    for number in range(draw(st.integers(1, 3))):
        blocks = draw(st.sampled_from([1, 2, 3]))
        width = blocks * draw(st.integers(1, 12))
        order = np.array(draw(st.permutations(np.repeat(np.arange(blocks), width // blocks).tolist())), np.int64)
        minimum = draw(st.sampled_from([0, blocks]))
        labels = None if blocks == 1 else order
        groups.append(ChannelGroup(f"g{number}", (), first, width, labels, minimum_width=minimum))
        first += width
    values = draw(st.lists(st.sampled_from(np.linspace(0, 1, 11).tolist()), min_size=first, max_size=first))
    return tuple(groups), np.array(values)


@given(grouped_scores(), st.sampled_from(np.linspace(0, 0.9, 10).tolist()))
def test_threshold_keeps_what_scores_above_it(
    drawn: tuple[tuple[ChannelGroup, ...], FloatArray], threshold: float
) -> None:
    groups, values = drawn
    analysis = ChannelAnalysis(groups, (), {}, (), {})
    kept = select_units(analysis, widths_above(groups, values, threshold), values)
    for group in groups:
        own, above = kept[group.units], values[group.units] > threshold
        assert own[above].all()
        counts = [int(own[members].sum()) for members in group.members()]
        assert len(set(counts)) == 1
        # No block keeps more than the fullest one needs, or the group's minimum asks for.
        needed = max(int(above[members].sum()) for members in group.members())
        assert counts[0] == max(needed, group.minimum_width // group.block_count)


@given(grouped_scores(), st.sampled_from(np.linspace(0, 0.9, 10).tolist()), st.sampled_from([1, 2, 4, 8]))
def test_rounding_never_drops_what_scores_above_the_threshold(
    drawn: tuple[tuple[ChannelGroup, ...], FloatArray], threshold: float, round_to: int
) -> None:
    groups, values = drawn
    widths = widths_above(groups, values, threshold, round_to)
    kept = select_units(ChannelAnalysis(groups, (), {}, (), {}), widths, values)
    assert kept[values > threshold].all()
    for group, width in zip(groups, widths, strict=True):
        assert group.minimum_width <= width <= group.width
        if group.width >= 2 * round_to and width < group.width:
            assert width % round_to == 0 or width == group.minimum_width


# Labels


@pytest.mark.parametrize("form", ["shift", "gate"])
def test_predictions_stand_in_for_labels(form: str) -> None:
    proto = dense()
    predicted = predictions(proto, samples_of(proto))
    bare = scores_of(proto, form=form, images=4)
    labelled = scores_of(proto, predicted, form=form, images=4)
    np.testing.assert_array_equal(bare.values, labelled.values)
    assert not any("wrong" in note for note in bare.notes)
    assert bare.values.max() > bare.values.min()


@pytest.mark.parametrize("form", ["shift", "gate"])
def test_images_that_the_model_gets_wrong_are_counted(form: str) -> None:
    proto = dense()
    x = samples_of(proto, 6)
    labels = predictions(proto, x)
    labels[:2] = (labels[:2] + 1) % 4
    settings = {**MODEST, "form": form, "images": 6, "bench": False}
    result = oamip_onnx.prune(proto, {"x": x}, labels=labels, **settings)
    assert any("The model gets 2 of the 6 images wrong" in note for note in result.report.notes)
    assert result.report.verification.passed
    assert result.report.drift.metric is not None
    assert result.report.drift.metric.original == pytest.approx(4 / 6)
    # Where there are enough right ones, these alone enter.
    fewer = oamip_onnx.prune(proto, {"x": x}, labels=labels, **{**settings, "images": 3})
    assert not any("wrong" in note for note in fewer.report.notes)


@pytest.mark.parametrize("form", ["shift", "gate"])
def test_classes_without_images_are_said(form: str) -> None:
    proto = dense()
    x = samples_of(proto, 200)
    predicted = predictions(proto, x)
    present = np.unique(predicted)
    assert len(present) == 4
    settings = {**MODEST, "form": form, "bench": False}
    few = oamip_onnx.prune(proto, {"x": x}, images=2, **settings)
    assert any(
        "has 2 images, fewer than there are classes (4); 2 of the 4 classes have none" in n for n in few.report.notes
    )
    rest = x[predicted > 1][:20]
    absent = oamip_onnx.prune(proto, {"x": rest}, images=4, **settings)
    assert any("has 4 images; 2 of the 4 classes have none" in note for note in absent.report.notes)


# Engines, workers, cache


def test_engine_that_is_not_installed_is_refused(work: Path) -> None:
    arguments = [*PRUNE, "--set", "form=layerwise", "--set", "solver=mosek"]
    refused(arguments, 2, "The solver 'mosek' is not installed; found: clarabel, ", work)
    refused([*arguments[:-1], "solver=clarabell"], 2, "did you mean 'clarabel'", work)


@pytest.mark.parametrize(("solver", "engine"), [("scs", "SCS "), ("SCS", "SCS "), ("scip", "SCIP ")])
def test_engine_by_name_solves_every_program(work: Path, solver: str, engine: str) -> None:
    arguments = [*PRUNE, "--set", "form=layerwise", "--set", "images=12", "--json", "-"]
    report = found(oamip(*arguments, "--set", f"solver={solver}", cwd=work))
    assert [solve["engine"].startswith(engine) for solve in report["solver"]] == [True, True]
    usual = found(oamip(*arguments, cwd=work))
    assert all(solve["engine"].startswith("CLARABEL") for solve in usual["solver"])
    for one, other in zip(report["solver"], usual["solver"], strict=True):
        assert one["objective"] == pytest.approx(other["objective"], rel=1e-2)


def test_scheduler_that_does_not_answer_is_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    arguments = [*SCORE, "--form", "layerwise", "--scheduler", "tcp://127.0.0.1:1", "--no-cache", "--out", "s.json"]
    refused(arguments, 3, "No Dask scheduler answers at 'tcp://127.0.0.1:1'", work)


def test_damaged_cache_is_computed_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = work / "cache"
    monkeypatch.setenv("OAMIP_CACHE_DIR", str(cache))
    arguments = [*SCORE, "--form", "layerwise", "--json", "-"]

    def values() -> list[list[float]]:
        return [group["importance"] for group in found(oamip(*arguments, cwd=work))["groups"]]

    first = values()
    entries = sorted(cache.rglob("*.npz"))
    assert len(entries) == 4  # a head and a program for each of two layers
    for number, entry in enumerate(entries):
        whole = entry.read_bytes()
        entry.write_bytes([b"", whole[: len(whole) // 2], bytes(len(whole)), whole[:-200] + bytes(200)][number])
    assert values() == first
    assert all(entry.stat().st_size > 200 for entry in entries)


def test_pool_of_processes_gives_the_same_bits() -> None:
    proto = convolutional()
    here, pool = (
        scores_of(proto, form="layerwise", workers=workers, cache=False, images=20).values for workers in (1, 2)
    )
    np.testing.assert_array_equal(here, pool)
    assert here.max() > here.min()


# Decoupling and heads


@pytest.mark.parametrize("form", ["response", "layerwise", "shift"])
def test_scores_by_class(form: str) -> None:
    proto = dense()
    settings = {"form": form, "target": "threshold=0.2", "images": 20, "loss_weight": 30.0}
    joint, mean, largest = (scores_of(proto, by_class=name, **settings) for name in ("none", "mean", "max"))
    for scores in (joint, mean, largest):
        assert np.isfinite(scores.values).all()
        assert ((scores.values >= 0) & (scores.values <= 1)).all()
    assert (largest.values >= mean.values - 1e-12).all()
    assert (largest.values > mean.values + 1e-3).any()
    assert np.abs(mean.values - joint.values).max() > 1e-3
    assert len(mean.solver) > len(joint.solver)


@pytest.mark.parametrize("by_class", ["mean", "max"])
@pytest.mark.parametrize("form", ["response", "layerwise", "shift"])
def test_pruning_by_class_meets_the_widths(form: str, by_class: str) -> None:
    proto = dense()
    settings = {**MODEST, "form": form, "by_class": by_class, "images": 12, "bench": False}
    result = oamip_onnx.prune(proto, {"x": samples_of(proto)}, **settings)
    assert [group.after for group in result.report.groups] == [4, 4]
    assert result.report.verification.passed


@pytest.mark.parametrize("head", ["linear", "hidden", "pooled"])
@pytest.mark.parametrize("model", [convolutional, plane_to_plane])
def test_heads_score_what_classifies_and_what_does_not(model: Callable[[], onnx.ModelProto], head: str) -> None:
    scores = scores_of(model(), form="layerwise", head=head, images=20)
    assert any(f"{head} head" in note for note in scores.notes)
    assert np.isfinite(scores.values).all()
    assert scores.values.max() > scores.values.min() + 0.1
    assert all(solve.objective is not None for solve in scores.solver)


def test_heads_differ() -> None:
    values = [
        scores_of(convolutional(), form="layerwise", head=head, images=20).values
        for head in ("linear", "hidden", "pooled")
    ]
    for one, other in itertools.combinations(values, 2):
        assert np.abs(one - other).max() > 1e-3


# Lossless removal


def with_proven_units() -> onnx.ModelProto:
    """Return a network over [0, 1]⁴ whose third unit never fires and whose second layer always does."""
    b = Builder(["N", 4], seed=3)
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    # Half of the box on either side, so that the other units are live and not always active.
    bias = -weight.sum(axis=1) / 2
    bias[2] = -50.0
    x = b.add("Relu", b.add("Gemm", "x", b.constant(weight), b.constant(bias), transB=1))
    x = b.add("Relu", b.add("Gemm", x, b.weight(10, 6), b.constant(np.full(10, 9.0, np.float32)), transB=1))
    return b.finish(b.gemm(x, 10, 3))


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Return a folder with a network that has units to prove something about, and samples in its box."""
    onnx.save(with_proven_units(), tmp_path / "model.onnx")
    x = np.random.default_rng(0).uniform(0, 1, (IMAGES, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    return tmp_path


@pytest.mark.parametrize("ranges", [["0,1"], ["x=0,1"], ["x=0,1", "-9,9"], ["-9,9", "x=0,1"]], ids=" ".join)
def test_lossless_pruning_changes_nothing_in_the_box(boxed: Path, ranges: list[str]) -> None:
    given_ranges = [argument for text in ranges for argument in ("--input-range", text)]
    report = found(oamip(*PRUNE, "--lossless", *given_ranges, "--json", "-", cwd=boxed))
    record = report["lossless"]
    assert (record["inactive"], record["always_active"]) == (1, 10)
    assert record["by_interval"] + record["by_linear"] + record["by_integer"] == 11
    assert [merged["units"] for merged in record["merged"]] == [10]
    assert record["merged"][0]["macs_after"] < record["merged"][0]["macs_before"]
    assert (record["undecided"], record["exhausted"]) == (0, False)
    assert record["input_range"] == ranges
    assert report["groups"][0]["kept"] == [0, 1, 3, 4, 5]
    assert report["pruned"]["macs"] < report["original"]["macs"]
    inputs = np.random.default_rng(1).uniform(0, 1, (64, 4)).astype(np.float32)
    inputs[:16] = inputs[:16] > 0.5
    before, after = (
        Session(onnx.load(boxed / name), PLAIN).run({"x": inputs})["y"] for name in ("model.onnx", "out.onnx")
    )
    np.testing.assert_allclose(after, before, atol=1e-5 * float(np.abs(before).max()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lossless"], "needs the range of the input 'x'"),
        (["--input-range", "0,1"], "add --lossless, or leave --input-range out"),
        (["--lossless", "--input-range", "0,inf"], "'0,inf' must have finite ends"),
        (["--lossless", "--input-range", "nan,1"], "'nan,1' must have finite ends"),
        (["--lossless", "--input-range", "1,0"], "'1,0' is empty; write the smaller number first"),
        (["--lossless", "--input-range", "0"], "'0' is not of the form 0,1 or name=0,1"),
        (["--lossless", "--input-range", "0,1,2"], "'0,1,2' is not of the form"),
        (["--lossless", "--input-range", "low,high"], "'low,high' is not of the form"),
        (["--lossless", "--input-range", "z=0,1"], "There is no input 'z'"),
        (["--lossless", "--input-range", "0,1", "--scores", "scores.json"], "needs no scores"),
    ],
)
def test_lossless_settings_that_make_no_sense(boxed: Path, arguments: list[str], message: str) -> None:
    refused([*PRUNE, *arguments], 2, message, boxed)


# Certificates


def tiny() -> onnx.ModelProto:
    b = Builder(["N", 6], seed=7)
    x = b.add("Relu", b.gemm("x", 6, 5))
    x = b.add("Relu", b.add("Gemm", x, b.weight(4, 5, scale=1.0), transB=1))
    return b.finish(b.add("Gemm", x, b.weight(3, 4, scale=2.0), transB=1))


def masked_logits(proto: onnx.ModelProto, masks: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the logits of the masked model on the samples, shape (masks, samples, classes)."""
    subject = analysed(proto)
    session = MaskedSession(subject.model, subject.analysis, PLAIN)
    return np.stack([session.run({"x": samples_of(proto)}, mask)["y"] for mask in masks]).astype(np.float64)


def subsets(width: int, count: int) -> npt.NDArray[np.bool_]:
    """Return every mask of a group that keeps so many units, shape (subsets, units)."""
    masks = [np.isin(np.arange(width), kept) for kept in itertools.combinations(range(width), count)]
    return np.array(masks)


def flipped(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the masks with one unit each on the other side, shape (units, units)."""
    return mask ^ np.eye(len(mask), dtype=np.bool_)


def test_response_certificate_holds_for_every_subset() -> None:
    proto = tiny()
    scores = scores_of(proto, form="response")
    (certificate,) = scores.certificates
    assert certificate.bound is not None
    assert certificate.bound <= certificate.objective
    kept = np.concatenate([scores.values[:5] >= 0.5, scores.values[5:] >= 0.5])
    assert (kept[:5].sum(), kept[5:].sum()) == (3, 2)
    full, chosen = masked_logits(proto, np.stack([np.ones(9, np.bool_), kept]))
    targets = softmax(full, axis=1)
    entropy = float(-(targets * log_softmax(full, axis=1)).sum(axis=1).mean())

    def loss(logits: FloatArray) -> float:
        return float(-(targets * log_softmax(logits, axis=1)).sum(axis=1).mean()) - entropy

    assert certificate.objective == pytest.approx(loss(chosen), rel=1e-3, abs=1e-6)
    changes = masked_logits(proto, flipped(kept)) - chosen
    losses = [
        loss(chosen + changes[np.concatenate([first, second]) != kept].sum(axis=0))
        for first in subsets(5, 3)
        for second in subsets(4, 2)
    ]
    assert certificate.bound <= min(losses) + 1e-6


def test_quadratic_certificates_are_the_optimum_of_small_groups() -> None:
    proto = tiny()
    scores = scores_of(proto, form="response", certificates=True)
    groups = {certificate.task: certificate for certificate in scores.certificates[1:]}
    assert list(groups) == ["t0", "t2"]
    every = np.ones(9, np.bool_)
    full = masked_logits(proto, every[None])[0]
    probabilities = softmax(full, axis=1)
    changes = masked_logits(proto, flipped(every)) - full

    def value(removed: npt.NDArray[np.bool_], units: slice) -> float:
        """Return Σ_i Var_{c~p_i}(δ_ic) / 2n, the second-order loss of a choice."""
        moved = changes[units][removed].sum(axis=0)
        mean = (probabilities * moved).sum(axis=1, keepdims=True)
        return float((probabilities * (moved - mean) ** 2).sum(axis=1).mean() / 2)

    for name, units, width, count in (("t0", slice(0, 5), 5, 3), ("t2", slice(5, 9), 4, 2)):
        found_here = groups[name]
        values = [value(~mask, units) for mask in subsets(width, count)]
        assert found_here.bound is not None
        assert found_here.engine.startswith("SCIP")
        assert found_here.bound <= found_here.objective
        assert found_here.bound == pytest.approx(min(values), rel=1e-3, abs=1e-6)
        chosen = scores.values[units] < 0.5
        assert found_here.objective == pytest.approx(value(chosen, units), rel=1e-3, abs=1e-6)


def test_report_carries_the_certificates(work: Path) -> None:
    write(work, tiny())
    arguments = [*PRUNE, "--set", "form=response", "--json", "-"]
    plain = found(oamip(*arguments, cwd=work))
    assert [certificate["task"] for certificate in plain["certificates"]] == ["chosen subset"]
    asked = found(oamip(*arguments, "--set", "certificates=true", cwd=work))
    assert [certificate["task"] for certificate in asked["certificates"]] == ["chosen subset", "t0", "t2"]
    for certificate in (*plain["certificates"], *asked["certificates"]):
        assert certificate["bound"] <= certificate["objective"]
        assert certificate["gap"] >= 0
        assert "than the bound" in certificate["statement"] or "below the bound" in certificate["statement"]
    nothing = found(oamip(*arguments, "--set", "certificates=true", "--target", "ratio=0", cwd=work))
    assert [certificate["task"] for certificate in nothing["certificates"]] == ["chosen subset"]


def test_unknown_form_of_a_program_is_refused() -> None:
    with pytest.raises(UsageError, match="'form' does not take 'respons'"):
        make_config({"form": "respons"})


def test_a_preset_ranks_over_a_file_and_under_the_command_line(work: Path) -> None:
    assert oamip(*PRUNE, "--importance", "magnitude", "--save-config", "saved.toml", cwd=work).code == 0
    report = found(oamip(*PRUNE, "--config", "saved.toml", "--preset", "paper", "--json", "-", cwd=work))
    assert report["importance"] == "oamip (shift)"
    assert report["config"]["target"] == "threshold=auto"
    plain = make_config(PruneConfig().model_dump(), {"preset": "paper"})
    assert (plain.form, plain.images) == ("shift", 10)
    assert PruneConfig(preset="paper", images=6) == make_config({"preset": "paper", "images": 6})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"form": "response", "anchor": 0.5}, "anchor"),
        ({"form": "gate", "reweightings": 2}, "reweightings"),
        ({"preset": "paper", "reweightings": 2}, "reweightings"),
        ({"form": "shift", "tighten_seconds": 1.0}, "tighten_seconds"),
        ({"form": "layerwise", "certificates": True}, "certificates"),
    ],
)
def test_a_setting_that_the_form_does_not_read_is_refused(settings: dict[str, Any], named: str) -> None:
    proto = dense()
    with pytest.raises(UsageError, match=f"setting '{named}' has no effect"):
        oamip_onnx.prune(proto, {"x": samples_of(proto, 20)}, bench=False, **settings)


@pytest.mark.parametrize("form", ["response", "layerwise", "shift", "gate"])
def test_a_fixed_batch_takes_any_number_of_images(form: str) -> None:
    proto = dense()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 16
    data = {"x": samples_of(proto, 64)}
    result = oamip_onnx.prune(proto, data, form=form, images=5, round_to=1, bench=False, cache=False)
    assert result.report.verification.passed


def test_a_branch_that_vanishes_is_scored_to_the_end() -> None:
    b = image(seed=5)
    x = b.add("Relu", b.conv("x", 3, 6))
    y = b.conv(b.add("Relu", b.conv(x, 6, 8)), 8, 6)
    proto = b.finish(b.gemm(b.add("Flatten", b.add("Add", x, y)), 384, 4))
    data = {"x": np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)}
    result = oamip_onnx.prune(proto, data, form="response", target="ratio=0.95", round_to=1, bench=False, cache=False)
    assert 0 in [group.after for group in result.report.groups]


def test_a_named_engine_keeps_binaries_where_it_can() -> None:
    proto = dense()
    settings: dict[str, Any] = {"form": "gate", "images": 2, "binary_scores": True, "cache": False, "bench": False}
    relaxed = oamip_onnx.prune(proto, {"x": samples_of(proto, 20)}, solver="clarabel", **settings)
    assert "relaxed" in relaxed.report.solver[0].advice
    exact = oamip_onnx.prune(proto, {"x": samples_of(proto, 20)}, solver="scip", **settings)
    assert exact.report.solver[0].engine.startswith("SCIP")


def test_the_gate_forms_certificate_bounds_every_subset() -> None:
    """On the program's images no subset of the widths reaches a loss below the bound: all of them are tried."""
    subject = analysed(dense())
    network = build_network(subject.model, subject.analysis, subject.model.output_names[0])
    widths = tuple(max(1, group.width // 2) for group in subject.analysis.groups)
    feeds = {"x": samples_of(dense(), 4)}
    labels = network.forward(feeds)[network.logits].argmax(axis=1)
    joint = joint_program(network, feeds, labels, JointOptions(form="gate", widths=widths, loss_weight=1.0))
    bound = ConicSolver().solve(joint.program).result.bound
    assert bound is not None
    choices = [itertools.combinations(range(g.width), w) for g, w in zip(subject.analysis.groups, widths, strict=True)]
    losses = []
    for chosen in itertools.product(*choices):
        mask = np.zeros(subject.analysis.unit_count)
        for group, units in zip(subject.analysis.groups, chosen, strict=True):
            mask[group.first_unit + np.array(units)] = 1.0
        losses.append(joint.program.objective(joint.point(mask)))
    assert bound <= min(losses) + 1e-6
    assert joint.program.start is not None
    assert max(joint.program.violations(joint.program.start).values()) < 1e-6
