"""To Core ML: its tools read PyTorch modules, no ONNX files, so that the model goes through PyTorch."""

import importlib
from pathlib import Path

import numpy as np

from oamip_onnx.errors import ModelError, first_line

from .formats import Exported, ExportTask


def export(task: ExportTask, path: Path) -> Exported:
    """Write an ML program with the shapes of one run of the samples.

    Raises
    ------
    ModelError
        If one of the tools does not know an operator.
    """
    coremltools, torch, onnx2torch = (importlib.import_module(name) for name in ("coremltools", "torch", "onnx2torch"))
    names = [value.name for value in task.model.graph.input]
    try:
        module = onnx2torch.convert(task.model).eval()
        examples = tuple(torch.from_numpy(np.array(task.example[name])) for name in names)
        with torch.no_grad():
            traced = torch.jit.trace(module, examples)
        converted = coremltools.convert(
            traced,
            inputs=[coremltools.TensorType(name=name, shape=task.example[name].shape) for name in names],
            outputs=[coremltools.TensorType(name=value.name) for value in task.model.graph.output],
            convert_to="mlprogram",
        )
        for entry in task.model.metadata_props:
            converted.user_defined_metadata[entry.key] = entry.value
        converted.user_defined_metadata["oamip.export"] = "coreml"
        converted.save(str(path))
    except Exception as error:  # the tools raise whatever their operators stumble over
        raise ModelError(f"The model cannot be converted to Core ML: {first_line(error)}") from error
    return Exported()
