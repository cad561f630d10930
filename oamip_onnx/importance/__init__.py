"""How much each unit matters: OAMIP and the baselines behind one protocol."""

from oamip_onnx.importance.automatic import automatic
from oamip_onnx.importance.choosing import with_note
from oamip_onnx.importance.damage import damage_curves
from oamip_onnx.importance.front import FrontPoint, Subnetwork, subnetworks, walk
from oamip_onnx.importance.gradients import fisher, snip, taylor
from oamip_onnx.importance.joint import authors_options, joint_scores
from oamip_onnx.importance.layerwise import layerwise_scores
from oamip_onnx.importance.logits import Loss, find_logits, loss_of
from oamip_onnx.importance.moments import MomentStore
from oamip_onnx.importance.oamip import FORMS, oamip
from oamip_onnx.importance.protocol import (
    CRITERIA,
    Criterion,
    ImportanceContext,
    Judge,
    criterion,
    score,
)
from oamip_onnx.importance.random_draw import random_draw
from oamip_onnx.importance.reconstruction import reconstruction
from oamip_onnx.importance.response import response_scores
from oamip_onnx.importance.scores import Scores
from oamip_onnx.importance.settings import OamipSettings
from oamip_onnx.importance.single_removal import single_removal
from oamip_onnx.importance.weights import activation, magnitude

__all__ = [
    "CRITERIA",
    "FORMS",
    "Criterion",
    "FrontPoint",
    "ImportanceContext",
    "Judge",
    "Loss",
    "MomentStore",
    "OamipSettings",
    "Scores",
    "Subnetwork",
    "activation",
    "authors_options",
    "automatic",
    "criterion",
    "damage_curves",
    "find_logits",
    "fisher",
    "joint_scores",
    "layerwise_scores",
    "loss_of",
    "magnitude",
    "oamip",
    "random_draw",
    "reconstruction",
    "response_scores",
    "score",
    "single_removal",
    "snip",
    "subnetworks",
    "taylor",
    "walk",
    "with_note",
]
