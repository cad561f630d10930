"""What can go wrong with the processes that run tasks."""

from oamip_onnx.errors import OamipError


class WorkerError(OamipError):
    """Tasks cannot be run: worker processes end, do not answer, or have other software than this process."""

    code = "worker"
