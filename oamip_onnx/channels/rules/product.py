"""Products: Gemm, MatMul and Einsum over named axes, with weights or between activations."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.labels import NOTHING, IntArray, axes_of
from oamip_onnx.channels.rules.pinned import pin_all
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, node_label
from oamip_onnx.model import einsum_terms, int_attribute


@rule("Gemm", Family.CONTRACTION)
def gemm(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """A′B′ + C with either operand transposed."""
    left = "ki" if int_attribute(node, "transA", 0) else "ik"
    right = "jk" if int_attribute(node, "transB", 0) else "kj"
    factors = contract_operands(trace, index, node, [left, right], "ij")
    if len(node.input) > 2 and node.input[2]:
        _add_bias(trace, node, factors, node_label(trace, index, node))
    trace.set(node.output[0], factors)


def _add_bias(trace: Trace, node: onnx.NodeProto, factors: list[IntArray], where: str) -> None:
    out = node.output[0]
    bias = trace.of(node.input[2])
    for factor in bias.factors:
        aligned = factor.reshape((1,) * (2 - factor.ndim) + factor.shape)
        axis = next(iter(axes_of(aligned)))
        known = next((f for f in factors if f.shape[axis] > 1), NOTHING)
        trace.join(aligned, known, Pin(out, PinCode.FIXED_AXIS, f"Bias of {where}."))
    offset = 2 - len(bias.shape)
    for axis in range(offset, 2):
        if bias.shape[axis - offset] > 1 and bias.factor_over(axis - offset) is None:
            for factor in factors:
                if factor.shape[axis] > 1:
                    trace.pin(factor.ravel(), Pin(out, PinCode.FIXED_AXIS, f"The bias of {where} cannot shrink."))


@rule("MatMul", Family.CONTRACTION)
@rule("FusedMatMul", Family.CONTRACTION, domain="com.microsoft")
def matmul(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Matrix product over the last two axes, the others broadcast."""
    where = node_label(trace, index, node)
    if int_attribute(node, "transBatchA", 0) or int_attribute(node, "transBatchB", 0):
        pin_all(trace, node, PinCode.UNSUPPORTED_CASE, f"{where} transposes batches.")
        return
    ranks = [len(trace.shape(name)) for name in node.input[:2]]
    batch = string.ascii_uppercase[: max(0, max(ranks) - 2)]
    left, right = (batch[len(batch) - (rank - 2) :] if rank > 2 else "" for rank in ranks)
    left += "k" if ranks[0] == 1 else ("ki" if int_attribute(node, "transA", 0) else "ik")
    right += "k" if ranks[1] == 1 else ("jk" if int_attribute(node, "transB", 0) else "kj")
    out = batch + ("i" if ranks[0] > 1 else "") + ("j" if ranks[1] > 1 else "")
    trace.set(node.output[0], contract_operands(trace, index, node, [left, right], out))


