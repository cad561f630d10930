"""Resize, Upsample and GridSample: elements between elements."""

import math

import torch
from torch.nn import functional

from oamip_onnx.errors import UnsupportedOperatorError
from oamip_onnx.training.operators.table import Function, Operation, Tensor, numbers, operator

_NEAREST = {
    "round_prefer_floor": lambda place: torch.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: torch.floor(place + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


@operator("Resize", sizes=(1, 2, 3))
def resize(operation: Operation) -> Function:
    """Resize, one axis after the other: nearest, linear or cubic, at any of ONNX's coordinates."""
    operation.refuse(
        antialias=(0,),
        exclude_outside=(0,),
        keep_aspect_ratio_policy=("stretch",),
        coordinate_transformation_mode=(
            "half_pixel",
            "asymmetric",
            "align_corners",
            "pytorch_half_pixel",
            "half_pixel_symmetric",
        ),
    )
    resample = _Resample(operation)
    own_axes = operation.get("axes")

    def run(x: Tensor, roi: Tensor = None, scales: Tensor = None, sizes: Tensor = None) -> Tensor:
        if operation.opset < 11:
            roi, scales = None, roi  # the scales stood second
        factors, wanted = (None if t is None or not t.numel() else numbers(t) for t in (scales, sizes))
        axes = range(x.dim()) if own_axes is None else own_axes
        for k, axis in enumerate(axes):
            size = x.shape[axis]
            out = math.floor(size * factors[k]) if wanted is None and factors else (wanted or [])[k]
            x = resample(x, axis, out, factors[k] if wanted is None and factors else out / size)
        return x

    return run


@operator("Upsample", sizes=(1,))
def upsample(operation: Operation) -> Function:
    """Upsample of older opsets."""
    resample, own = _Resample(operation, "asymmetric", "floor"), operation.get("scales")

    def run(x: Tensor, scales: Tensor = None) -> Tensor:
        for axis, factor in enumerate(own if scales is None else numbers(scales)):
            x = resample(x, axis, math.floor(x.shape[axis] * factor), factor)
        return x

    return run


class _Resample:
    """What the elements of one axis become at another size."""

    def __init__(self, operation: Operation, coordinates: str | None = None, rounding: str | None = None) -> None:
        asymmetric = operation.opset < 11
        self.mode = operation.get("mode", "nearest")
        self.coordinates = coordinates or operation.get(
            "coordinate_transformation_mode", "asymmetric" if asymmetric else "half_pixel"
        )
        self.round = _NEAREST[
            rounding or operation.get("nearest_mode", "floor" if asymmetric else "round_prefer_floor")
        ]
        self.cubic = operation.get("cubic_coeff_a", -0.75)

    def __call__(self, x: Tensor, axis: int, out: int, scale: float) -> Tensor:
        size = x.shape[axis]
        if out == size and scale == 1:
            return x
        place = self._places(size, out, scale)
        if self.mode == "nearest":
            return x.index_select(axis, self.round(place).clamp(0, size - 1).long().to(x.device))
        first = torch.floor(place)
        share = place - first
        taps = [(0, 1 - share), (1, share)] if self.mode == "linear" else self._cubic(share)
        shape = [-1 if k == axis else 1 for k in range(x.dim())]
        total = None
        for offset, weight in taps:
            rows = (first + offset).clamp(0, size - 1).long().to(x.device)
            part = x.index_select(axis, rows) * weight.to(x.device, x.dtype).reshape(shape)
            total = part if total is None else total + part
        return total

    def _places(self, size: int, out: int, scale: float) -> Tensor:
        """Return where each element of the result lies among those of the input."""
        index = torch.arange(out, dtype=torch.float64)
        if self.coordinates == "asymmetric":
            return index / scale
        if self.coordinates == "align_corners":
            return index * ((size - 1) / (out - 1)) if out > 1 else torch.zeros_like(index)
        if self.coordinates == "pytorch_half_pixel" and out == 1:
            return torch.zeros_like(index)
        place = (index + 0.5) / scale - 0.5
        if self.coordinates == "half_pixel_symmetric":
            place = place + size / 2 * (1 - out / (scale * size))
        return place

    def _cubic(self, share: Tensor) -> list[tuple[int, Tensor]]:
        """Return the four neighbours with their weights."""
        a = self.cubic

        def near(t: Tensor) -> Tensor:
            return ((a + 2) * t - (a + 3)) * t * t + 1

        def far(t: Tensor) -> Tensor:
            return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

        return [(-1, far(share + 1)), (0, near(share)), (1, near(1 - share)), (2, far(2 - share))]


@operator("GridSample")
def grid_sample(operation: Operation) -> Function:
    """GridSample."""
    modes = {
        "linear": "bilinear",
        "bilinear": "bilinear",
        "nearest": "nearest",
        "cubic": "bicubic",
        "bicubic": "bicubic",
    }
    mode = modes.get(operation.get("mode", "linear"))
    if mode is None:
        raise UnsupportedOperatorError(f"GridSample with mode = {operation.get('mode')}")
    padding, corners = operation.get("padding_mode", "zeros"), bool(operation.get("align_corners", 0))
    return lambda x, grid: functional.grid_sample(x, grid, mode, padding, corners)
