"""From float32 to float16."""

import warnings

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from oamip_onnx.errors import ModelError, first_line


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float16 weights and activations; its inputs and outputs keep their types.

    Weights beyond float16's range are clipped to it: the largest finite number is 65504, the smallest 6e-8.

    Parameters
    ----------
    model
        The model; it is left as it is.

    Raises
    ------
    ModelError
        If no weight is float32, the model is quantised, or ONNX Runtime's converter fails.
    """
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise ModelError("The model is quantised already, so it has no float16 variant; leave the variant out.")
    if not any(tensor.data_type == onnx.TensorProto.FLOAT for tensor in model.graph.initializer):
        raise ModelError("The model has no float32 weights, so it has no float16 variant; leave the variant out.")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            # One line for each weight that is clipped, which this function's contract says.
            warnings.simplefilter("ignore")
            converted = OnnxModel(convert_float_to_float16(copy, keep_io_types=True))
            # The casts at the inputs stand behind the nodes that read them, which ONNX's checker refuses.
            converted.topological_sort()
    except Exception as error:  # the converter raises whatever its graph code stumbles over
        raise ModelError(
            f"ONNX Runtime cannot convert the model to float16: {first_line(error)}; leave the variant out."
        ) from error
    return onnx.ModelProto.FromString(converted.model.SerializeToString())
