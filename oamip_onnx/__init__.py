"""Make a trained ONNX model smaller and faster: see `prune`.

>>> import oamip_onnx
>>> result = oamip_onnx.prune("model.onnx", "calibration.npz", importance="activation", bench=False)
>>> result.report.verification.passed
True
>>> size = result.save("small.onnx")
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oamip_onnx.benching import benchmark as benchmark
    from oamip_onnx.config import PruneConfig as PruneConfig
    from oamip_onnx.errors import OamipError as OamipError
    from oamip_onnx.exporting import export as export
    from oamip_onnx.finetuning import FinetuneResult as FinetuneResult
    from oamip_onnx.finetuning import finetune as finetune
    from oamip_onnx.importing import import_model as import_model
    from oamip_onnx.pipeline import PruneResult as PruneResult
    from oamip_onnx.pipeline import prune as prune
    from oamip_onnx.running import run_pipeline as run_pipeline
    from oamip_onnx.transferring import TransferResult as TransferResult
    from oamip_onnx.transferring import transfer as transfer

__version__ = version("oamip-onnx")

__all__ = [
    "FinetuneResult",
    "OamipError",
    "PruneConfig",
    "PruneResult",
    "TransferResult",
    "__version__",
    "benchmark",
    "export",
    "finetune",
    "import_model",
    "prune",
    "run_pipeline",
    "transfer",
]

_HOMES = {
    "FinetuneResult": "oamip_onnx.finetuning",
    "OamipError": "oamip_onnx.errors",
    "PruneConfig": "oamip_onnx.config",
    "PruneResult": "oamip_onnx.pipeline",
    "TransferResult": "oamip_onnx.transferring",
    "benchmark": "oamip_onnx.benching",
    "export": "oamip_onnx.exporting",
    "finetune": "oamip_onnx.finetuning",
    "import_model": "oamip_onnx.importing",
    "prune": "oamip_onnx.pipeline",
    "run_pipeline": "oamip_onnx.running",
    "transfer": "oamip_onnx.transferring",
}


def __getattr__(name: str) -> Any:
    # ONNX Runtime, scipy and pydantic take a second to import; a script that only asks for the version does not wait.
    if name not in _HOMES:
        raise AttributeError(f"module 'oamip_onnx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
