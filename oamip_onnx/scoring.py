"""Scores of a prepared model: for a target, along a path of loss weights, or of several subnetworks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from oamip_onnx.budget import Target, paper_threshold, parse_target, widths_above
from oamip_onnx.channels import select_units
from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.errors import UsageError
from oamip_onnx.importance import (
    FrontPoint,
    ImportanceContext,
    OamipSettings,
    Scores,
    Subnetwork,
    subnetworks,
    walk,
    with_note,
)
from oamip_onnx.importance import score as score_units
from oamip_onnx.judging import loss_after_repair
from oamip_onnx.planning import Plan, Planner, alignment_of
from oamip_onnx.preparation import Prepared, require_groups
from oamip_onnx.progress import Progress
from oamip_onnx.solvers import SolverOptions
from oamip_onnx.tasks import TaskOptions, default_cache

# The importances that are OAMIP's where no widths are planned.
_OAMIP = frozenset({"auto", "oamip"})


def score(prepared: Prepared, config: PruneConfig, progress: Progress | None = None) -> tuple[Scores, Plan]:
    """Return the importance of every unit, and the widths that the target asks for.

    Where the settings leave open whether widths are uniform or chosen by the program, units are scored for both, and
    what loses less after the repair is taken.

    Raises
    ------
    SolverError, TargetError, UnsupportedOperatorError
        If a program has no solution, the target cannot be reached, or a form does not fit the model.
    UsageError
        If the target is a threshold and the importance is not OAMIP's, or it limits the drop of a metric.
    """
    _check_ranks(config)
    require_groups(prepared.model, prepared.analysis)
    target = parse_target(config.target)
    if target.kind == "max-drop":
        raise UsageError(f"The target {target} is found by pruning; give oamip prune for it, or a target of costs.")
    if target.kind == "threshold":
        _check_comparable(target, config.importance)
        scores = score_units(config.importance, importance_context(prepared, config, None, progress))
        return scores, _above(prepared, config, scores)
    plans = planner(prepared, config, progress).plans(target)
    return best_plan(prepared, config, plans, progress)


def planner(prepared: Prepared, config: PruneConfig, progress: Progress | None = None) -> Planner:
    """Return what plans the widths of a run."""
    return Planner(prepared, config, importance_context(prepared, config, None, progress))


def best_plan(
    prepared: Prepared,
    config: PruneConfig,
    plans: Sequence[Plan],
    progress: Progress | None = None,
    given: Scores | None = None,
) -> tuple[Scores, Plan]:
    """Return the plan whose units lose least after the repair, and their scores.

    Parameters
    ----------
    prepared, config
        The model and the settings.
    plans
        The plans, at least one.
    progress
        Called with each step of scoring.
    given
        Scores, in place of scoring.

    Raises
    ------
    SolverError, UnsupportedOperatorError
        As `score` does.
    """
    judge = loss_after_repair(prepared, config)
    found: list[tuple[Scores, Plan]] = []
    for plan in reversed(plans):
        scores = given or score_units(config.importance, importance_context(prepared, config, plan.widths, progress))
        found.append((scores, plan))
        # What the first comparison has decided need not be asked for other widths.
        config = config if given else settled(config, scores)
    if len(found) == 1:
        return _with_plan(*found[0])
    losses = [judge(select_units(prepared.analysis, plan.widths, scores.values)) for scores, plan in found]
    best, other = sorted(range(len(found)), key=lambda number: losses[number])[:2]
    after = "without a repair" if config.repair == "none" else "after the repair"
    said = (
        f"Of the widths, {found[best][1]} were taken: {after} their loss is {losses[best]:.4f}, that of "
        f"{found[other][1]} {losses[other]:.4f}."
    )
    scores, plan = found[best]
    return _with_plan(with_note(scores, said), plan)


def settled(config: PruneConfig, scores: Scores) -> PruneConfig:
    """Return the settings with the importance, and the form, that gave scores."""
    return make_config(
        config.model_dump(), {"importance": scores.criterion, **({"form": scores.form} if scores.form else {})}
    )


def _with_plan(scores: Scores, plan: Plan) -> tuple[Scores, Plan]:
    """Return the scores with the program of the plan among those that were solved."""
    solved = () if plan.result is None else (plan.result,)
    return replace(scores, solver=(*solved, *scores.solver)), plan


def _check_ranks(config: PruneConfig) -> None:
    if config.lossless:
        raise UsageError("Lossless removal proves and needs no scores; use oamip prune --lossless.")


def planned_widths(prepared: Prepared, config: PruneConfig) -> tuple[int, ...] | None:
    """Return the uniform widths for a target before any score is known; None for a threshold.

    Raises
    ------
    TargetError
        If the target cannot be reached.
    """
    target = parse_target(config.target)
    return None if target.kind == "threshold" else planner(prepared, config).uniform(target).widths


def plan_for(
    prepared: Prepared, config: PruneConfig, scores: Scores, progress: Progress | None = None
) -> tuple[Scores, Plan]:
    """Return given scores with the plan that the target asks for.

    Raises
    ------
    TargetError
        If the target cannot be reached.
    UsageError
        If the target is a threshold and the scores are not OAMIP's.
    """
    target = parse_target(config.target)
    if target.kind != "threshold":
        plans = planner(prepared, config, progress).plans(target)
        return best_plan(prepared, config, plans, progress, scores)
    _check_comparable(target, scores.criterion)
    return scores, _above(prepared, config, scores)


def _above(prepared: Prepared, config: PruneConfig, scores: Scores) -> Plan:
    """Return the widths of what scores above the threshold of the target."""
    threshold = threshold_of(prepared, parse_target(config.target))
    return Plan(widths_above(prepared.analysis.groups, scores.values, threshold, alignment_of(config)), "threshold")


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
        None if config.repair == "none" else loss_after_repair(prepared, config),
        config.repair == "least-squares",
        prepared.moments,
    )
