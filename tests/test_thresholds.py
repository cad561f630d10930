"""The paper's preset and thresholds on scores."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from command import oamip
from graphs import image
from hypothesis import given
from hypothesis import strategies as st
from scored import (
    PRUNE,
    SCORE,
    convolutional,
    dense,
    found,
    kept_units,
    ready,
    refused,
    scores_of,
    with_few_useful_units,
    write,
)

from oamip_onnx.budget import paper_threshold, widths_above
from oamip_onnx.channels import ChannelAnalysis, ChannelGroup, select_units
from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.importance import Scores
from oamip_onnx.model import load_model
from oamip_onnx.scoring import plan_for

FloatArray = npt.NDArray[np.float64]


def test_paper_preset_keeps_the_units_that_matter(dense_work: Path) -> None:
    write(dense_work, with_few_useful_units())
    report = found(oamip(*PRUNE, "--preset", "paper", "--json", "-", cwd=dense_work))
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


def test_settings_override_the_preset(dense_work: Path) -> None:
    arguments = [*PRUNE, "--preset", "paper", "--json", "-"]
    report = found(oamip(*arguments, "--target", "threshold=0.2", "--set", "images=6", cwd=dense_work))
    assert (report["config"]["target"], report["config"]["images"]) == ("threshold=0.2", 6)
    for group in report["groups"]:
        assert group["kept"] == [u for u, value in enumerate(group["importance"]) if value > 0.2]
    ratio = found(oamip(*arguments, "--target", "ratio=0.5", cwd=dense_work))
    assert [group["after"] for group in ratio["groups"]] == [4, 4]


def test_threshold_takes_one_program_in_the_response_form(dense_work: Path) -> None:
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
            cwd=dense_work,
        )
    )
    assert len(report["solver"]) == 1
    assert any("one program with λ = 10" in note for note in report["notes"])
    for group in report["groups"]:
        assert group["kept"] == [u for u, value in enumerate(group["importance"]) if value > 0.5]
        assert 0 < group["after"] < group["before"]


@pytest.mark.parametrize("target", ["threshold=0.1", "threshold=auto"])
def test_threshold_needs_scores_of_oamip(dense_work: Path, target: str) -> None:
    message = f"The target {target} compares OAMIP's scores; the importance magnitude needs"
    refused([*PRUNE, "--importance", "magnitude", "--target", target], 2, message, dense_work)
    assert oamip(*SCORE, "--importance", "magnitude", "--out", "scores.json", cwd=dense_work).code == 0
    refused([*PRUNE, "--scores", "scores.json", "--target", target], 2, message, dense_work)


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


def test_a_preset_ranks_over_a_file_and_under_the_command_line(dense_work: Path) -> None:
    assert oamip(*PRUNE, "--importance", "magnitude", "--save-config", "saved.toml", cwd=dense_work).code == 0
    report = found(oamip(*PRUNE, "--config", "saved.toml", "--preset", "paper", "--json", "-", cwd=dense_work))
    assert report["importance"] == "oamip (shift)"
    assert report["config"]["target"] == "threshold=auto"
    plain = make_config(PruneConfig().model_dump(), {"preset": "paper"})
    assert (plain.form, plain.images) == ("shift", 10)
    assert PruneConfig(preset="paper", images=6) == make_config({"preset": "paper", "images": 6})
