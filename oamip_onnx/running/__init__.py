"""`oamip run`: import, prune, finetune, export and bench by one file, stages cached by content."""

from oamip_onnx.running.run import run_pipeline

__all__ = ["run_pipeline"]
