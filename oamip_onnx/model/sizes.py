"""Folding computed sizes: what a graph computes from dimensions that never change becomes a constant.

Exporters write `Shape → Gather → Div → Concat → Reshape` even where every size but the batch is fixed. After folding,
only what depends on a dynamic dimension is still computed, and the stages behind this one see plain constants.
"""

import onnx

from oamip_onnx.model.graph import remove_nodes
from oamip_onnx.model.known import Walk, as_tensor, declared_types
from oamip_onnx.model.model import Array

# Scales and scalars may be folded in whatever type they are used.
_FEW_ELEMENTS = 16

# The walk sees nearly everything in one pass; what it folds may let ONNX's inference see the rest.
_ROUNDS = 2


def fold_sizes(proto: onnx.ModelProto) -> int:
    """Replace nodes that compute known small tensors by initializers, in place; return how many went.

    The graph's outputs and what they are called stay. Nodes that nothing needs any more are removed with them.
    """
    if not any(node.op_type in {"Shape", "Size", "ConstantOfShape", "Range"} for node in proto.graph.node):
        return 0
    before = len(proto.graph.node)
    for _ in range(_ROUNDS):
        if not _fold_once(proto):
            break
    return before - len(proto.graph.node)


def _fold_once(proto: onnx.ModelProto) -> bool:
    graph = proto.graph
    walk = Walk(proto, declared_types(proto))
    outputs = {o.name for o in graph.output}
    folded: set[int] = set()
    tensors: list[onnx.TensorProto] = []
    for index, node in enumerate(graph.node):
        walk.step(node)
        names = [name for name in node.output if name]
        found = [walk.partial.get(name) for name in names]
        if node.op_type == "Constant" or outputs.intersection(names) or not found:
            continue
        parts = [part for part in found if part is not None and part.complete]
        if len(parts) == len(found) and not _widens(node, parts[0].values):
            folded.add(index)
            tensors += [as_tensor(part.values, name) for part, name in zip(parts, names, strict=True)]
    if not folded:
        return False
    graph.initializer.extend(tensors)
    remove_nodes(graph, folded)
    return True


def _widens(node: onnx.NodeProto, values: Array) -> bool:
    """Return whether folding a node would store weights in a wider type than they have."""
    return node.op_type in {"Cast", "CastLike"} and values.dtype.kind == "f" and values.size > _FEW_ELEMENTS
