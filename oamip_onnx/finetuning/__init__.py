"""Fine-tuning: a pruned model trained in PyTorch, and its weights written back into the same ONNX graph."""

from oamip_onnx.finetuning.run import FinetuneResult, finetune

__all__ = ["FinetuneResult", "finetune"]
