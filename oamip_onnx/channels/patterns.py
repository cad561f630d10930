"""Globs and regular expressions on node and tensor names."""

import fnmatch
import re
from collections.abc import Callable, Iterable

from oamip_onnx.errors import UsageError, closest
from oamip_onnx.model import Model

REGULAR_EXPRESSION = "re:"


def matching_tensors(model: Model, patterns: Iterable[str]) -> set[str]:
    """Return the tensors that a pattern matches by their own name or by that of the node that makes or weighs them.

    A pattern is a glob, or a regular expression behind ``re:`` that has to match somewhere in the name.

    Raises
    ------
    UsageError
        If a pattern matches nothing, or is no regular expression.
    """
    nodes = list(model.graph.node)
    tensors = {n for node in nodes for n in [*node.input, *node.output] if n}
    found: set[str] = set()
    for pattern in patterns:
        matches = _matcher(pattern)
        matched = {t for t in tensors if matches(t)}
        for node in nodes:
            if node.name and matches(node.name):
                matched.update(o for o in node.output if o)
        if not matched:
            names = [*tensors, *(node.name for node in nodes if node.name)]
            raise UsageError(f"The pattern {pattern!r} matches no node and no tensor{closest(pattern, names)}.")
        found |= matched
    return found


def _matcher(pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith(REGULAR_EXPRESSION):
        return lambda name: fnmatch.fnmatchcase(name, pattern)
    try:
        expression = re.compile(pattern.removeprefix(REGULAR_EXPRESSION))
    except re.error as error:
        raise UsageError(f"The pattern {pattern!r} is no regular expression: {error}.") from error
    return lambda name: expression.search(name) is not None
