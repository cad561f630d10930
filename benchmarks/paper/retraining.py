"""What is trained again: subnetworks from the weights before any training, and subnetworks on another data set."""

import time
from collections.abc import Iterator
from functools import cache
from typing import Any

from oamip_onnx import prune, transfer

from .networks import RECIPES, Data, trained
from .plan import REFERENCE, Measure, Plan, Row
from .subnetworks import Case, case_of, drawn

# Units that are chosen before any training, and those that methods keep in the trained network.
BEFORE = ("random", "snip")
REWOUND = ("magnitude", "oamip-paper", "oamip-rounds")
SNIP = (REFERENCE, *BEFORE, *REWOUND)

# Share of the parameters that a subnetwork takes to another data set.
TRANSFERRED = 0.5
NETWORKS = ("subnetwork", "random", "unpruned")

# Training from the first weights, or on other data, is a training, and takes batch statistics as one.
TRAINING = {"loss": "labels", "batch_norm": "train", "threads": 1, "device": "cpu"}


def schedule(network: str, data: Data, epochs: int | None) -> dict[str, Any]:
    """Return the settings of a training: the recipe's passes and learning rate, without an early stop."""
    recipe = RECIPES[network]
    passes = recipe.passes(data) if epochs is None else epochs
    return {**TRAINING, "epochs": passes, "patience": passes, "learning_rate": recipe.peak_learning_rate}


def snip_rows(plan: Plan, network: str, data: Data) -> Iterator[tuple[Row, Measure]]:
    """Yield the rows of subnetworks that are trained from the first weights: by SNIP, by OAMIP and at random."""
    for run in range(plan.runs):
        case = cache(lambda run=run: plan.case(network, data, run))
        initial = cache(lambda run=run: _initial(plan, network, data, run))
        for method in plan.chosen(SNIP):
            wanted = {**plan.keys("snip", network, data, run), "method": method}
            settings = schedule(network, data, plan.epochs)
            yield (
                wanted,
                lambda case=case, initial=initial, method=method, settings=settings: _from_initial(
                    case(), initial(), method, RECIPES[network].goal, settings
                ),
            )


def _initial(plan: Plan, network: str, data: Data, run: int) -> Case:
    """Return a network before any training, with the samples that the trained one has."""
    path = trained(network, data, run, plan.work, epochs=0)
    return case_of(path, data, run, drawn(data, plan.samples, run))


def _from_initial(case: Case, initial: Case, method: str, goal: float, settings: dict[str, Any]) -> Row:
    """Return the accuracy of a subnetwork that is trained from the initial weights, at equal shares of every layer."""
    began = time.perf_counter()
    if method == REFERENCE:
        return {"removed": 0.0, "trained": initial.tuned(initial.prepared.original.proto, **settings)}
    widths = case.widths(goal)
    kept, found = (initial if method in BEFORE else case).kept(method, widths)
    accuracy = initial.tuned(initial.narrow(kept), **settings)
    seconds = {"seconds": found.seconds, "training_seconds": time.perf_counter() - began - found.seconds}
    return {"widths": list(widths), "removed": initial.removed(kept), "trained": accuracy, **seconds}


def transfer_rows(plan: Plan, network: str, data: Data) -> Iterator[tuple[Row, Measure]]:
    """Yield the rows of subnetworks that are found on one data set and trained on another of the same shape."""
    for target in plan.targets:
        if target.name == data.name or target.shape != data.shape:
            continue
        for run in range(plan.runs):
            wanted = {**plan.keys("transfer", network, data, run), "target": target.name}
            wanted |= {"trained_again_on": len(target.train.labels)}
            yield wanted, lambda target=target, run=run: _transferred(plan, network, data, target, run)


def _transferred(plan: Plan, network: str, source: Data, target: Data, run: int) -> Row:
    """Return the accuracies on another data set of a subnetwork, of random units of its widths, and of the whole."""
    path = trained(network, source, run, plan.work, epochs=plan.epochs)
    settings: dict[str, Any] = {"round_to": 1, "threads": 1, "workers": 1, "cache": False, "bench": False, "seed": run}
    rows = drawn(source, plan.samples, run)
    samples = {"x": source.train.images[rows], "labels": source.train.labels[rows]}
    small = prune(path, samples, importance="oamip", target=f"params={TRANSFERRED}", **settings)
    found = transfer(
        small.model,
        {"x": target.train.images, "labels": target.train.labels},
        evaluation={"x": target.test.images, "labels": target.test.labels},
        original=path,
        result=small.report,
        seed=run,
        **schedule(network, target, plan.epochs),
    )
    own = {network.name: network for network in found.report.networks}
    removed = 1 - own["subnetwork"].parameters / own["unpruned"].parameters
    widths = [group.after for group in small.report.groups]
    return {"widths": widths, "removed": removed, **{name: own[name].mean for name in NETWORKS}}
