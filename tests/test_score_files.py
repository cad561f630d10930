"""Scores as files, fronts and several subnetworks."""

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import oamip
from graphs import Builder
from scored import PRUNE, SCORE, dense, found, kept_units, refused, write

from oamip_onnx.errors import MissingExtraError
from oamip_onnx.report import require_plots

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
def test_pruning_by_a_score_file_keeps_the_same_units(dense_work: Path, settings: list[str]) -> None:
    assert oamip(*SCORE, *settings, "--out", "scores.json", cwd=dense_work).code == 0
    target = settings[2:] if "--target" in settings else []
    by_file = found(oamip(*PRUNE, *target, "--scores", "scores.json", "--json", "-", cwd=dense_work))
    directly = found(oamip(*PRUNE, *settings, "--json", "-", cwd=dense_work))
    assert kept_units(by_file) == kept_units(directly)
    assert 0 < sum(group["after"] for group in by_file["groups"]) < 15
    assert by_file["importance"] == directly["importance"]
    assert by_file["verification"]["passed"]
    assert "The scores are those of 'scores.json'" in by_file["notes"][0]


def test_one_score_file_serves_several_targets(dense_work: Path) -> None:
    assert oamip(*SCORE, "--set", "form=layerwise", "--out", "scores.json", cwd=dense_work).code == 0
    reports = [
        found(oamip(*PRUNE, "--scores", "scores.json", "--target", target, "--json", "-", cwd=dense_work))
        for target in ("ratio=0.5", "ratio=0.25", "macs=0.6", "threshold=0.5")
    ]
    widths = [[group["after"] for group in report["groups"]] for report in reports]
    assert widths[:2] == [[4, 4], [6, 5]]
    assert 0.4 < reports[2]["pruned"]["macs"] / reports[2]["original"]["macs"] <= 0.6
    for name, kept in kept_units(reports[0]).items():
        assert set(kept) < set(kept_units(reports[1])[name])
    for group in reports[3]["groups"]:
        assert group["kept"] == [u for u, value in enumerate(group["importance"]) if value > 0.5]


def test_scores_that_differ_in_the_eighth_digit_rank_alike_in_the_file(dense_work: Path) -> None:
    b = Builder(["N", 1])
    weight = np.array([[1.0], [1.0 + 3e-7], [1.0 + 6e-7], [1.0 + 1e-6]], np.float32)
    write(dense_work, b.finish(b.gemm(b.add("Relu", b.add("Gemm", "x", b.constant(weight), transB=1)), 4, 3)))
    arguments = ["--importance", "magnitude"]
    assert oamip(*SCORE, *arguments, "--out", "scores.json", cwd=dense_work).code == 0
    kept = kept_units(found(oamip(*PRUNE, "--scores", "scores.json", "--json", "-", cwd=dense_work)))
    assert kept == kept_units(found(oamip(*PRUNE, *arguments, "--json", "-", cwd=dense_work))) == {"t0": [2, 3]}


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
def test_score_file_that_is_not_usable_is_refused(dense_work: Path, change: Callable[[str], str], message: str) -> None:
    assert oamip(*SCORE, "--importance", "magnitude", "--out", "scores.json", cwd=dense_work).code == 0
    (dense_work / "scores.json").write_text(change((dense_work / "scores.json").read_text()))
    refused([*PRUNE, "--scores", "scores.json", "--json", "result.json"], 3, message, dense_work)


def test_scores_of_another_model_or_no_scores_are_refused(dense_work: Path) -> None:
    write(dense_work, dense(widths=(6, 7)), "other.onnx")
    other = ["score", "other.onnx", "--data", "data.npz", "--importance", "magnitude", "--out", "other.json"]
    assert oamip(*other, cwd=dense_work).code == 0
    refused([*PRUNE, "--scores", "other.json"], 3, "hold 6 units for the group 't0' of 8 units", dense_work)
    refused([*PRUNE, "--scores", "none.json"], 3, "'none.json' cannot be read: No such file", dense_work)
    refused([*PRUNE, "--scores", "."], 3, "'.' cannot be read: Is a directory", dense_work)
    refused([*PRUNE, "--scores", "data.npz"], 3, "'data.npz' holds no scores", dense_work)