@rule("Einsum", Family.CONTRACTION)
def einsum(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Any number of operands over the letters of the equation; a diagonal (a letter twice) is left alone."""
    terms, out = einsum_terms(node, [len(trace.shape(name)) for name in node.input])
    if any(len(set(term)) < len(term) for term in terms):
        pin_all(trace, node, PinCode.UNSUPPORTED_CASE, f"{node_label(trace, index, node)} takes a diagonal.")
        return
    trace.set(node.output[0], contract_operands(trace, index, node, terms, out))


@dataclass(frozen=True)
class _Factor:
    """A factor with one dimension a letter, and the letters along which its tensor gets shorter when cells go."""

    labels: IntArray
    shrinking: frozenset[int]

    @property
    def letters(self) -> set[int]:
        return axes_of(self.labels)


@dataclass(frozen=True)
class _Product:
    """A product over letters: the factors of every operand."""

    names: list[str]
    terms: Sequence[str]
    letters: dict[str, int]
    contracted: set[int]
    factors: list[list[_Factor]]

    def long_letters(self, trace: Trace, position: int) -> set[int]:
        """Return the letters along which an operand is longer than 1."""
        shape = trace.shape(self.names[position])
        return {self.letters[c] for c, s in zip(self.terms[position], shape, strict=True) if s > 1}


def contract_operands(trace: Trace, index: int, node: onnx.NodeProto, terms: Sequence[str], out: str) -> list[IntArray]:
    """Join labels through a product whose operands' and output's axes are named by letters, as in Einsum.

    1. A factor on letters of the output passes on, joined with the other operands' on the same letters.
    2. A factor on contracted letters is joined with the other operands' and ends.
    3. A factor on both (heads × width) goes by whole rows, and the output keeps the row's label; where heads are
       pruned by dimension and the width is contracted, it ends.
    """
    where = node_label(trace, index, node)
    letters = {letter: i for i, letter in enumerate(dict.fromkeys("".join(terms) + out))}
    names = list(node.input[: len(terms)])
    factors = [
        [
            _Factor(_on_letters(f, term, letters), frozenset(letters[term[a]] for a in trace.shrinking(f)))
            for f in trace.of(name).factors
        ]
        for name, term in zip(names, terms, strict=True)
    ]
    contracted = {i for letter, i in letters.items() if letter not in out}
    product = _Product(names, terms, letters, contracted, factors)
    pin = Pin(node.output[0], PinCode.FIXED_AXIS, f"{where} multiplies these channels with fixed ones.")
    _join_shared(trace, product, pin, where)
    for position, own in enumerate(factors):
        factors[position] = [_by_rows(trace, f, contracted, pin) for f in own]
    _record_ends(trace, index, product, where)
    if any(trace.is_parameter(name) for name in names):
        trace.contracted.append(node.output[0])
    return _result_factors(trace, product, out, pin)


def _join_shared(trace: Trace, product: _Product, pin: Pin, where: str) -> None:
    """Join what operands share; pin what meets an operand that cannot be narrowed there."""
    for mine, own in enumerate(product.factors):
        for other, others in enumerate(product.factors):
            if mine == other:
                continue
            uncovered = product.long_letters(trace, other) - {a for f in others for a in f.letters}
            for factor in own:
                if uncovered & factor.shrinking:
                    reason = f"{where} multiplies these channels with {product.names[other]!r}, which stays as it is."
                    trace.pin(factor.labels.ravel(), Pin(product.names[mine], PinCode.FIXED_AXIS, reason))
                for partner in others if mine < other else []:
                    if factor.shrinking & partner.letters or partner.shrinking & factor.letters:
                        trace.join(factor.labels, partner.labels, pin)


def _by_rows(trace: Trace, factor: _Factor, contracted: set[int], pin: Pin) -> _Factor:
    """Tie a factor on both contracted and passing letters into rows, unless it gets shorter along contracted ones."""
    if factor.letters & contracted and not factor.shrinking <= contracted:
        return _Factor(
            np.broadcast_to(trace.tie(factor.labels, contracted, pin), factor.labels.shape), factor.shrinking
        )
    return factor


def _on_letters(factor: IntArray, axes: str, letters: dict[str, int]) -> IntArray:
    """Return a factor with one dimension per letter of the product."""
    order = sorted(range(len(axes)), key=lambda a: letters[axes[a]])
    shape = [1] * len(letters)
    for axis, letter in enumerate(axes):
        shape[letters[letter]] = factor.shape[axis]
    return np.transpose(factor, order).reshape(shape)


def _from_letters(factor: IntArray, axes: str, letters: dict[str, int]) -> IntArray:
    """Return the factor of a tensor whose axes are these letters; letters that it lacks have size 1."""
    present = [letters[c] for c in axes]
    rest = [a for a in range(factor.ndim) if a not in present]
    moved = np.transpose(factor, present + rest)
    return moved.reshape(moved.shape[: len(present)])


def _record_ends(trace: Trace, index: int, product: _Product, where: str) -> None:
    """Record where labels end: at the first activation that holds them; a product is zero where one operand is."""
    ended: set[int] = set()
    parameters = [trace.is_parameter(name) for name in product.names]
    weight = parameters.index(True) if any(parameters) and len(parameters) == 2 else None
    for position, own in enumerate(product.factors):
        for factor in own:
            ends = factor.letters & product.contracted
            if parameters[position]:
                continue
            if not factor.shrinking <= product.contracted:
                ended |= ends  # rows pass on, and end elsewhere
            elif ends - ended:
                ended |= ends
                units = _from_letters(factor.labels, product.terms[position], product.letters)
                trace.contract(index, position, units, weight)
    for name, own in zip(product.names, product.factors, strict=True):
        for factor in own:
            if factor.letters & product.contracted - ended:
                # No activation could be zeroed in its place.
                reason = f"{where} sums over this axis of a parameter alone."
                trace.pin(factor.labels.ravel(), Pin(name, PinCode.UNSUPPORTED_CASE, reason))


def _result_factors(trace: Trace, product: _Product, out: str, pin: Pin) -> list[IntArray]:
    result: list[_Factor] = []
    for factor in [f for own in product.factors for f in own]:
        if factor.letters & product.contracted and factor.shrinking <= product.contracted:
            continue
        parts = tuple(slice(0, 1) if a in product.contracted else slice(None) for a in range(factor.labels.ndim))
        row = _Factor(factor.labels[parts], factor.shrinking - product.contracted)
        known = next((f for f in result if f.letters & row.letters), None)
        if not row.letters:
            continue
        if known is None:
            result.append(row)
        elif known.shrinking & row.letters or row.shrinking & known.letters:
            trace.join(known.labels, row.labels, pin)
            if len(row.letters) > len(known.letters):
                result = [row if f is known else f for f in result]
        else:
            result.append(row)
    return [_from_letters(f.labels, out, product.letters) for f in result]
