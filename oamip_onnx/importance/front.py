"""Many subnetworks: a walk along the weight of the loss, and several draws of the images.

With the sparsity term in place of planned widths, the weight λ of the loss says how many units a program keeps: one
solve a weight gives the front between the share kept and the loss. Different images give different subnetworks of the
same widths, which is what the paper calls multiple lucky subnetworks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from oamip_onnx.channels import BoolArray, select_units
from oamip_onnx.errors import UsageError
from oamip_onnx.importance.measuring import IMAGES, Responses, select_samples
from oamip_onnx.importance.oamip import without_widths
from oamip_onnx.importance.protocol import ImportanceContext, score
from oamip_onnx.importance.scores import Scores

# A unit stays where a program scores it above this.
KEPT_ABOVE = 0.5

# Weights of the front's ends: from programs that keep next to nothing to such that keep all that matters.
_LEAST_WEIGHT, _LARGEST_WEIGHT = 0.03, 3000.0

# Draws of images that are tried for each further subnetwork before there are said to be no more.
_DRAWS = 3

# Draws differ in which samples are left out, whether a program takes all of the others or chooses among them.
_DRAWN_SHARE = 0.7


@dataclass(frozen=True)
class FrontPoint:
    """One solve of the front.

    Attributes
    ----------
    loss_weight
        λ.
    scores
        The scores at this weight.
    kept
        Which units score above `KEPT_ABOVE`, shape (units,).
    program_loss
        The loss that the programs expect at their fractional scores, less the original's; the mean over programs.
    measured_loss
        The loss of the masked model with `kept`, towards the original, on as many samples as the response form takes.
    """

    loss_weight: float
    scores: Scores
    kept: BoolArray
    program_loss: float
    measured_loss: float

    @property
    def share_kept(self) -> float:
        """Share of all units that is kept."""
        return float(self.kept.mean())


@dataclass(frozen=True)
class Subnetwork:
    """One of several subnetworks of the same widths.

    Attributes
    ----------
    seed
        Seed of the draw of images.
    scores
        The scores.
    kept
        Which units stay, shape (units,).
    measured_loss
        Loss of the masked model towards the original, on samples that all subnetworks share.
    overlap
        Share of the first subnetwork's units that this one keeps too.
    """

    seed: int
    scores: Scores
    kept: BoolArray
    measured_loss: float
    overlap: float


def walk(context: ImportanceContext, count: int) -> Iterator[FrontPoint]:
    """Yield one point a weight of the loss, from the smallest to the largest.

    Parameters
    ----------
    context
        The model, its samples, the settings; planned widths are not looked at.
    count
        Number of points, at least 2.

    Raises
    ------
    UsageError
        For fewer points.
    SolverError, UnsupportedOperatorError
        As the form does.
    """
    if count < 2:
        raise UsageError(f"A path has at least 2 points, not {count}.")
    measured = Responses(context, select_samples(context, context.oamip.images or IMAGES))
    weights = [float(weight) for weight in np.geomspace(_LEAST_WEIGHT, _LARGEST_WEIGHT, count)]
    for number, (weight, scores) in enumerate(zip(weights, without_widths(context, weights), strict=True)):
        kept = _at_least_minimum(context, scores)
        # Without planned widths every form says what it expects.
        expected = float("nan") if scores.expected_loss is None else scores.expected_loss
        yield FrontPoint(weight, scores, kept, expected, measured.loss(measured(kept)))
        context.report("path", number + 1, count)


def subnetworks(context: ImportanceContext, criterion: str, count: int) -> list[Subnetwork]:
    """Return up to `count` distinct subnetworks of the planned widths, one a draw of the images.

    Raises
    ------
    UsageError
        If the context plans no widths, or for fewer than one.
    SolverError, UnsupportedOperatorError
        As the criterion does.
    """
    if count < 1:
        raise UsageError(f"The number of subnetworks is {count}; give 1 or more.")
    widths = context.planned("many-subnetworks")
    measured = Responses(context, select_samples(context, context.oamip.images or IMAGES))
    found: list[Subnetwork] = []
    for draw in range(_DRAWS * count):
        seed = context.seed + draw
        scores = score(criterion, _drawn(context, seed) if draw else context)
        kept = select_units(context.analysis, widths, scores.values)
        if not any((kept == other.kept).all() for other in found):
            overlap = float((kept & found[0].kept).sum() / max(kept.sum(), 1)) if found else 1.0
            found.append(Subnetwork(seed, scores, kept, measured.loss(measured(kept)), overlap))
        context.report("subnetworks", len(found), count)
        if len(found) == count:
            break
    return found


def _drawn(context: ImportanceContext, seed: int) -> ImportanceContext:
    """Return the context with another draw of the samples."""
    samples = context.samples
    share = max(1, round(_DRAWN_SHARE * samples.count))
    rows = np.sort(np.random.default_rng(seed).permutation(samples.count)[:share])
    return replace(context, samples=samples.take(rows), seed=seed)


def _at_least_minimum(context: ImportanceContext, scores: Scores) -> BoolArray:
    """Return the units above `KEPT_ABOVE`, with the best of a group where it has to keep more."""
    widths = []
    for group in context.analysis.groups:
        above = scores.values[group.units] > KEPT_ABOVE
        most = max(int(above[members].sum()) for members in group.members()) * group.block_count
        widths.append(min(max(most, group.minimum_width), group.width))
    return select_units(context.analysis, widths, scores.values)
