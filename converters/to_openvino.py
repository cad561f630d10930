"""To OpenVINO's intermediate representation: an .xml file with the graph, a .bin file with the weights."""

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from oamip_onnx.errors import ModelError, first_line
from oamip_onnx.runtime import TensorInfo

from .formats import Array, Exported, ExportTask, Feeds, saved


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
    note = "It was compared and timed in float32; on CPUs that can, OpenVINO computes in bfloat16 by default"
    return Exported(notes=(f"{note}: faster, and less exact.",))


class OpenVinoModel:
    """A written file in OpenVINO, on the CPU and in float32.

    Parameters
    ----------
    path
        The .xml file.
    threads
        Threads; 0 leaves the choice to OpenVINO.

    Raises
    ------
    ModelError
        If OpenVINO does not load it.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        openvino = importlib.import_module("openvino")
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = openvino.compile_model(str(path), "CPU", settings)
        except Exception as error:  # its plugins raise unrelated classes
            raise ModelError(f"OpenVINO does not load {str(path)!r}: {first_line(error)}") from error
        self._request = self._compiled.create_infer_request()
        self.inputs = tuple(_tensor_info(port) for port in self._compiled.inputs)
        self.outputs = tuple(_tensor_info(port) for port in self._compiled.outputs)

    def run(self, feeds: Feeds, outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Return the outputs by name for one batch of inputs.

        Raises
        ------
        ModelError
            If OpenVINO fails while running.
        """
        self._infer(feeds)
        names = [info.name for info in self.outputs] if outputs is None else list(outputs)
        # The request's memory holds the next result in place of this one.
        return {name: np.array(self._request.get_tensor(name).data) for name in names}

    def bind(self, feeds: Feeds) -> Callable[[], None]:
        """Return a call that runs these inputs once more and waits for the result; they are copied before.

        Raises
        ------
        ModelError
            If OpenVINO fails while running; it is tried once before returning.
        """
        self._infer(feeds)
        request = self._request

        def run() -> None:
            request.infer()

        return run

    def _infer(self, feeds: Feeds) -> None:
        try:
            self._request.infer(dict(feeds))
        except Exception as error:  # as above
            raise ModelError(f"OpenVINO failed while running the model: {first_line(error)}") from error


def _tensor_info(port: Any) -> TensorInfo:
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return TensorInfo(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), shape)
