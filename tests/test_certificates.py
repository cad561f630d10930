"""Certificates: bounds that no subset of the units beats."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from command import oamip
from graphs import Builder
from oracle import PLAIN, analysed
from scipy.special import log_softmax, softmax
from scored import (
    PRUNE,
    dense,
    found,
    samples_of,
    scores_of,
    write,
)

from oamip_onnx.formulation import JointOptions, build_network, joint_program
from oamip_onnx.masking import MaskedSession
from oamip_onnx.solvers import ConicSolver

FloatArray = npt.NDArray[np.float64]


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


def test_report_carries_the_certificates(dense_work: Path) -> None:
    write(dense_work, tiny())
    arguments = [*PRUNE, "--set", "form=response", "--json", "-"]
    plain = found(oamip(*arguments, cwd=dense_work))
    assert [certificate["task"] for certificate in plain["certificates"]] == ["chosen subset"]
    asked = found(oamip(*arguments, "--set", "certificates=true", cwd=dense_work))
    assert [certificate["task"] for certificate in asked["certificates"]] == ["chosen subset", "t0", "t2"]
    for certificate in (*plain["certificates"], *asked["certificates"]):
        assert certificate["bound"] <= certificate["objective"]
        assert certificate["gap"] >= 0
        assert "than the bound" in certificate["statement"] or "below the bound" in certificate["statement"]
    nothing = found(oamip(*arguments, "--set", "certificates=true", "--target", "ratio=0", cwd=dense_work))
    assert [certificate["task"] for certificate in nothing["certificates"]] == ["chosen subset"]


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
