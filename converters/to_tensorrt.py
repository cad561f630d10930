"""To a TensorRT engine, which runs on the kind of GPU that it was built on."""

import importlib
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from oamip_onnx.errors import MissingExtraError, ModelError, first_line

from .formats import Exported, ExportTask, Feeds, is_installed, saved


def export(task: ExportTask, path: Path) -> Exported:
    """Build an engine with trtexec, which comes with TensorRT, or else with TensorRT's Python package.

    Raises
    ------
    MissingExtraError
        If neither is there, with the command to run where trtexec is.
    ModelError
        If the engine cannot be built.
    """
    tool = shutil.which("trtexec")
    if tool is None and not is_installed("tensorrt"):
        command = shlex.join(["trtexec", f"--onnx={task.source}", f"--saveEngine={task.target}"])
        raise MissingExtraError(
            "The format 'tensorrt' needs trtexec, which is not on the path, or the package tensorrt, which is not "
            f"installed; install TensorRT on a machine with the GPU that the engine is for, and run there: {command}"
        )
    with saved(task.model) as source:
        if tool is None:
            path.write_bytes(_built(source, task.example))
        else:
            _run_tool(tool, source, path)
    return Exported()


def _run_tool(tool: str, source: Path, path: Path) -> None:
    command_line = [tool, f"--onnx={source}", f"--saveEngine={path}"]
    ran = subprocess.run(command_line, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    if ran.returncode or not path.is_file():
        lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        reason = next((line for line in lines if "[E]" in line), lines[-1] if lines else "it said nothing")
        raise ModelError(f"trtexec cannot build an engine of the model: {reason}")


def _built(source: Path, example: Feeds) -> bytes:
    """Return the engine that TensorRT's Python package builds, for batches from one sample to that of the example."""
    tensorrt = importlib.import_module("tensorrt")
    try:
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        # Every network has an explicit batch from TensorRT 10 on; before, it has to be asked for.
        flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = tensorrt.OnnxParser(network, logger)
        is_read = parser.parse_from_file(str(source))
        engine = builder.build_serialized_network(network, _settings(builder, network, example)) if is_read else None
    except Exception as error:  # its bindings raise what the driver and CUDA raise
        raise ModelError(f"TensorRT cannot build an engine of the model: {first_line(error)}") from error
    if not is_read:
        raise ModelError(f"TensorRT cannot read the model: {parser.get_error(0).desc()}")
    if engine is None:
        raise ModelError("TensorRT cannot build an engine of the model; its log on standard error says why.")
    return bytes(engine)


def _settings(builder: Any, network: Any, example: Feeds) -> Any:
    """Return the builder's settings, with the sizes that open dimensions may take."""
    settings = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    is_open = False
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        if min(tensor.shape, default=1) >= 0:
            continue
        is_open = True
        usual = example[tensor.name].shape
        least = tuple(1 if size < 0 else size for size in tensor.shape)
        profile.set_shape(tensor.name, (*least[:1], *usual[1:]), usual, usual)
    if is_open:
        settings.add_optimization_profile(profile)
    return settings
