"""Units whose removal changes nothing: proven inactive, or always active, for every input in a box.

Removing inactive units and merging always active ones into the next layer follows Serra, Kumar, Ramalingam (2020),
"Lossless Compression of Deep Neural Networks". In exact arithmetic the results are equal; ONNX Runtime rounds, so that
a unit that is proven to reach 0 exactly may come out as a rounding error above it, and what removal changes is of that
size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oamip_onnx.certify.units import UnitCells
from oamip_onnx.channels import BoolArray, ChannelAnalysis, ChannelGroup
from oamip_onnx.errors import UsageError
from oamip_onnx.formulation.bounds import box_bounds
from oamip_onnx.formulation.network import Network
from oamip_onnx.formulation.program import FloatArray
from oamip_onnx.model import Model
from oamip_onnx.tightening.evidence import Evidence
from oamip_onnx.tightening.tighten import LARGEST_RELAXATION, Method, Run, Tightened
from oamip_onnx.tightening.timing import Budget

Box = Mapping[str, npt.ArrayLike]


@dataclass(frozen=True)
class LosslessUnits:
    """What is proven about the units of a model, for every input in a box.

    Attributes
    ----------
    inactive
        Whether every contraction reads zero from the unit; shape (units,).
    always_active
        Whether none of the unit's ReLUs ever cuts anything off; shape (units,).
    by_interval, by_linear, by_integer
        Number of units proven either by interval arithmetic, with linear programs, with integer programs.
    undecided
        Number of units that no sample contradicts and nothing proves.
    seconds
        Time spent.
    exhausted
        Whether the budget ended before every open question was answered; with a budget of 0, intervals alone decide.
    notes
        What the user has to know, in sentences.
    """

    inactive: BoolArray
    always_active: BoolArray
    by_interval: int
    by_linear: int
    by_integer: int
    undecided: int
    seconds: float
    exhausted: bool
    notes: tuple[str, ...] = ()


def find_lossless(
    model: Model,
    analysis: ChannelAnalysis,
    network: Network,
    lower: Box,
    upper: Box,
    *,
    seconds: float,
    seed: int = 0,
    samples: Mapping[str, npt.NDArray[np.generic]] | None = None,
) -> LosslessUnits:
    """Return the units that are proven inactive or always active over a box of inputs.

    Intervals decide first. Samples and corners of the box then show which units are live, and linear and integer
    programs are spent on the others.

    Parameters
    ----------
    model, analysis, network
        The model, its channels, and its description by `build_network`.
    lower, upper
        Smallest and largest value of every input cell, by input; each broadcasts to the input's per-sample shape.
    seconds
        Wall-clock budget of the linear and integer programs.
    seed
        Seed of the random inputs and of SCIP.
    samples
        Real inputs, where there are any: they show that units are live at once. They only save time.

    Raises
    ------
    UsageError
        If the box lacks an input, is not finite, is empty, or does not fit the input's shape.
    """
    budget = Budget(seconds)
    bounds = box_bounds(network, *_flat_box(analysis, network, lower, upper))
    units = UnitCells(model, analysis, network)
    evidence = Evidence(network, bounds)
    evidence.sample(seed)
    if samples is not None:
        evidence.observe(samples)
    evidence.search(units.targets(bounds, evidence), budget, seed)
    run = Run(network, evidence, budget, units.wanted, seed)
    stages = [units.proven(bounds)]
    for method in (Method.LINEAR, Method.INTEGER):
        result = run.tighten(bounds, method)
        bounds = result.bounds
        stages.append(units.proven(bounds))
    return _summary(stages, np.logical_or(*units.possible(evidence)), result, budget)


def _summary(
    stages: Sequence[tuple[BoolArray, BoolArray]], possible: BoolArray, last: Tightened, budget: Budget
) -> LosslessUnits:
    """Return the record of what intervals, linear and integer programs prove one after the other."""
    counts = [int((inactive | active).sum()) for inactive, active in stages]
    inactive, active = stages[-1]
    undecided = int((possible & ~inactive & ~active).sum())
    exhausted = last.exhausted and undecided > 0
    notes = []
    if exhausted and budget.seconds <= 0:
        notes.append(f"Without time for programs, intervals alone decided; {undecided} units are undecided.")
    elif exhausted:
        notes.append(f"The budget of {budget.seconds:g} s ended with {undecided} units undecided.")
    if last.skipped:
        notes.append(f"{last.skipped} programs with more than {LARGEST_RELAXATION:,} coefficients were left out.")
    return LosslessUnits(
        inactive,
        active,
        by_interval=counts[0],
        by_linear=counts[1] - counts[0],
        by_integer=counts[2] - counts[1],
        undecided=undecided,
        seconds=budget.spent,
        exhausted=exhausted,
        notes=tuple(notes),
    )


def kept_units(analysis: ChannelAnalysis, removable: BoolArray) -> BoolArray:
    """Return which units stay when as many removable ones go as the groups allow, shape (units,).

    Blocks keep equally many units, and every group its minimum width; of those that could go, the last stay.

    Parameters
    ----------
    analysis
        The groups.
    removable
        Whether each unit may go, shape (units,).
    """
    kept = np.ones(analysis.unit_count, np.bool_)
    for group in analysis.groups:
        members = group.members()
        own = removable[group.units]
        count = min(*(int(own[block].sum()) for block in members), _most_removed(group))
        for block in members:
            kept[group.first_unit + block[own[block]][:count]] = False
    return kept


def _most_removed(group: ChannelGroup) -> int:
    """Return how many units each block can lose."""
    return (group.width - group.minimum_width) // group.block_count


def _flat_box(
    analysis: ChannelAnalysis, network: Network, lower: Box, upper: Box
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Return the bounds of every input that the network reads, shape (1, cells)."""
    low, high = {}, {}
    for name in network.inputs:
        if name not in lower or name not in upper:
            raise UsageError(f"The input {name!r} has no range; give the smallest and the largest value it can have.")
        low[name], high[name] = (_flat(analysis, name, side[name]) for side in (lower, upper))
        if not (np.isfinite(low[name]).all() and np.isfinite(high[name]).all()):
            raise UsageError(
                f"The range of the input {name!r} is not finite; units can be proven over a bounded range only."
            )
        if (low[name] > high[name]).any():
            raise UsageError(f"The range of the input {name!r} is empty: its lower end is above its upper end.")
    return low, high


def _flat(analysis: ChannelAnalysis, name: str, values: npt.ArrayLike) -> FloatArray:
    shape = analysis.types[name].shape[1:]
    array = np.asarray(values, np.float64)
    try:
        return np.broadcast_to(array, shape).reshape(1, -1).astype(np.float64)
    except ValueError as error:
        raise UsageError(
            f"The range of the input {name!r} has the shape {array.shape}, which does not fit the shape {shape} of one "
            "sample."
        ) from error
