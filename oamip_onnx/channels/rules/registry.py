"""The rule table: what each operator does to labels, keyed by domain, operator and opset."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

import onnx

from oamip_onnx.channels.trace import Trace


class Family(StrEnum):
    """How an operator treats channels."""

    CONTRACTION = "contraction"
    BROADCAST = "broadcast"
    MOVEMENT = "movement"
    REDUCTION = "reduction"
    PINNED = "pinned"


Propagate = Callable[[Trace, int, onnx.NodeProto], None]
"""Reads the labels of a node's inputs, joins and pins, and sets the labels of its outputs."""


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes
    ----------
    domain, op_type
        The operator; the standard domain is the empty string.
    family
        Which family it belongs to.
    propagate
        What it does to labels.
    since, until
        First and last opset of its domain for which the row holds; None is open.
    reason
        For pinned operators, why the channels that touch them stay.
    """

    domain: str
    op_type: str
    family: Family
    propagate: Propagate
    since: int = 1
    until: int | None = None
    reason: str = ""


_TABLE: dict[tuple[str, str], list[Rule]] = {}


def rule(
    op_types: str | Iterable[str],
    family: Family,
    *,
    domain: str = "",
    since: int = 1,
    until: int | None = None,
    reason: str = "",
) -> Callable[[Propagate], Propagate]:
    """Return a decorator that registers a function for one operator or several."""
    names = [op_types] if isinstance(op_types, str) else list(op_types)

    def register(propagate: Propagate) -> Propagate:
        for name in names:
            _TABLE.setdefault((domain, name), []).append(Rule(domain, name, family, propagate, since, until, reason))
        return propagate

    return register


def find_rule(node: onnx.NodeProto, opset: int) -> Rule | None:
    """Return the rule for a node at an opset of its domain, or None where the operator has none."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    for row in _TABLE.get((domain, node.op_type), []):
        if row.since <= opset and (row.until is None or opset <= row.until):
            return row
    return None


def all_rules() -> list[Rule]:
    """Return every row, sorted by domain, operator and opset."""
    return [row for key in sorted(_TABLE) for row in sorted(_TABLE[key], key=lambda r: r.since)]