# A front


@pytest.mark.parametrize("form", ["response", "layerwise", "shift"])
def test_front_goes_from_small_to_accurate(dense_work: Path, form: str) -> None:
    ran = oamip(*SCORE, "--form", form, "--path", 5, "--out", "front.json", cwd=dense_work)
    assert ran.code == 0, ran.err
    points = json.loads((dense_work / "front.json").read_text())["points"]
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
def test_expected_loss_of_a_front_falls_with_its_weight(dense_work: Path, settings: list[str]) -> None:
    """A smaller expected loss at a smaller λ would contradict the optimality of one of both solutions."""
    points = found(oamip(*SCORE, *settings, "--path", 5, "--json", "-", cwd=dense_work))["points"]
    expected = np.array([point["program_loss"] for point in points])
    assert (np.diff(expected) < 1e-4).all()
    assert expected[0] > expected[-1]


def test_front_is_drawn_beside_the_file_and_repeats(dense_work: Path) -> None:
    pictures = []
    for name in ("front", "again"):
        assert oamip(*SCORE, "--form", "shift", "--path", 2, "--out", f"{name}.json", cwd=dense_work).code == 0
        pictures.append((dense_work / f"{name}.svg").read_text(encoding="utf-8"))
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
def test_paths_and_subnetworks_that_make_no_sense(dense_work: Path, arguments: list[Any], message: str) -> None:
    refused([*SCORE, "--out", "found.json", *arguments], 2, message, dense_work)


def test_plots_without_matplotlib_say_what_to_install(dense_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        MissingExtraError, match=r"needs matplotlib; install it with: pip install 'oamip-onnx\[report\]'"
    ):
        require_plots()
    refused([*SCORE, "--path", 2, "--out", "front.json"], 3, "pip install 'oamip-onnx[report]'", dense_work)
    # Without a file there is nothing to draw.
    assert oamip(*SCORE, "--form", "shift", "--path", 2, cwd=dense_work).code == 0


# Several subnetworks


def test_subnetworks_are_distinct_and_each_can_be_used(dense_work: Path) -> None:
    arguments = [*SCORE, "--form", "response", "--set", "images=10", "--subnetworks", 3, "--out", "s.json"]
    report = found(oamip(*arguments, "--json", "-", cwd=dense_work))
    assert report == json.loads((dense_work / "s.json").read_text())
    networks = report["subnetworks"]
    assert [one["file"] for one in networks] == ["s-1.json", "s-2.json", "s-3.json"]
    assert len({json.dumps(one["kept"], sort_keys=True) for one in networks}) == 3
    assert networks[0]["overlap"] == 1
    assert all(0 < one["overlap"] < 1 for one in networks[1:])
    assert report["notes"] == []
    for one in networks:
        pruned = found(oamip(*PRUNE, "--scores", one["file"], "--json", "-", cwd=dense_work))
        assert kept_units(pruned) == one["kept"]
        assert {name: len(kept) for name, kept in one["kept"].items()} == {"t0": 4, "t2": 4}
        assert one["measured_loss"] > 0
    first = set(networks[0]["kept"]["t0"]) & set(networks[1]["kept"]["t0"])
    second = set(networks[0]["kept"]["t2"]) & set(networks[1]["kept"]["t2"])
    assert networks[1]["overlap"] == pytest.approx((len(first) + len(second)) / 8)


def test_fewer_subnetworks_than_asked_for_are_said(dense_work: Path) -> None:
    ran = oamip(*SCORE, "--importance", "magnitude", "--subnetworks", 3, "--out", "s.json", cwd=dense_work)
    assert ran.code == 0
    assert "give 1 distinct" in ran.err
    assert len(json.loads((dense_work / "s.json").read_text())["subnetworks"]) == 1
    assert sorted(path.name for path in dense_work.glob("s*.json")) == ["s-1.json", "s.json"]
