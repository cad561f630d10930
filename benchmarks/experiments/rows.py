"""What is measured: one row a network, run, selection and method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from oamip_onnx.channels import BoolArray, select_units

from .networks import RECIPES, Data, trained
from .plan import REFERENCE, Make, Measure, Plan, Row
from .subnetworks import REVERSED, Case, Found, case_of, one_a_class

# How many units of every layer stay: what scores above the paper's threshold, the same share of every layer, or as many
# as `prune` plans for the same share of the parameters.
THRESHOLD, EQUAL, PLANNED = "threshold", "equal", "planned"

CONTROLS = (REFERENCE, "random", "critical", "magnitude")
# What the paper compares, at its own number of units.
PAPERS = ("random", "critical", "magnitude", "oamip-paper")
DEFAULT = "reconstruction"
OURS = ("oamip-rounds", "oamip", DEFAULT)
METHODS = (*CONTROLS, "oamip-paper", *OURS)
# The commands `prune` and `finetune` with their defaults, and with more passes.
COMMANDS = {"prune": 5, "prune, 20 epochs": 20}
DECOUPLINGS = ("oamip-paper", "by class", "by layer", "by layer and class", "by layer, linear probe")
TIMED = (*DECOUPLINGS, "oamip-rounds", "oamip")

# Draws whose mean is the masked accuracy of random subnetworks; the first of them is repaired and fine-tuned.
RANDOM_DRAWS = 10

LOSS_WEIGHTS = (1.0, 2.0, 5.0, 10.0, 20.0)


def main_rows(plan: Plan, network: str, data: Data) -> Iterator[tuple[Row, Measure]]:
    """Yield the rows of the main table: the reference, its subnetworks by OAMIP, and those of the controls."""
    for run in range(plan.runs):
        case = plan.maker(network, data, run)
        base = plan.keys("main", network, data, run)
        if REFERENCE in plan.methods:
            yield {**base, "selection": "none", "method": REFERENCE}, partial(_reference, case)
        for selection in (THRESHOLD, EQUAL):
            for method in plan.chosen(METHODS[1:] if selection == EQUAL else PAPERS):
                wanted = {**base, "selection": selection, "method": method}
                if method == "random":
                    wanted["draws"] = RANDOM_DRAWS
                yield wanted, partial(_main_row, case, network, wanted)
        for method in plan.chosen([*COMMANDS]):
            wanted = {**base, "selection": PLANNED, "method": method}
            yield wanted, partial(_pruned_row, case, network, method)


def _reference(make: Make) -> Row:
    """Return the accuracy of the original, and after an epoch of fine-tuning: what fine-tuning alone brings."""
    case = make()
    model = case.prepared.original.proto
    return {"removed": 0.0, "masked": case.masked_accuracy(), "tuned": case.tuned(model)}


def _main_row(make: Make, network: str, wanted: Mapping[str, Any]) -> Row:
    """Return the accuracies of a subnetwork: masked, repaired, fine-tuned, and both."""
    case = make()
    method = str(wanted["method"])
    widths = _widths(case, network, str(wanted["selection"]))
    kept, found = case.kept(method, widths)
    row = {"widths": list(widths), "removed": case.removed(kept), "masked": case.masked_accuracy(kept)}
    if method == "random":
        # A draw differs from another by more than the methods do.
        others = [case.masked_accuracy(case.at_random(widths, draw)) for draw in range(1, RANDOM_DRAWS)]
        row["masked"] = float(np.mean([row["masked"], *others]))
    repaired = case.repaired(kept)
    row["repaired"] = case.accuracy(repaired)
    row["tuned"] = case.tuned(case.narrow(kept))
    if method in OURS:
        row["repaired_tuned"] = case.tuned(repaired)
    if method == DEFAULT:
        row["distilled"] = case.distilled(repaired)
    if method not in REVERSED:
        row |= {"seconds": found.seconds, "solver": found.solver}
    return row


def _pruned_row(make: Make, network: str, method: str) -> Row:
    """Return the accuracies of what the commands make of a network with their own widths."""
    case = make()
    kept, small = case.pruned(RECIPES[network].goal)
    row = {"removed": case.removed(kept), "distilled": case.distilled(small, COMMANDS[method])}
    if method != "prune":
        return row
    row |= {"masked": case.masked_accuracy(kept), "repaired": case.accuracy(small)}
    row |= {"tuned": case.tuned(case.narrow(kept)), "repaired_tuned": case.tuned(small)}
    return row | {"widths": list(case.widths_of(kept))}


def _widths(case: Case, network: str, selection: str) -> tuple[int, ...]:
    if selection == EQUAL:
        return case.widths(RECIPES[network].goal)
    return case.above(case.scores("oamip-paper"))


def decoupling_rows(plan: Plan, network: str, data: Data) -> Iterator[tuple[Row, Measure]]:
    """Return the rows of the authors' program in one, by class and by layer, each at its own and at equal widths."""
    return _by_method(plan, "decoupling", network, data, DECOUPLINGS, _decoupled)


