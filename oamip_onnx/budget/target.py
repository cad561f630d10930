"""What the user wants the model to shrink to."""

from dataclasses import dataclass

from oamip_onnx.errors import UsageError, closest

KINDS = ("ratio", "macs", "params")


@dataclass(frozen=True)
class Target:
    """A target such as ``ratio=0.5``.

    Attributes
    ----------
    kind
        ``ratio``: the share of the units of every group to remove; ``macs`` or ``params``: the share of the model's
        multiply-accumulate operations or parameters that may be left.
    value
        The share, between 0 and 1.
    """

    kind: str
    value: float

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


def parse_target(text: str) -> Target:
    """Return the target that a text such as ``ratio=0.5`` names.

    Raises
    ------
    UsageError
        If the kind is unknown, or the value no number in its range.
    """
    kind, separator, value_text = text.partition("=")
    kind = kind.strip()
    if not separator:
        raise UsageError(f"The target {text!r} has no value; write for example ratio=0.5.")
    if kind not in KINDS:
        raise UsageError(f"The target {kind!r} is unknown{closest(kind, KINDS)}; known: {', '.join(KINDS)}.")
    try:
        value = float(value_text)
    except ValueError as error:
        raise UsageError(f"The target {text!r} needs a number after '='.") from error
    # A ratio is what goes, so 0 changes nothing; the others are what is left, so 1 changes nothing.
    valid = 0 <= value < 1 if kind == "ratio" else 0 < value <= 1
    if not valid:
        bounds = "0 ≤ ratio < 1 (the share to remove)" if kind == "ratio" else f"0 < {kind} ≤ 1 (the share left)"
        raise UsageError(f"The target {text!r} is out of range; it must hold {bounds}.")
    return Target(kind, value)
