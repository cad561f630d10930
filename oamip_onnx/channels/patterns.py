"""Globs on node and tensor names."""

import fnmatch
from collections.abc import Iterable

from oamip_onnx.errors import UsageError, closest
from oamip_onnx.model import Model


def matching_tensors(model: Model, patterns: Iterable[str]) -> set[str]:
    """Return the tensors that a glob matches by their own name or by that of the node that makes or weighs them.

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    """
    nodes = list(model.graph.node)
    tensors = {n for node in nodes for n in [*node.input, *node.output] if n}
    found: set[str] = set()
    for pattern in patterns:
        matched = {t for t in tensors if fnmatch.fnmatchcase(t, pattern)}
        for node in nodes:
            if node.name and fnmatch.fnmatchcase(node.name, pattern):
                matched.update(o for o in node.output if o)
        if not matched:
            names = [*tensors, *(node.name for node in nodes if node.name)]
            raise UsageError(f"The pattern {pattern!r} matches no node and no tensor{closest(pattern, names)}.")
        found |= matched
    return found
