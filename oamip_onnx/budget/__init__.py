"""Scores and costs → how many and which channels stay."""

from oamip_onnx.budget.costs import costs_of
from oamip_onnx.budget.target import Target, paper_threshold, parse_target
from oamip_onnx.budget.widths import plan_widths, uniform_widths, widths_above

__all__ = ["Target", "costs_of", "paper_threshold", "parse_target", "plan_widths", "uniform_widths", "widths_above"]
