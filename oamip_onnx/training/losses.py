"""What training makes small: the distance to labels, to the original's outputs, to its inner tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from oamip_onnx.training.operators.table import Tensor

# Keeps a relative error of a tensor that is zero throughout finite.
_TINY = 1e-12


def distillation_loss(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence from the original's classes, times the squared temperature.

    Parameters
    ----------
    logits, wanted
        Logits of the trained and of the original model, (samples, classes).
    temperature
        What both are divided by; its square keeps gradients at the size that those of labels have.
    """
    found, target = (functional.log_softmax(values / temperature, -1) for values in (logits, wanted))
    return functional.kl_div(found, target, reduction="batchmean", log_target=True) * temperature**2


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error relative to the energy of what is wanted."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(_TINY)


@dataclass(frozen=True)
class Objective:
    """The loss of a batch, and the tensors that it is taken of.

    Attributes
    ----------
    logits
        The tensor of logits; None where the outputs are no classes.
    outputs
        What is compared with the original where there are no logits.
    layers
        Inner tensors that are compared with the original's.
    label_share
        Weight of the labels; the rest is that of distillation. 0 where there are no labels, 1 where no original.
    temperature
        Of distillation.
    """

    logits: str | None
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    label_share: float
    temperature: float

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the trained model that the loss reads."""
        return tuple(dict.fromkeys([*(self.outputs if self.logits is None else (self.logits,)), *self.layers]))

    @property
    def main(self) -> str:
        """The tensor that the metric is taken of."""
        return self.outputs[0] if self.logits is None else self.logits

    def __call__(self, found: Mapping[str, Tensor], labels: Tensor | None, wanted: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of a batch.

        Parameters
        ----------
        found, wanted
            Tensors of the trained model, and of the original, by name.
        labels
            Class of each sample; None where the loss reads none.
        """
        parts = []
        if self.label_share > 0 and self.logits is not None:
            parts.append(self.label_share * functional.cross_entropy(found[self.logits].float(), labels))
        if self.label_share < 1:
            parts.append((1 - self.label_share) * self._distance(found, wanted))
        if self.layers:
            parts.append(_mean([relative_error(found[name].float(), wanted[name]) for name in self.layers]))
        return torch.stack(parts).sum()

    def _distance(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        if self.logits is not None:
            return distillation_loss(found[self.logits].float(), wanted[self.logits], self.temperature)
        return _mean([relative_error(found[name].float(), wanted[name]) for name in self.outputs])


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean()


def hits(found: Tensor, labels: Tensor | None, wanted: Tensor | None) -> float:
    """Return the sum over the samples of a batch of what the metric averages.

    With labels, whether the largest output is the label; with the original's logits, whether both have the same
    largest; of other outputs, the cosine similarity to the original's.

    Parameters
    ----------
    found, wanted
        An output of the trained and of the original model, one row a sample.
    labels
        Class of each sample, if known.
    """
    if labels is not None:
        return float((found.argmax(-1) == labels).sum().item())
    if wanted is None:
        raise ValueError("A metric needs labels or the original's outputs.")
    if found.dim() == 2 and found.shape[1] > 1:
        return float((found.argmax(-1) == wanted.argmax(-1)).sum().item())
    return float(functional.cosine_similarity(found.flatten(1), wanted.flatten(1)).sum().item())
