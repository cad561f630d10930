"""Costs as functions of the widths: polynomials of degree two, found from exact counts at a few widths.

A contraction multiplies and accumulates once for every output and every input that it reads, and the sizes of both are
linear in the widths of groups; the elements of a tensor are products of such sizes too. So a cost is

    constant + Σ linear[g] · w[g] + Σ products[g, h] · w[g] · w[h],

whose coefficients differences of counts give: one width at a time, then two. Costs of a higher degree (heads and the
width of heads both narrower) are met at the widths that were counted, and nearly elsewhere.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
from onnx import helper

from oamip_onnx.budget.problem import Budget, Pair
from oamip_onnx.budget.widths import first_units
from oamip_onnx.channels import FIXED, ChannelAnalysis, ChannelGroup, kept_shape
from oamip_onnx.model import Model, TensorType, count_costs, node_macs

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

Count = Callable[[Mapping[str, TensorType]], float]
"""Returns a cost from the types of tensors."""


@dataclass(frozen=True)
class WidthPolynomial:
    """A cost as a function of the widths of all groups, which are numbered by their position.

    Attributes
    ----------
    constant
        What no width changes.
    linear
        Coefficient of the width of each group that adds something.
    products
        Coefficient of the product of the widths of two groups g ≤ h.
    """

    constant: float = 0.0
    linear: Mapping[int, float] = field(default_factory=dict)
    products: Mapping[Pair, float] = field(default_factory=dict)

    def __call__(self, widths: Sequence[float]) -> float:
        """Return the cost at one width a group."""
        value = self.constant + sum(c * widths[g] for g, c in self.linear.items())
        return float(value + sum(c * widths[g] * widths[h] for (g, h), c in self.products.items()))

    def __add__(self, other: "WidthPolynomial") -> "WidthPolynomial":
        """Return the sum of two costs."""
        return total([self, other])

    def __mul__(self, factor: float) -> "WidthPolynomial":
        """Return the cost times a factor."""
        linear = {g: factor * c for g, c in self.linear.items()}
        return WidthPolynomial(factor * self.constant, linear, {p: factor * c for p, c in self.products.items()})

    def groups(self) -> set[int]:
        """Return the positions of the groups whose width matters."""
        return {*self.linear, *(g for pair in self.products for g in pair)}

    def tables(self, candidates: Mapping[int, npt.ArrayLike]) -> tuple[dict[int, FloatArray], dict[Pair, FloatArray]]:
        """Return the cost by group and by pair of groups at the candidate widths of each, as a `Budget` has them."""
        widths = {g: np.asarray(w, np.float64) for g, w in candidates.items()}
        unary = {g: c * widths[g] for g, c in self.linear.items()}
        pairwise: dict[Pair, FloatArray] = {}
        for (g, h), c in self.products.items():
            if g == h:
                unary[g] = unary.get(g, np.zeros(len(widths[g]))) + c * widths[g] ** 2
            else:
                pairwise[g, h] = c * np.outer(widths[g], widths[h])
        return unary, pairwise

    def budget(self, name: str, limit: float, candidates: Sequence[IntArray]) -> Budget:
        """Return the budget of this cost over the candidate widths of each group."""
        unary, pairwise = self.tables(dict(enumerate(candidates)))
        return Budget(name, limit, self.constant, unary, pairwise)


def total(parts: Iterable[WidthPolynomial]) -> WidthPolynomial:
    """Return the sum of costs."""
    constant, linear, products = 0.0, dict[int, float](), dict[Pair, float]()
    for part in parts:
        constant += part.constant
        for g, c in part.linear.items():
            linear[g] = linear.get(g, 0.0) + c
        for pair, c in part.products.items():
            products[pair] = products.get(pair, 0.0) + c
    return WidthPolynomial(constant, linear, products)


class CostCounter:
    """Counts what parts of a model cost as functions of the widths.

    Parameters
    ----------
    model, analysis
        The model and its channels.
    """

    def __init__(self, model: Model, analysis: ChannelAnalysis) -> None:
        self._model, self._analysis = model, analysis
        self._owner = analysis.group_of_unit()
        self._widths = [_widths(group) for group in analysis.groups]
        self._alive: dict[tuple[tuple[int, int], ...], npt.NDArray[np.bool_]] = {}

    def macs_by_node(self) -> dict[int, WidthPolynomial]:
        """Return the multiply-accumulate operations of each contraction, by position of the node."""
        nodes, found = self._model.graph.node, {}
        for index in count_costs(self._model, self._analysis.types).macs_by_node:
            node = nodes[index]
            names = [name for name in [*node.input, *node.output] if name]
            found[index] = self.count(names, partial(node_macs, node))
        return found

    def parameters(self) -> WidthPolynomial:
        """Return the number of weights, as `costs_of` counts them."""
        counts = count_costs(self._model, self._analysis.types).parameters_by_tensor
        return total(self.elements(name, counts[name]) for name in counts)

    def weight_bytes(self) -> WidthPolynomial:
        """Return the bytes of all initializers."""
        parts = []
        for tensor in self._model.graph.initializer:
            if tensor.name in self._analysis.types:
                # The file's own type: what is analysed may be a copy in another one.
                item_bytes = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
                parts.append(self.elements(tensor.name) * item_bytes)
        return total(parts)

    def elements(self, name: str, default: int = 0) -> WidthPolynomial:
        """Return the number of elements of a tensor; `default` where its shape is not known."""
        if name not in self._analysis.types:
            return WidthPolynomial(default)
        return self.count([name], lambda types: float(np.prod(types[name].shape, dtype=np.float64)))

    def count(self, names: Sequence[str], count: Count) -> WidthPolynomial:
        """Return the polynomial of a cost that the shapes of some tensors decide.

        Parameters
        ----------
        names
            The tensors.
        count
            Returns the cost from their types.
        """
        labelled = [name for name in dict.fromkeys(names) if self._analysis.labels.get(name) is not None]
        units = [f[f != FIXED] for name in labelled for f in self._analysis.labels[name].factors]
        groups = np.unique(self._owner[np.unique(np.concatenate(units))]).tolist() if units else []
        fixed = {name: self._analysis.types[name] for name in names if name in self._analysis.types}

        def at(chosen: Mapping[int, int]) -> float:
            kept = self._kept(chosen)
            shapes = {name: kept_shape(self._analysis.labels[name], kept) for name in labelled}
            return float(
                count(fixed | {name: TensorType(shape, fixed[name].element_type) for name, shape in shapes.items()})
            )

        return self._fitted(groups, at)

    def _fitted(self, groups: Sequence[int], at: Callable[[Mapping[int, int]], float]) -> WidthPolynomial:
        """Return the polynomial through a function of which of its counted widths each group has, 0 the full one."""
        whole = at({})
        # In changes d[g] from the full widths: whole + Σ slope[g] d[g] + Σ curve[g, h] d[g] d[h].
        slope, curve, narrow = dict[int, float](), dict[Pair, float](), dict[int, float]()
        for g in groups:
            changes = [w - self._widths[g][0] for w in self._widths[g][1:]]
            narrow[g] = at({g: 1}) - whole if changes else 0.0
            if len(changes) == 2:
                first, second = narrow[g] / changes[0], (at({g: 2}) - whole) / changes[1]
                square = (second - first) / (changes[1] - changes[0])
                slope[g] = first - square * changes[0]
                # Counts are whole numbers: what is left of a curve that is none is rounding.
                if abs(square * changes[1] ** 2) > 1e-6:
                    curve[g, g] = square
                else:
                    slope[g] = second
            elif changes:
                slope[g] = narrow[g] / changes[0]
        changing = [g for g in groups if narrow.get(g)]
        for position, g in enumerate(changing):
            for h in changing[position + 1 :]:
                both = at({g: 1, h: 1}) - whole - narrow[g] - narrow[h]
                if both:
                    changes = [self._widths[k][1] - self._widths[k][0] for k in (g, h)]
                    curve[g, h] = both / (changes[0] * changes[1])
        return self._expanded(whole, slope, curve)

    def _expanded(self, whole: float, slope: Mapping[int, float], curve: Mapping[Pair, float]) -> WidthPolynomial:
        """Return the polynomial of the widths from that of their changes."""
        full = [widths[0] for widths in self._widths]
        constant = whole - sum(c * full[g] for g, c in slope.items())
        linear = dict(slope)
        for (g, h), c in curve.items():
            constant += c * full[g] * full[h]
            linear[g] = linear.get(g, 0.0) - c * full[h]
            linear[h] = linear.get(h, 0.0) - c * full[g]
        size = max(abs(whole), 1.0)
        # A product whose factors vanish together leaves rounding of its size elsewhere.
        constant = 0.0 if abs(constant) < 1e-9 * size else constant
        linear = {g: c for g, c in linear.items() if abs(c) * full[g] > 1e-9 * size}
        return WidthPolynomial(constant, linear, curve)

    def _kept(self, chosen: Mapping[int, int]) -> npt.NDArray[np.bool_]:
        key = tuple(sorted(chosen.items()))
        if key not in self._alive:
            widths = [own[chosen.get(g, 0)] for g, own in enumerate(self._widths)]
            self._alive[key] = first_units(self._analysis, widths)
        return self._alive[key]


def _widths(group: ChannelGroup) -> list[int]:
    """Return the widths that are counted: the full one, and about a half and a quarter of it as far as they differ."""
    blocks = group.block_count
    share = group.width // blocks
    found = dict.fromkeys([share, (share + 1) // 2, (share + 3) // 4])
    return [part * blocks for part in found]
