"""From float32 to int8 weights: dynamic quantisation, which needs no samples."""

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from oamip_onnx.errors import ModelError, first_line

from .formats import Exported, ExportTask
from .to_int8 import drop_unused_domains, prepared, quiet


def export(task: ExportTask, _path: Path) -> Exported:
    """Return the model with int8 weights, with a scale for each output channel.

    Raises
    ------
    ModelError
        If nothing in the model can be quantised, or ONNX Runtime's quantiser fails.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="oamip-") as folder, quiet():
            source, target = Path(folder) / "source.onnx", Path(folder) / "quantised.onnx"
            onnx.save(prepared(task.model), source)
            # Seven bits of weight, for the reason that static quantisation has.
            quantize_dynamic(source, target, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
            result = onnx.load(target)
    except Exception as error:  # the quantiser raises whatever its graph code stumbles over
        raise ModelError(
            f"ONNX Runtime cannot quantise the model to int8: {first_line(error)}; choose another format."
        ) from error
    if not any(node.op_type.startswith("DynamicQuantize") for node in result.graph.node):
        raise ModelError("ONNX Runtime found nothing in the model to quantise to int8; choose another format.")
    drop_unused_domains(task.model, result)
    note = "The ranges of activations are those of a whole batch: the answer to a sample depends on those beside it."
    return Exported(result, notes=(note,))
