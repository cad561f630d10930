"""To TensorFlow Lite, by onnx2tf."""

import importlib
import tempfile
from pathlib import Path

from oamip_onnx.errors import ModelError, first_line

from .formats import Exported, ExportTask, saved


def export(task: ExportTask, path: Path) -> Exported:
    """Write the model in float32; images are read with their channels last, as TensorFlow has them.

    Raises
    ------
    ModelError
        If onnx2tf does not know an operator.
    """
    onnx2tf = importlib.import_module("onnx2tf")
    try:
        with saved(task.model) as source, tempfile.TemporaryDirectory(prefix="oamip-") as folder:
            onnx2tf.convert(
                input_onnx_file_path=str(source),
                output_folder_path=folder,
                non_verbose=True,
                copy_onnx_input_output_names_to_tflite=True,
            )
            path.write_bytes((Path(folder) / "model_float32.tflite").read_bytes())
    except (Exception, SystemExit) as error:  # onnx2tf raises whatever its operators stumble over, and exits at some
        reason = first_line(error) if isinstance(error, Exception) else "onnx2tf gave up"
        raise ModelError(f"The model cannot be converted to TensorFlow Lite: {reason}") from error
    return Exported(notes=("TensorFlow Lite reads images with their channels last: transpose inputs to it.",))
