"""Scores of a prepared model: for a target, along a path of loss weights, or of several subnetworks."""

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx

from oamip_onnx.budget import Target, paper_threshold, parse_target, plan_widths, widths_above
from oamip_onnx.calibration import ActivationStream, Samples
from oamip_onnx.channels import BoolArray
from oamip_onnx.config import PruneConfig
from oamip_onnx.errors import UsageError
from oamip_onnx.importance import (
    FrontPoint,
    ImportanceContext,
    Judge,
    Loss,
    OamipSettings,
    Scores,
    Subnetwork,
    loss_of,
    subnetworks,
    walk,
)
from oamip_onnx.importance import score as score_units
from oamip_onnx.model import Array
from oamip_onnx.preparation import Prepared, require_groups
from oamip_onnx.progress import Progress
from oamip_onnx.repair import HELD_OUT_SHARE, REPAIRS, RepairContext, Repaired
from oamip_onnx.solvers import SolverOptions
from oamip_onnx.surgery import cut
from oamip_onnx.tasks import TaskOptions, default_cache

# The importances that are OAMIP's where no widths are planned.
_OAMIP = frozenset({"auto", "oamip"})


def score(prepared: Prepared, config: PruneConfig, progress: Progress | None = None) -> tuple[Scores, tuple[int, ...]]:
    """Return the importance of every unit, and the widths that the target asks for.

    Raises
    ------
    SolverError, TargetError, UnsupportedOperatorError
        If a program has no solution, the target cannot be reached, or a form does not fit the model.
    UsageError
        If the target is a threshold and the importance is not OAMIP's.
    """
    _check_ranks(config)
    require_groups(prepared.model, prepared.analysis)
    target = parse_target(config.target)
    widths = planned_widths(prepared, config)
    if widths is not None:
        return score_units(config.importance, importance_context(prepared, config, widths, progress)), widths
    _check_comparable(target, config.importance)
    scores = score_units(config.importance, importance_context(prepared, config, None, progress))
    return scores, widths_for(prepared, config, scores)


def _check_ranks(config: PruneConfig) -> None:
    if config.lossless:
        raise UsageError("Lossless removal proves and needs no scores; use oamip prune --lossless.")


def planned_widths(prepared: Prepared, config: PruneConfig) -> tuple[int, ...] | None:
    """Return the widths that the target asks for before any score is known; None for a threshold.

    Raises
    ------
    TargetError
        If the target cannot be reached.
    """
    target = parse_target(config.target)
    if target.kind == "threshold":
        return None
    return plan_widths(prepared.model, prepared.analysis, target, config.round_to, prepared.original)


def widths_for(prepared: Prepared, config: PruneConfig, scores: Scores) -> tuple[int, ...]:
    """Return the widths that the target asks for, given the scores.

    Raises
    ------
    TargetError
        If the target cannot be reached.
    UsageError
        If the target is a threshold and the scores are not OAMIP's.
    """
    widths = planned_widths(prepared, config)
    if widths is not None:
        return widths
    target = parse_target(config.target)
    _check_comparable(target, scores.criterion)
    threshold = threshold_of(prepared, target)
    return widths_above(prepared.analysis.groups, scores.values, threshold, config.round_to)


def _check_comparable(target: Target, importance: str) -> None:
    if importance not in _OAMIP:
        raise UsageError(
            f"The target {target} compares OAMIP's scores; the importance {importance} needs ratio=, macs= or params=."
        )


def threshold_of(prepared: Prepared, target: Target) -> float:
    """Return the threshold that a target names, or the paper's for a network like this."""
    return paper_threshold(prepared.model) if math.isnan(target.value) else target.value


def path(prepared: Prepared, config: PruneConfig, count: int, progress: Progress | None = None) -> Iterator[FrontPoint]:
    """Yield the front between the share of units kept and the loss; see `oamip_onnx.importance.walk`.

    Raises
    ------
    SolverError, UnsupportedOperatorError, UsageError
        As the programs do, or for fewer than two points.
    """
    _check_ranks(config)
    if config.importance not in _OAMIP:
        raise UsageError(f"A path walks OAMIP's weight of the loss; the importance {config.importance} has none.")
    require_groups(prepared.model, prepared.analysis)
    return walk(importance_context(prepared, config, None, progress), count)


def many(prepared: Prepared, config: PruneConfig, count: int, progress: Progress | None = None) -> list[Subnetwork]:
    """Return several distinct subnetworks for the target; see `oamip_onnx.importance.subnetworks`.

    Raises
    ------
    SolverError, TargetError, UnsupportedOperatorError, UsageError
        As `score` does, or if the target is a threshold.
    """
    _check_ranks(config)
    require_groups(prepared.model, prepared.analysis)
    context = importance_context(prepared, config, planned_widths(prepared, config), progress)
    return subnetworks(context, config.importance, count)


def importance_context(
    prepared: Prepared, config: PruneConfig, widths: tuple[int, ...] | None, progress: Progress | None = None
) -> ImportanceContext:
    """Return what the importance criteria work on under the settings of a run."""
    settings = OamipSettings(
        form=config.form,
        images=config.images,
        rounds=config.rounds,
        exchanges=config.exchanges,
        by_class=config.by_class,
        head=config.head,
        loss_weight=config.loss_weight,
        reweightings=config.reweightings,
        anchor=config.anchor,
        binary_scores=config.binary_scores,
        tighten_seconds=config.tighten_seconds,
        paper=config.preset == "paper",
        certificates=config.certificates,
        solver=SolverOptions(name=config.solver, nodes=config.solver_nodes, seconds=config.solver_seconds),
        tasks=TaskOptions(config.workers, config.scheduler, default_cache() if config.cache else None),
    )
    return ImportanceContext(
        prepared.model,
        prepared.analysis,
        prepared.samples,
        prepared.options,
        widths,
        config.seed,
        prepared.logits,
        progress,
        settings,
        after_repair(prepared, config),
    )


def after_repair(prepared: Prepared, config: PruneConfig) -> Judge | None:
    """Return the loss that a subset has on held-out samples after the repair of a run; None without a repair."""
    if config.repair == "none":
        return None
    _, held_out = prepared.samples.split(HELD_OUT_SHARE)

    @cache
    def loss() -> Loss:
        original = _values(prepared, prepared.model.proto, held_out)
        return loss_of(original.shape, original)

    # The winner of one comparison enters the next.
    known: dict[bytes, float] = {}

    def judge(kept: BoolArray) -> float:
        key = kept.tobytes()
        if key not in known:
            narrow = cut(prepared.model, prepared.analysis, kept)
            proto = repaired(prepared, config, kept, narrow).proto
            known[key] = loss()(loss().read(_values(prepared, proto, held_out)))
        return known[key]

    return judge


def repaired(prepared: Prepared, config: PruneConfig, kept: BoolArray, narrow: onnx.ModelProto) -> Repaired:
    """Return the cut model after the repair that the settings name."""
    context = RepairContext(
        prepared.model,
        prepared.analysis,
        kept,
        narrow,
        prepared.samples,
        prepared.options,
        config.seed,
        config.memory_limit,
    )
    return REPAIRS[config.repair](context)


def _values(prepared: Prepared, proto: onnx.ModelProto, samples: Samples) -> Array:
    """Return what a model computes of the tensor that losses are taken of."""
    stream = ActivationStream(proto, [prepared.logits], prepared.options)
    return np.concatenate([batch[prepared.logits] for batch in stream.batches(samples)])
