"""What is trained again: subnetworks from the weights before any training, and subnetworks on another data set."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from oamip_onnx import transfer

from .networks import RECIPES, Data
from .plan import REFERENCE, Make, Measure, Plan, Row

# Units that are chosen before any training, and those that methods keep in the trained network.
BEFORE = ("random", "snip")
REWOUND = ("magnitude", "oamip-paper", "oamip-rounds")
SNIP = (REFERENCE, *BEFORE, *REWOUND)

# Share of the parameters that a subnetwork takes to another data set. It starts from the weights that its units had, or
# from what the repair has made of them; units of all layers are removed, or all feature maps are kept.
HALF = 0.5
MAPS_KEPT = ", feature maps kept"
TRANSFERRED = (REFERENCE, "oamip", "random", "oamip, repaired", f"oamip{MAPS_KEPT}", f"random{MAPS_KEPT}")
WITHOUT_MAPS = tuple(method for method in TRANSFERRED if not method.endswith(MAPS_KEPT))

# Training from the first weights, or on other data, is a training, and takes batch statistics as one.
TRAINING = {"loss": "labels", "batch_norm": "train", "threads": 1, "device": "cpu"}


def schedule(network: str, data: Data, epochs: int | None) -> dict[str, Any]:
    """Return the settings of a training: the recipe's passes and learning rate, without an early stop."""
    recipe = RECIPES[network]
    passes = recipe.passes(data) if epochs is None else epochs
    return {**TRAINING, "epochs": passes, "patience": passes, "learning_rate": recipe.peak_learning_rate}


def snip_rows(plan: Plan, network: str, data: Data) -> Iterator[tuple[Row, Measure]]:
    """Yield the rows of subnetworks that are trained from the first weights: by SNIP, by OAMIP and at random."""
    settings = schedule(network, data, plan.epochs)
    for run in range(plan.runs):
        case = plan.maker(network, data, run)
        initial = plan.maker(network, data, run, is_trained=False)
        for method in plan.chosen(SNIP):
            wanted = {**plan.keys("snip", network, data, run), "method": method}
            yield wanted, partial(_from_initial, case, initial, method, RECIPES[network].goal, settings)


def _from_initial(trained: Make, initial: Make, method: str, goal: float, settings: dict[str, Any]) -> Row:
    """Return the accuracy of a subnetwork that is trained from the initial weights, at equal shares of every layer."""
    first = initial()
    if method == REFERENCE:
        return {"removed": 0.0, "trained": first.tuned(first.prepared.original.proto, **settings)}
    widths = first.widths(goal)
    kept, _ = (first if method in BEFORE else trained()).kept(method, widths)
    accuracy = first.tuned(first.narrow(kept), **settings)
    return {"widths": list(widths), "removed": first.removed(kept), "trained": accuracy}


def transfer_rows(plan: Plan, network: str, data: Data) -> Iterator[tuple[Row, Measure]]:
    """Yield the rows of subnetworks that are found on one data set and trained on another of the same shape."""
    methods = TRANSFERRED if RECIPES[network].has_feature_maps else WITHOUT_MAPS
    for target in plan.targets:
        if target.name == data.name or target.shape != data.shape:
            continue
        settings = schedule(network, target, plan.epochs)
        for run in range(plan.runs):
            case = plan.maker(network, data, run)
            base = {**plan.keys("transfer", network, data, run), "target": target.name}
            for method in methods:
                wanted = {**base, "trained_again_on": len(target.train.labels), "method": method}
                yield wanted, partial(_transferred, case, target, method, settings)


def _transferred(source: Make, target: Data, method: str, settings: dict[str, Any]) -> Row:
    """Return the accuracy on another data set of a subnetwork, of random units of its widths, or of the whole."""
    case = source()
    original = case.prepared.original
    kept, proto = np.ones(case.prepared.analysis.unit_count, np.bool_), original.proto
    if method != REFERENCE:
        feature_maps = [node.name for node in original.graph.node if node.op_type == "Conv"]
        ignored = feature_maps if method.endswith(MAPS_KEPT) else []
        repair = "least-squares" if method.endswith("repaired") else "none"
        kept, proto = case.pruned(HALF, importance="oamip", repair=repair, ignore=ignored)
    if method.startswith("random"):
        kept = case.at_random(case.widths_of(kept), 0)
        proto = case.narrow(kept)
    (name,) = original.input_names
    found = transfer(
        proto,
        {name: target.train.images, "labels": target.train.labels},
        evaluation={name: target.test.images, "labels": target.test.labels},
        seed=case.run,
        **settings,
    )
    row = {"widths": list(case.widths_of(kept)), "removed": case.removed(kept)}
    return row | {"trained": found.report.networks[0].mean}
