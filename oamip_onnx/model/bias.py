"""What is added to the output of a contraction."""

from oamip_onnx.model.model import Model


def only_reader(model: Model, name: str) -> int | None:
    """Return the position of the node that alone reads a tensor; None where there is not exactly one."""
    uses = model.uses.get(name, ())
    return uses[0].node if len(uses) == 1 and name not in model.output_names else None


def added_to(model: Model, name: str) -> tuple[int, str] | None:
    """Return the position of the Add that alone reads a tensor, and what it adds; None where there is none."""
    position = only_reader(model, name)
    if position is None or model.graph.node[position].op_type != "Add":
        return None
    first, second = model.graph.node[position].input
    return position, second if first == name else first


def bias_of(model: Model, index: int) -> str | None:
    """Return the tensor that a contraction adds to what it multiplies; None without one.

    For a MatMul this is the constant vector that an Add, the only reader of its output, adds and nothing else reads.
    """
    node = model.graph.node[index]
    if node.op_type != "MatMul":
        return node.input[2] if len(node.input) > 2 and node.input[2] else None
    added = added_to(model, node.output[0])
    if added is None or not model.is_constant(added[1]) or not model.is_constant(node.input[1]):
        return None
    _, vector = added
    width = model.initializers[node.input[1]].dims[-1]
    is_own = len(model.uses[vector]) == 1 and list(model.initializers[vector].dims) == [width]
    return vector if is_own else None
