"""Integer contractions: what enters and leaves them stays for now; QuantizeLinear and DequantizeLinear do not."""

import onnx

from oamip_onnx.channels.groups import Pin, PinCode
from oamip_onnx.channels.rules.pinned import pin_all
from oamip_onnx.channels.rules.registry import Family, rule
from oamip_onnx.channels.trace import Trace, node_label

_REASON = "multiplies integers, whose zero is a point of their scale"


@rule(["QGemm", "QLinearAdd", "QLinearMul"], Family.PINNED, domain="com.microsoft", reason=_REASON)
@rule(["ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"], Family.PINNED, reason=_REASON)
def integer_contraction(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pin all operands, and report the layer."""
    reason = f"{node_label(trace, index, node)} {_REASON}; quantise in QDQ format to narrow it."
    pin_all(trace, node, PinCode.PINNED_OPERATOR, reason)
    trace.unseen.append(Pin(node.output[0], PinCode.PINNED_OPERATOR, reason))
