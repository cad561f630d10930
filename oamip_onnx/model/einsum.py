"""The equation of an Einsum, with one letter an axis."""

import string
from collections.abc import Sequence

import onnx

from oamip_onnx.model.model import attribute


def einsum_terms(node: onnx.NodeProto, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the output, an ellipsis written out.

    Parameters
    ----------
    node
        The Einsum.
    ranks
        Number of axes of each operand.
    """
    text = str(attribute(node, "equation", "")).replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    free = [c for c in string.ascii_letters if c not in text]
    widths = [rank - len(term.replace("...", "")) for rank, term in zip(ranks, terms, strict=True)]
    dots = "".join(free[: max((w for w, t in zip(widths, terms, strict=True) if "..." in t), default=0)])
    if not arrow:
        letters = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        out = ("..." if "..." in left else "") + "".join(letters)
    written = [t.replace("...", dots[len(dots) - w :]) for t, w in zip(terms, widths, strict=True)]
    return written, out.replace("...", dots)
