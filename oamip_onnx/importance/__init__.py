"""How much each unit matters: OAMIP and the baselines behind one protocol."""

from oamip_onnx.importance.logits import find_logits
from oamip_onnx.importance.magnitude import magnitude
from oamip_onnx.importance.protocol import CRITERIA, Criterion, ImportanceContext, criterion, score
from oamip_onnx.importance.random_draw import random_draw
from oamip_onnx.importance.response import response_scores
from oamip_onnx.importance.scores import Scores

__all__ = [
    "CRITERIA",
    "Criterion",
    "ImportanceContext",
    "Scores",
    "criterion",
    "find_logits",
    "magnitude",
    "random_draw",
    "response_scores",
    "score",
]
