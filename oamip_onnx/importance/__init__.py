"""How much each unit matters: OAMIP and the baselines behind one protocol."""

from oamip_onnx.importance.layerwise import layerwise_scores
from oamip_onnx.importance.logits import find_logits
from oamip_onnx.importance.magnitude import magnitude
from oamip_onnx.importance.oamip import FORMS, oamip
from oamip_onnx.importance.protocol import CRITERIA, Criterion, ImportanceContext, Progress, criterion, score, silent
from oamip_onnx.importance.random_draw import random_draw
from oamip_onnx.importance.response import response_scores
from oamip_onnx.importance.scores import Scores
from oamip_onnx.importance.shift import shift_scores

__all__ = [
    "CRITERIA",
    "FORMS",
    "Criterion",
    "ImportanceContext",
    "Progress",
    "Scores",
    "criterion",
    "find_logits",
    "layerwise_scores",
    "magnitude",
    "oamip",
    "random_draw",
    "response_scores",
    "score",
    "shift_scores",
    "silent",
]
