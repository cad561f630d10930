"""Criteria by gradients say what finite differences of the masked model in ONNX Runtime say."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import FAST, failed, oamip
from graphs import GRAPHS, Builder

from oamip_onnx.config import make_config
from oamip_onnx.errors import DataError, MissingExtraError
from oamip_onnx.importance import ImportanceContext, score
from oamip_onnx.masking import MaskedSession
from oamip_onnx.preparation import prepare
from oamip_onnx.scoring import importance_context

NAMES = ("taylor", "fisher", "snip")


@pytest.fixture
def torch() -> None:
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'oamip-onnx[torch]'")


def context_of(folder: Path, *, labels: bool = True) -> ImportanceContext:
    with np.load(folder / "data.npz") as data:
        feeds = {"x": data["x"]} | ({"labels": data["labels"]} if labels else {})
    config = make_config({"threads": 1, "samples": 12})
    prepared = prepare(folder / "model.onnx", feeds, config)
    return importance_context(prepared, config, None)


def losses(context: ImportanceContext, mask: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of each sample under a mask, by ONNX Runtime."""
    session = MaskedSession(context.model, context.analysis, context.options, [context.logits])
    logits = session.run(dict(context.samples.feeds), mask)[context.logits].astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(classes)), classes]


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("classes", ["labels", "predicted"])
def test_taylor_and_fisher_are_differences_of_the_masked_model(work: Path, classes: str) -> None:
    context = context_of(work, labels=classes == "labels")
    own = context.samples.labels
    wanted = context.outputs.argmax(1) if own is None else own
    # Central differences in float32: rounding adds 1e-7 / h, and ReLUs whose kink lies within the step up to order h.
    step, count = 2e-3, context.analysis.unit_count
    slopes = np.zeros((len(wanted), count))
    for unit in range(count):
        up, down = (np.ones(count) + sign * step * (np.arange(count) == unit) for sign in (1, -1))
        slopes[:, unit] = (losses(context, up, wanted) - losses(context, down, wanted)) / (2 * step)
    scale = np.abs(slopes).max()
    np.testing.assert_allclose(score("taylor", context).values, np.abs(slopes.mean(0)), atol=4e-3 * scale)
    np.testing.assert_allclose(score("fisher", context).values, (slopes**2).mean(0), atol=8e-3 * scale**2)


@pytest.mark.usefixtures("torch")
def test_snip_is_the_sensitivity_of_the_weights_that_produce_a_unit(tmp_path: Path) -> None:
    builder = Builder(["N", 6])
    hidden = builder.add("Relu", builder.gemm("x", 6, 4))
    onnx.save(builder.finish(builder.gemm(hidden, 4, 3)), tmp_path / "model.onnx")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(12, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=generator.integers(0, 3, 12))
    context = context_of(tmp_path)
    weights = [onnx.numpy_helper.to_array(t).astype(np.float64) for t in context.model.graph.initializer]
    (first,) = (w for w in weights if w.ndim == 2 and 6 in w.shape)
    (second,) = (w for w in weights if w.ndim == 2 and 6 not in w.shape)
    first, second = (first if first.shape[0] == 6 else first.T), (second if second.shape[0] == 4 else second.T)
    biases = {w.size: w for w in weights if w.ndim == 1}
    before = x @ first + biases.get(4, 0.0)
    logits = np.maximum(before, 0) @ second + biases.get(3, 0.0)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = ((probabilities - np.eye(3)[context.samples.labels]) @ second.T) * (before > 0)
    wanted = np.abs(first * (x.T.astype(np.float64) @ slope / 12)).sum(0)
    np.testing.assert_allclose(score("snip", context).values, wanted, rtol=1e-4)


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_pruned_by_gradients(work: Path, name: str) -> None:
    ran = oamip("prune", "model.onnx", "out.onnx", "--data", "data.npz", "--no-bench", "--importance", name, cwd=work)
    assert ran.code == 0, ran.err
    assert f"Importance {name}" in ran.out


@pytest.mark.usefixtures("torch")
def test_outputs_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    builder = Builder(["N", 3, 8, 8])
    hidden = builder.add("Relu", builder.conv("x", 3, 8))
    onnx.save(builder.finish(builder.conv(hidden, 8, 4)), tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    with pytest.raises(DataError, match="takes the cross-entropy of classes"):
        score("taylor", context_of(tmp_path, labels=False))


@pytest.mark.parametrize("name", NAMES)
def test_without_pytorch_the_extra_is_named(name: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    onnx.save(GRAPHS["residual"](), work / "model.onnx")
    with pytest.raises(MissingExtraError, match=r"pip install 'oamip-onnx\[torch\]'"):
        score(name, context_of(work))
    arguments = [*FAST[2:], "--importance", name]
    ran = oamip("prune", "model.onnx", "out.onnx", "--data", "data.npz", *arguments, cwd=work)
    failed(ran, 3, "needs the package torch", work)
