"""What settings may be, by name: shared by the settings themselves and by what reads them."""

from typing import Literal

Importance = Literal["auto", "oamip", "reconstruction", "magnitude", "activation", "removal", "random"]
Preset = Literal["default", "paper"]
Form = Literal["auto", "response", "layerwise", "shift", "gate"]
Decoupling = Literal["none", "mean", "max"]
Head = Literal["linear", "hidden", "pooled"]
Widths = Literal["auto", "uniform", "program"]
RepairName = Literal["least-squares", "bias", "batch-norm", "none"]

# Units of sizes, in bytes.
SIZES: dict[str, int] = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}

# The weight λ of the loss in the paper.
PAPER_LOSS_WEIGHT = 5.0
