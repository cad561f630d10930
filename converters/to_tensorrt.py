"""To a TensorRT engine, which runs on the kind of GPU that it was built on."""

import shlex
import shutil
import subprocess
from pathlib import Path

from oamip_onnx.errors import MissingExtraError, ModelError

from .formats import Exported, ExportTask, saved


def export(task: ExportTask, path: Path) -> Exported:
    """Build an engine with trtexec, which comes with TensorRT.

    Raises
    ------
    MissingExtraError
        If trtexec is not there, with the command to run where it is.
    ModelError
        If it cannot build the engine.
    """
    tool = shutil.which("trtexec")
    if tool is None:
        command = shlex.join(["trtexec", f"--onnx={task.source}", f"--saveEngine={task.target}"])
        raise MissingExtraError(
            "The format 'tensorrt' needs trtexec, which is not on the path; install TensorRT on a machine with the GPU "
            f"that the engine is for, and run there: {command}"
        )
    with saved(task.model) as source:
        command_line = [tool, f"--onnx={source}", f"--saveEngine={path}"]
        ran = subprocess.run(command_line, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    if ran.returncode or not path.is_file():
        lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        reason = next((line for line in lines if "[E]" in line), lines[-1] if lines else "it said nothing")
        raise ModelError(f"trtexec cannot build an engine of the model: {reason}")
    return Exported()
