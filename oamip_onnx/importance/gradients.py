"""Gradients: how fast the loss rises as a unit, or its weights, shrink; in PyTorch (extra `torch`), for comparison.

With ℓ the cross-entropy to the labels, or to the classes that the original predicts where there are none, m the mask of
the units and w the weights,

* ``taylor``: |mean ∂ℓ/∂m| at m = 1, the first-order change of the loss as the unit goes (Molchanov et al. 2019;
  since the mask stands before the weights that read a unit, it is the sum of their w · ∂ℓ/∂w);
* ``fisher``: mean (∂ℓᵢ/∂m)² over the samples i (Theis et al. 2018, Liu et al. 2021);
* ``snip``: Σ |w · ∂ℓ/∂w| over the weights that produce the unit (Lee et al. 2019, summed over a unit); it was made for
  weights before training.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import BATCH_SIZE
from oamip_onnx.errors import DataError
from oamip_onnx.importance.measuring import IMAGES
from oamip_onnx.importance.protocol import ImportanceContext, criterion
from oamip_onnx.importance.scores import FloatArray, Scores
from oamip_onnx.importance.weights import leaving_axes, weight_energy
from oamip_onnx.masking import MASK_INPUT, masked_proto
from oamip_onnx.model import Array
from oamip_onnx.training import require_torch


@criterion("taylor")
def taylor(context: ImportanceContext) -> Scores:
    """Return |mean ∂ℓ/∂m| of every unit, over all samples.

    Raises
    ------
    DataError, MissingExtraError, ModelError
        If the outputs are no classes, PyTorch is missing, or it cannot run an operator.
    """
    found = sum(_mask_gradients(context, BATCH_SIZE), np.zeros(context.analysis.unit_count))
    return Scores(np.abs(found) / context.samples.count, "taylor")


@criterion("fisher")
def fisher(context: ImportanceContext) -> Scores:
    """Return mean (∂ℓᵢ/∂m)² of every unit, over the first samples: 200, or as many as the settings name.

    Raises
    ------
    DataError, MissingExtraError, ModelError
        As `taylor` does.
    """
    total, count = np.zeros(context.analysis.unit_count), 0
    for gradient in _mask_gradients(context, 1, context.oamip.images or IMAGES):
        total, count = total + gradient**2, count + 1
    return Scores(total / max(count, 1), "fisher")


@criterion("snip")
def snip(context: ImportanceContext) -> Scores:
    """Return Σ |w · ∂ℓ/∂w| over the weights that produce each unit, over all samples.

    Raises
    ------
    DataError, MissingExtraError, ModelError
        As `taylor` does.
    """
    require_torch("The importance 'snip'")
    from oamip_onnx.training.interpreter import Network, gradients  # noqa: PLC0415 - needs PyTorch

    network = Network(context.model.proto, [context.logits])
    total: dict[str, FloatArray] = {}
    for feeds, classes in _batches(context, BATCH_SIZE):
        for name, gradient in gradients(network, feeds, _loss(context.logits, classes)).items():
            total[name] = total.get(name, np.zeros(gradient.shape)) + gradient.astype(np.float64)
    # The squares of these add up to what is wanted.
    weights = {name: context.model.array(name).astype(np.float64) for name in total}
    roots = {name: np.sqrt(np.abs(weights[name] * gradient)) for name, gradient in total.items()}
    return Scores(weight_energy(context, leaving_axes, roots.get) / context.samples.count, "snip")


def _mask_gradients(context: ImportanceContext, size: int, most: int | None = None) -> Iterator[FloatArray]:
    """Yield the gradient of the summed loss of each batch by the mask, at the full mask; shape (units,)."""
    require_torch("An importance by gradients")
    import torch  # noqa: PLC0415 - an extra

    from oamip_onnx.training.interpreter import Network  # noqa: PLC0415 - needs PyTorch

    network = Network(masked_proto(context.model, context.analysis), [context.logits])
    full = np.ones(context.analysis.unit_count, np.float32)
    seen = 0
    for feeds, classes in _batches(context, size):
        tensors = network.tensors({**feeds, MASK_INPUT: full})
        mask = tensors[MASK_INPUT].requires_grad_()
        (gradient,) = torch.autograd.grad(_loss(context.logits, classes)(network(tensors)), [mask])
        yield gradient.numpy().astype(np.float64)
        seen += len(classes)
        context.report("gradients", seen, min(most or context.samples.count, context.samples.count))
        if most is not None and seen >= most:
            return


def _batches(context: ImportanceContext, size: int) -> Iterator[tuple[Mapping[str, Array], npt.NDArray[np.int64]]]:
    """Yield batches of samples with their classes.

    Raises
    ------
    DataError
        If the outputs are no classes.
    """
    logits = context.outputs
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise DataError(
            f"An importance by gradients takes the cross-entropy of classes, but {context.logits!r} has the shape "
            f"({', '.join(map(str, logits.shape[1:]))}); choose another --importance."
        )
    labels = context.samples.labels
    classes = np.asarray(logits.argmax(axis=1) if labels is None else labels, np.int64)
    start = 0
    for feeds in context.samples.batches(size):
        count = len(next(iter(feeds.values())))
        yield feeds, classes[start : start + count]
        start += count


def _loss(logits: str, classes: npt.NDArray[np.int64]) -> Callable[[Mapping[str, Any]], Any]:
    """Return what makes the summed cross-entropy to classes of a network's outputs."""
    from torch import from_numpy  # noqa: PLC0415 - an extra
    from torch.nn.functional import cross_entropy  # noqa: PLC0415 - an extra

    target = from_numpy(classes)
    return lambda outputs: cross_entropy(outputs[logits], target, reduction="sum")
