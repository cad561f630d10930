"""The fewest operations with which a metric drops by no more than the user allows."""

from dataclasses import dataclass
from math import sqrt

from oamip_onnx.budget import Limit, Target
from oamip_onnx.calibration import Samples
from oamip_onnx.channels import select_units
from oamip_onnx.config import PruneConfig
from oamip_onnx.errors import TargetError
from oamip_onnx.importance import Scores, with_note
from oamip_onnx.judging import repaired
from oamip_onnx.planning import Plan
from oamip_onnx.preparation import Prepared
from oamip_onnx.progress import Progress
from oamip_onnx.scoring import best_plan, planner, settled
from oamip_onnx.surgery import cut
from oamip_onnx.verify import Metric, comparison_by

# Halvings of the interval of shares, on a logarithmic scale: of a 50-fold interval, these leave 6 %.
_STEPS = 6

# A figure that equals the limit but for rounding keeps it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class _Trial:
    """What was found at one share of the operations."""

    share: float
    drop: float
    scores: Scores
    plan: Plan


def smallest_within_drop(
    prepared: Prepared,
    config: PruneConfig,
    limit: Limit,
    metric: Metric,
    samples: Samples,
    progress: Progress | None = None,
) -> tuple[Scores, Plan]:
    """Return scores and widths with about the fewest operations whose metric drops by no more than a limit.

    The share of the operations is searched by halving; at every share units are scored, cut and repaired, and the
    metric of what results is measured on all samples.

    Parameters
    ----------
    prepared, config
        The model, its samples, and the settings.
    limit
        The limit, of kind ``max-drop``.
    metric, samples
        What may drop, and where it is measured.
    progress
        Called with each step.

    Raises
    ------
    TargetError
        If no share that was tried keeps the limit; the message says what was reached.
    UsageError
        If the metric raises or returns no number.
    """
    plans = planner(prepared, config, progress)
    compared = comparison_by(metric, prepared.original.proto, prepared.compared, samples, prepared.options)
    trials: list[_Trial] = []

    def tried(share: float, config: PruneConfig) -> _Trial:
        target = Target((Limit("macs", share, is_share=True),))
        plan = plans.uniform(target) if config.widths == "uniform" else plans.program(target)
        scores, plan = best_plan(prepared, config, [plan], progress)
        kept = select_units(prepared.analysis, plan.widths, scores.values)
        proto = repaired(prepared, config, kept, cut(prepared.model, prepared.analysis, kept)).proto
        before, after = compared(proto)
        return _Trial(share, before - after, scores, plan)

    low, high = min(plans.least_share("macs") * (1 + _ROUNDING), 1.0), 1.0
    for _ in range(_STEPS):
        share = sqrt(low * high)
        trial = tried(share, config)
        trials.append(trial)
        config = settled(config, trial.scores)
        low, high = (low, share) if trial.drop <= limit.value + _ROUNDING else (share, high)
    kept_limit = [trial for trial in trials if trial.drop <= limit.value + _ROUNDING]
    if not kept_limit:
        least = min(trials, key=lambda trial: trial.drop)
        raise TargetError(
            f"The target {limit} cannot be reached; the smallest drop of the {metric.name} that was found is "
            f"{least.drop:.4f}, at {least.share:.1%} of the MACs."
        )
    best = min(kept_limit, key=lambda trial: trial.share)
    said = f"Of {len(trials)} shares of the MACs, {best.share:.1%} is the smallest that keeps {limit}: "
    said += f"the {metric.name} drops by {best.drop:.4f}"
    beyond = [trial for trial in trials if trial.share < best.share]
    if beyond:
        next_one = max(beyond, key=lambda trial: trial.share)
        said += f", and at {next_one.share:.1%} by {next_one.drop:.4f}"
    return with_note(best.scores, f"{said}."), best.plan
