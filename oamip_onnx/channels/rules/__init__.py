"""One small rule per operator; importing this package fills the table."""

from oamip_onnx.channels.rules import broadcast, contraction, movement, reduction, spatial
from oamip_onnx.channels.rules.registry import Family, Rule, all_rules, find_rule

__all__ = [
    "Family",
    "Rule",
    "all_rules",
    "broadcast",
    "contraction",
    "find_rule",
    "movement",
    "reduction",
    "spatial",
]
