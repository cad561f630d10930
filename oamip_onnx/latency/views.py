"""What kernels see of a width: they fill up blocks of channels, and take other ways where a width does not fit.

ONNX Runtime's convolutions keep channels in blocks. They take any number of channels below a block, and multiples of 4
above; other widths go to slower kernels. What stands between convolutions takes whole blocks only.
"""

from collections.abc import Set as AbstractSet

import numpy as np
import numpy.typing as npt

from oamip_onnx.budget.counting import WidthPolynomial
from oamip_onnx.budget.problem import Pair

FloatArray = npt.NDArray[np.float64]

_QUANTUM = 4

RAW, BLOCKS, FITTING, FITTING_BLOCKS, WHOLE, IS_WHOLE = range(6)
VIEW_COUNT = 6


def view_widths(widths: npt.ArrayLike, block: int) -> FloatArray:
    """Return the views of widths, those of each width one after the other: shape (…, widths · `VIEW_COUNT`).

    Parameters
    ----------
    widths
        The widths, shape (…, widths).
    block
        The vector block of the CPU.

    Returns
    -------
    array
        By width: itself; in whole blocks, the last one filled up; both again, but 0 where the width does not fit; the
        width, and 1, where it is a multiple of the block, and 0 elsewhere.
    """
    raw = np.asarray(widths, np.float64)
    blocks = np.ceil(raw / block) * block
    fits = (raw % _QUANTUM == 0) | (raw < block)
    whole = raw % block == 0
    views = [raw, blocks, raw * fits, blocks * fits, raw * whole, whole.astype(np.float64)]
    return np.stack(views, axis=-1).reshape(*raw.shape[:-1], -1)


def through(
    cost: WidthPolynomial, view: int, output_view: int | None = None, inputs: AbstractSet[int] = frozenset()
) -> WidthPolynomial:
    """Return a cost as a function of views of the widths, in place of the widths.

    Parameters
    ----------
    cost
        The cost.
    view
        The view of every width; only of those in `inputs` where there is another view.
    output_view
        The view of the other widths, and of the second factor of a product of two in `inputs`.
    inputs
        Positions of the groups that a node reads.
    """
    other = view if output_view is None else output_view
    linear = {g * VIEW_COUNT + (view if g in inputs else other): c for g, c in cost.linear.items()}
    products: dict[Pair, float] = {}
    for (g, h), c in cost.products.items():
        read, made = (h, g) if h in inputs and g not in inputs else (g, h)
        pair = _pair(read * VIEW_COUNT + view, made * VIEW_COUNT + other)
        products[pair] = products.get(pair, 0.0) + c
    return WidthPolynomial(cost.constant, linear, products)


def all_whole(cost: WidthPolynomial) -> WidthPolynomial:
    """Return the part of a cost that is left where all widths are multiples of the block: exact for up to two groups.

    With more of them, each group's part needs its own width and the next group's to be such multiples.
    """
    groups = sorted(cost.linear)
    if len(groups) < 2 or cost.products:
        return through(cost, WHOLE)
    following = [*groups[1:], groups[0]]
    products = {
        _pair(g * VIEW_COUNT + WHOLE, h * VIEW_COUNT + IS_WHOLE): cost.linear[g]
        for g, h in zip(groups, following, strict=True)
    }
    return WidthPolynomial(cost.constant, products=products)


def _pair(first: int, second: int) -> Pair:
    return min(first, second), max(first, second)
