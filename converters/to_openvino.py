"""To OpenVINO's intermediate representation: an .xml file with the graph, a .bin file with the weights."""

import importlib
from pathlib import Path

from oamip_onnx.errors import ModelError, first_line

from .formats import Exported, ExportTask, saved


def export(task: ExportTask, path: Path) -> Exported:
    """Write the model in the types that it has; OpenVINO keeps its metadata.

    Raises
    ------
    ModelError
        If OpenVINO does not know an operator.
    """
    openvino = importlib.import_module("openvino")
    try:
        with saved(task.model) as source:
            converted = openvino.convert_model(str(source))
            openvino.save_model(converted, str(path), compress_to_fp16=False)
    except Exception as error:  # OpenVINO's front end raises whatever its operators stumble over
        raise ModelError(f"OpenVINO {openvino.__version__} cannot convert the model: {first_line(error)}") from error
    return Exported()
