"""Integer contractions: what enters and leaves them stays for now; QuantizeLinear and DequantizeLinear do not."""

import onnx

from oamip_onnx.channels.groups import PinCode
from oamip_onnx.channels.rules.pinned import pin_all
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, node_label

_REASON = "multiplies integers, whose zero is a point of their scale"


@rule(["ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"], Family.PINNED, reason=_REASON)
def integer_contraction(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pin all operands."""
    pin_all(trace, node, PinCode.PINNED_OPERATOR, f"{node_label(trace, index, node)} {_REASON}.")
    trace.contracted.extend(name for name in node.output if name)
