"""The distance between what two models compute."""

import numpy as np

from oamip_onnx.errors import VerificationError
from oamip_onnx.model import Array


def difference(name: str, expected: Array, got: Array) -> tuple[float, float]:
    """Return the largest absolute difference, and that relative to the largest expected value.

    Integers and booleans count by the share of elements that differ.

    Raises
    ------
    VerificationError
        If shape or dtype differ, or a value is finite in one of them only.
    """
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise VerificationError(
            f"The output {name!r} of the cut model has shape {got.shape} and dtype {got.dtype}; "
            f"the masked model has {expected.shape} and {expected.dtype}. Nothing was written; please report this."
        )
    if expected.size == 0:
        return 0.0, 0.0
    if expected.dtype.kind not in "fcV":
        differ = float((expected != got).mean())
        return differ, differ
    wanted, found = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(found)):
        raise VerificationError(f"The output {name!r} is finite in one of the models only; nothing was written.")
    if not bool(finite.any()):
        return 0.0, 0.0
    absolute = float(np.abs(wanted - found)[finite].max())
    scale = float(np.abs(wanted[finite]).max())
    return absolute, absolute / scale if scale > 0 else absolute
