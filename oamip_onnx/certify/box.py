"""Ranges of inputs as a user writes them."""

import math
from collections.abc import Sequence

from oamip_onnx.errors import UsageError, closest


def input_box(texts: Sequence[str], input_names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the smallest and the largest value by input, from ``0,1`` for all others or ``name=0,1`` for one.

    Raises
    ------
    UsageError
        If a text is no range of two finite numbers in order, an input does not exist, or one has no range.
    """
    lower: dict[str, float] = {}
    upper: dict[str, float] = {}
    for text in sorted(texts, key=lambda text: "=" in text):  # named ones last: they override
        name, separator, numbers = text.rpartition("=")
        try:
            low, high = (float(part) for part in numbers.split(","))
        except ValueError as error:
            raise UsageError(f"The input range {text!r} is not of the form 0,1 or name=0,1.") from error
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UsageError(f"The input range {text!r} must have finite ends: proofs hold over a bounded box.")
        if low > high:
            raise UsageError(f"The input range {text!r} is empty; write the smaller number first.")
        if separator and name not in input_names:
            raise UsageError(f"There is no input {name!r} to give a range to{closest(name, input_names)}.")
        for target in [name] if separator else input_names:
            lower[target], upper[target] = low, high
    missing = [name for name in input_names if name not in lower]
    if missing:
        raise UsageError(
            f"Lossless removal needs the range of the input {missing[0]!r}; give for example --input-range "
            f"{missing[0]}=0,1, or --input-range 0,1 for all."
        )
    return lower, upper
