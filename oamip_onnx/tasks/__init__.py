"""Independent tasks: named arrays in, named arrays out, on this machine's cores or a Dask cluster, with a cache."""

from oamip_onnx.tasks.cache import default_cache
from oamip_onnx.tasks.call import TaskFunction
from oamip_onnx.tasks.data import TaskData
from oamip_onnx.tasks.errors import WorkerError
from oamip_onnx.tasks.run import TaskOptions, run_tasks

__all__ = ["TaskData", "TaskFunction", "TaskOptions", "WorkerError", "default_cache", "run_tasks"]
