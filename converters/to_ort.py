"""To ONNX Runtime's own format, which builds without the ONNX parser read: phones, browsers, small devices."""

from pathlib import Path

import onnx
import onnxruntime

from oamip_onnx.errors import ModelError, first_line

from .formats import Exported, ExportTask, saved

# Lays channels out in blocks of the width of this CPU's vectors; ONNX Runtime warns to use such a file only here.
_OF_THIS_CPU = "NchwcTransformer"


def portable(task: ExportTask, path: Path) -> Exported:
    """Write the model with every optimisation that holds on any machine."""
    _write(task.model, path, [_OF_THIS_CPU])
    note = "The file leaves out the memory layouts of this CPU, which makes convolutions slower than they could be here"
    return Exported(notes=(f"{note}; ort-native has them.",))


def native(task: ExportTask, path: Path) -> Exported:
    """Write the model with every optimisation that ONNX Runtime makes on this CPU."""
    _write(task.model, path, [])
    return Exported(notes=("The file holds memory layouts of this CPU; use it on machines with the same CPU only.",))


def _write(model: onnx.ModelProto, path: Path, disabled: list[str]) -> None:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    settings.graph_optimization_level = level.ORT_ENABLE_ALL
    settings.optimized_model_filepath = str(path)
    settings.add_session_config_entry("session.save_model_format", "ORT")
    try:
        with saved(model) as source:
            onnxruntime.InferenceSession(
                str(source), settings, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
        raise ModelError(f"ONNX Runtime cannot write the model in its own format: {first_line(error)}") from error
