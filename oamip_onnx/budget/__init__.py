"""Scores and costs → how many and which channels stay."""

from oamip_onnx.budget.costs import costs_of
from oamip_onnx.budget.counting import CostCounter, WidthPolynomial, total
from oamip_onnx.budget.problem import Budget
from oamip_onnx.budget.program import ChosenWidths, WidthChoices, choose_widths
from oamip_onnx.budget.target import Limit, Target, paper_threshold, parse_target
from oamip_onnx.budget.widths import candidate_widths, first_units, plan_widths, uniform_widths, widths_above

__all__ = [
    "Budget",
    "ChosenWidths",
    "CostCounter",
    "Limit",
    "Target",
    "WidthChoices",
    "WidthPolynomial",
    "candidate_widths",
    "choose_widths",
    "costs_of",
    "first_units",
    "paper_threshold",
    "parse_target",
    "plan_widths",
    "total",
    "uniform_widths",
    "widths_above",
]