def _by_method(
    plan: Plan, experiment: str, network: str, data: Data, methods: Sequence[str], measure: Callable[..., Row]
) -> Iterator[tuple[Row, Measure]]:
    """Yield one row a run and method, measured on the case, the network and the method."""
    for run in range(plan.runs):
        case = plan.maker(network, data, run)
        for method in plan.chosen(methods):
            wanted = {**plan.keys(experiment, network, data, run), "method": method}
            yield wanted, partial(measure, case, network, method)


def _decoupled(make: Make, network: str, method: str) -> Row:
    case = make()
    found = case.scores(method)
    kept, _ = case.kept(method, case.above(found))
    equal, _ = case.kept(method, case.widths(RECIPES[network].goal))
    row = {"removed": case.removed(kept), "masked": case.masked_accuracy(kept), "tuned": case.tuned(case.narrow(kept))}
    row |= {"equal_masked": case.masked_accuracy(equal), "equal_repaired": case.accuracy(case.repaired(equal))}
    return row | {"seconds": found.seconds, "solver": found.solver}


def sensitivity_rows(plan: Plan, network: str, data: Data) -> Iterator[tuple[Row, Measure]]:
    """Yield the rows of the authors' program on other images, one a class drawn at random, and at other λ."""
    base = plan.keys("sensitivity", network, data, 0)
    whole = plan.maker(network, data, 0)
    for draw in range(plan.draws):
        yield {**base, "varied": "images", "value": draw}, partial(_on_other_images, plan, network, data, draw)
    for weight in LOSS_WEIGHTS:
        yield {**base, "varied": "loss weight", "value": weight}, partial(_at_weight, whole, network, weight)


def _on_other_images(plan: Plan, network: str, data: Data, draw: int) -> Row:
    path = trained(network, data, 0, plan.work, epochs=plan.epochs)
    case = case_of(path, data, draw, one_a_class(data, draw), RECIPES[network].program)
    return _sensitive(case, network, case.scores("oamip-paper"))


def _at_weight(make: Make, network: str, weight: float) -> Row:
    case = make()
    return _sensitive(case, network, case.scores("oamip-paper", loss_weight=weight))


def _sensitive(case: Case, network: str, found: Found) -> Row:
    """Return what stays of a network by scores of the authors' program, and the accuracies."""
    kept = _select(case, found.values, case.above(found))
    equal = _select(case, found.values, case.widths(RECIPES[network].goal))
    row = {"removed": case.removed(kept), "masked": case.masked_accuracy(kept), "kept": _numbers(kept)}
    row |= {"equal_masked": case.masked_accuracy(equal), "equal_kept": _numbers(equal)}
    return row | {"units": case.prepared.analysis.unit_count, "seconds": found.seconds, "solver": found.solver}


def _select(case: Case, values: Any, widths: Sequence[int]) -> BoolArray:
    return select_units(case.prepared.analysis, widths, values)


def _numbers(kept: BoolArray) -> list[int]:
    return [int(unit) for unit in np.flatnonzero(kept)]


def times_rows(plan: Plan, network: str, data: Data) -> Iterator[tuple[Row, Measure]]:
    """Return the rows of times: how long the scores of each form take, and how its programs end."""
    return _by_method(plan, "times", network, data, TIMED, _timed)


def _timed(make: Make, network: str, method: str) -> Row:
    case = make()
    found = case.scores(method, case.widths(RECIPES[network].goal))
    return {"seconds": found.seconds, "solver": found.solver}
