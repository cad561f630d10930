"""What settings may be, by name: shared by the settings themselves and by what reads them."""

from typing import Literal

Importance = Literal[
    "auto",
    "oamip",
    "reconstruction",
    "magnitude",
    "activation",
    "removal",
    "random",
    "taylor",
    "fisher",
    "snip",
]
Preset = Literal["default", "paper"]
Form = Literal["auto", "response", "layerwise", "shift", "gate"]
Decoupling = Literal["none", "mean", "max"]
Head = Literal["linear", "hidden", "pooled"]
Widths = Literal["auto", "uniform", "program"]
RepairName = Literal["least-squares", "bias", "batch-norm", "none"]

Deployment = Literal["here", "cpu-avx2", "cpu-avx512", "arm", "openvino", "cuda", "tensorrt"]

# The multiple of widths that pays where a model is deployed, from the blocks of channels that its kernels work on.
ALIGNMENTS: dict[str, int] = {
    "cpu-avx2": 8,  # floats of a vector; ONNX Runtime's blocked convolutions keep as many channels together
    "cpu-avx512": 16,  # as above
    "arm": 8,  # two vectors of NEON in float32, one in float16
    "openvino": 16,  # its convolutions on a CPU (oneDNN) block channels by 16 with AVX-512, by 8 without
    "cuda": 8,  # float16 values in the 16 bytes that Tensor Cores load at a time
    "tensorrt": 16,  # int8 values in the same 16 bytes
}

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
