"""What a user may set about fine-tuning, validated."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oamip_onnx.errors import UsageError, closest

LossName = Literal["auto", "labels", "distillation", "both", "layers"]
Optimiser = Literal["adamw", "sgd"]
BatchNorm = Literal["frozen", "train", "re-estimate"]
Device = Literal["auto", "cpu", "cuda"]

# Largest learning rates of the cycle where none is given.
_RATES: dict[Optimiser, float] = {"adamw": 1e-3, "sgd": 1e-2}


class FinetuneSettings(BaseModel):
    """Settings of `finetune`.

    Attributes
    ----------
    epochs
        Passes over the training samples; 0 trains nothing.
    learning_rate
        Largest learning rate of the cycle; by default 0.001 for ``adamw`` and 0.01 for ``sgd``.
    batch_size
        Samples a step; a model that fixes its batch takes that many.
    loss
        ``labels``: cross-entropy; ``distillation``: distance to the original's outputs; ``both``; ``layers``:
        distillation, and the distance of inner tensors that both models have; ``auto``: what labels and original
        allow.
    optimiser
        ``adamw``, or ``sgd`` with momentum.
    weight_decay
        Decay of weights with two or more axes.
    batch_norm
        Statistics of batch normalisations: ``frozen``; moved by every batch (``train``); or taken anew before each
        evaluation (``re-estimate``).
    held_out
        Share of the samples that is not trained on and decides which weights are returned.
    patience
        Epochs without an improvement on the held-out samples after which training stops.
    temperature
        Of distillation: logits are divided by it.
    label_share
        Weight of the labels in ``both``.
    clip_norm
        Largest norm of the gradient; longer ones are shortened to it.
    freeze
        Globs of weights that stay as they are.
    samples
        Use at most this many samples.
    seed
        Seed of the split and of the order of samples.
    device
        ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
    mixed_precision
        Whether a GPU computes in bfloat16 what loses nothing by it.
    threads
        Threads of PyTorch and of ONNX Runtime on the CPU; 0 for their own choice.
    memory_limit
        Bytes that the original's outputs may take in memory; above, it runs anew for every batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=5, ge=0)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=64, ge=1)
    loss: LossName = "auto"
    optimiser: Optimiser = "adamw"
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    batch_norm: BatchNorm = "frozen"
    held_out: float = Field(default=0.1, gt=0, lt=1)
    patience: int = Field(default=5, ge=1)
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    label_share: float = Field(default=0.5, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)
    freeze: tuple[str, ...] = ()
    samples: int | None = Field(default=None, ge=2)
    seed: int = Field(default=0, ge=0)
    device: Device = "auto"
    mixed_precision: bool = True
    threads: int = Field(default=0, ge=0)
    memory_limit: int = Field(default=1 << 30, ge=0)

    @property
    def largest_rate(self) -> float:
        """The largest learning rate of the cycle."""
        return _RATES[self.optimiser] if self.learning_rate is None else self.learning_rate


def make_finetune_settings(*layers: Mapping[str, Any]) -> FinetuneSettings:
    """Return the settings of several layers, later ones first in rank.

    Raises
    ------
    UsageError
        On an unknown name, with the closest known one, or a value that is not allowed.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            name = key.replace("-", "_")
            if name not in FinetuneSettings.model_fields:
                raise UsageError(f"There is no setting {key!r}{closest(name, FinetuneSettings.model_fields)}.")
            merged[name] = value
    try:
        return FinetuneSettings(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = first["msg"]
        raise UsageError(f"The setting {name!r} does not take {first['input']!r}: {reason}.") from error


# Settings with an option of their own; --set takes the others.
_OPTIONS = frozenset("batch_norm batch_size device epochs held_out learning_rate loss optimiser patience seed".split())

# What changes roundings alone, or where something is kept.
_NOT_SHAPING = frozenset({"device", "memory_limit", "threads"})


def shaping_options(settings: FinetuneSettings) -> list[str]:
    """Return the settings that shape the result and are not the usual ones, as on the command line."""
    told = []
    for name, field in FinetuneSettings.model_fields.items():
        value = getattr(settings, name)
        if value == field.default or name in _NOT_SHAPING:
            continue
        if name in _OPTIONS:
            told += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
        else:
            told += ["--set", f"{name}={json.dumps(value)}"]
    return told
