"""One small rule per operator; importing this package fills the table."""

from oamip_onnx.channels.rules import (
    attention,
    axes,
    broadcast,
    convolution,
    movement,
    pinned,
    product,
    quantised,
    recurrent,
    reduction,
    spatial,
)
from oamip_onnx.channels.rules.registry import Family, Rule, all_rules, find_rule

__all__ = [
    "Family",
    "Rule",
    "all_rules",
    "attention",
    "axes",
    "broadcast",
    "convolution",
    "find_rule",
    "movement",
    "pinned",
    "product",
    "quantised",
    "recurrent",
    "reduction",
    "spatial",
]
