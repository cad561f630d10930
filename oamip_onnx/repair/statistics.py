"""Taking the statistics of batch norms anew: what reaches them has changed.

Mean and variance of each are those of what the narrower model feeds it on the calibration samples, in network order, so
that a later one sees what the earlier ones make of it (Li et al. 2017, "Revisiting batch normalization for practical
domain adaptation", section 3, do so for another change of the input).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.calibration import ActivationStream
from oamip_onnx.model import Array, int_attribute, with_initializers
from oamip_onnx.repair.context import RepairContext, Repaired, RepairStep, initializer_array
from oamip_onnx.surgery.constants import touches

FloatArray = npt.NDArray[np.float64]


def repair_batch_norm(context: RepairContext) -> Repaired:
    """Return the model with the mean and the variance of every batch norm behind the removal taken anew."""
    proto, updates, steps = context.cut, dict[str, Array](), []
    left = {name for node in proto.graph.node for name in node.output}
    for index in _behind_removal(context):
        node = context.model.graph.node[index]
        if node.output[0] not in left:
            continue  # its branch vanished
        reason = _obstacle(context, node)
        name = context.model.node_name(index)
        if reason:
            steps.append(RepairStep(name, skipped=f"Left as it is: {reason}."))
            continue
        mean, variance = _statistics(context, proto, node.input[0])
        changed = {
            tensor: values.astype(initializer_array(proto, tensor).dtype)
            for tensor, values in zip(node.input[3:5], (mean, variance), strict=True)
        }
        updates |= changed
        proto = with_initializers(proto, changed)
        steps.append(RepairStep(name))
    return Repaired(proto, updates, tuple(steps))


def _behind_removal(context: RepairContext) -> Iterator[int]:
    """Yield the positions of the batch norms whose input changed, in network order."""
    affected: set[str] = set()
    for index, node in enumerate(context.model.graph.node):
        names = [name for name in node.input if name]
        if any(name in affected for name in names) or touches(context.analysis, names, context.kept):
            affected.update(name for name in node.output if name)
            if node.op_type == "BatchNormalization":
                yield index


def _obstacle(context: RepairContext, node: onnx.NodeProto) -> str:
    """Return why the statistics of a batch norm cannot be set; empty where they can."""
    model = context.model
    if int_attribute(node, "training_mode", 0):
        return "it takes its statistics of every batch"
    if not all(model.is_constant(name) for name in node.input[3:5]):
        return "its statistics are computed"
    if any(len(model.uses[name]) > 1 for name in node.input[3:5]):
        return "another node shares its statistics"
    return ""


def _statistics(context: RepairContext, proto: onnx.ModelProto, tensor: str) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance of each channel of a tensor over all samples and positions."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for batch in ActivationStream(proto, [tensor], context.options).batches(context.samples):
        values = np.moveaxis(batch[tensor], 1, -1).reshape(-1, batch[tensor].shape[1]).astype(np.float64)
        count += len(values)
        total = total + values.sum(axis=0)
        squares = squares + np.square(values).sum(axis=0)
    mean = total / count
    return mean, np.maximum(squares / count - mean**2, 0.0)
