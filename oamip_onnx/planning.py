"""How wide each group becomes for a target: by one ratio for all, or by a program over damages and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from oamip_onnx.bench import BenchSettings, compare_latency, measure_alignment
from oamip_onnx.budget import (
    Budget,
    CostCounter,
    Limit,
    Target,
    WidthChoices,
    WidthPolynomial,
    candidate_widths,
    choose_widths,
    costs_of,
    first_units,
    plan_widths,
    total,
)
from oamip_onnx.choices import ALIGNMENTS
from oamip_onnx.config import PruneConfig
from oamip_onnx.errors import TargetError
from oamip_onnx.importance import ImportanceContext, damage_curves
from oamip_onnx.latency import LatencyModel, measure_latency_model
from oamip_onnx.model import count_costs
from oamip_onnx.preparation import Prepared
from oamip_onnx.solvers import SolverResult
from oamip_onnx.surgery import cut
from oamip_onnx.tasks import default_cache

# Times that the program is solved for one target: after each the real cost corrects what the tables allow.
_ROUNDS = 5

# Halvings of the share of the MACs with which a limit on the latency is met.
_MACS_STEPS = 5

# Of a limit on the latency, the share that may stay unused without another round.
_UNUSED = 0.03

# A corrected limit lies this much below what the correction asks for.
_MARGIN = 1e-3

# What the file says about its making takes less than this.
_METADATA_BYTES = 512

# The latency of candidates is measured this long: what is written is measured again at the end.
_MEASURED = BenchSettings(minimum_runs=10, minimum_seconds=0.3, warmup_runs=2, warmup_seconds=0.05, maximum_seconds=10)
_LOADS = 3


@dataclass(frozen=True)
class Plan:
    """One width for each group.

    Attributes
    ----------
    widths
        The widths.
    kind
        ``uniform``: the same share of every group; ``program``: chosen by damages and costs; ``threshold``: by scores.
    predicted_share
        Latency that the measured tables predict, relative to the original's; None where the target limits none.
    result
        How the program was solved; None without one.
    """

    widths: tuple[int, ...]
    kind: str
    predicted_share: float | None = None
    result: SolverResult | None = None

    def __str__(self) -> str:
        return {"uniform": "uniform widths", "program": "widths by the program"}.get(self.kind, "widths by a threshold")


_Choice = tuple[float, Plan]
"""The damage of a plan, and the plan."""


def alignment_of(config: PruneConfig) -> int:
    """Return the multiple that widths are rounded to.

    For ``auto``, it is the one that pays where the model is deployed: known by name, or timed on this CPU.
    """
    if config.round_to != "auto":
        return config.round_to
    place = config.provider if config.deployment == "here" else config.deployment
    return ALIGNMENTS[place] if place in ALIGNMENTS else _measured_alignment(config.seed)


@cache
def _measured_alignment(seed: int) -> int:
    return max(found.multiple for found in measure_alignment(seed=seed))


class Planner:
    """Plans the widths of a prepared model; what it measures on the way serves every target.

    Parameters
    ----------
    prepared, config
        The model with its samples, and the settings of the run.
    context
        What damages are measured on: without planned widths.
    """

    def __init__(self, prepared: Prepared, config: PruneConfig, context: ImportanceContext) -> None:
        self._prepared, self._config, self._context = prepared, config, context
        self._analysis = prepared.analysis
        self._round_to = alignment_of(config)
        self._candidates = candidate_widths(self._analysis.groups, self._round_to)
        self._narrowest = [int(widths[0]) for widths in self._candidates]
        self._wholes: dict[str, float] = {}

    def plans(self, target: Target) -> list[Plan]:
        """Return the plans for a target that the settings name, uniform widths first; widths that agree are one plan.

        Raises
        ------
        SolverError
            If the program finds no widths within its limits.
        TargetError
            If the target cannot be reached; the message says what can be.
        """
        if target.kind == "ratio":
            return [self.uniform(target)]
        if self._config.widths == "uniform":
            return [self._real_uniform(target)]
        uniform = self.uniform(target)
        program = self.program(target)
        if self._config.widths == "program" or program.widths == uniform.widths or not self._is_real(target, uniform):
            return [program]
        return [uniform, program]

    def _is_real(self, target: Target, plan: Plan) -> bool:
        """Return whether a plan keeps the limits whose tables only predict, when it is timed or written."""
        limits = [limit for limit in target.limits if limit.kind not in self._counts]
        return all(self._real(limit, plan.widths) <= limit.absolute(self._whole(limit.kind)) for limit in limits)

    def _real_uniform(self, target: Target) -> Plan:
        """Return uniform widths whose real costs keep every limit: where a table says too little, it is scaled up.

        Raises
        ------
        TargetError
            If no uniform widths meet the target.
        """
        scales, real = dict[str, float](), dict[str, float]()
        for _ in range(_ROUNDS):
            plan = self.uniform(target, scales)
            real = self._real_costs(target, plan.widths)
            missed = [one for one in target.limits if real[one.kind] > one.absolute(self._whole(one.kind))]
            if not missed:
                return plan
            for limit in missed:
                scales[limit.kind] = real[limit.kind] / self._cost(limit.kind, plan.widths) * (1 + _MARGIN)
        raise self._unmet(target, real)

    def uniform(self, target: Target, scales: Mapping[str, float] | None = None) -> Plan:
        """Return the widths of the smallest ratio for every group that meets a target.

        Parameters
        ----------
        target
            The target.
        scales
            What costs are multiplied by, by kind; 1 for all others.

        Raises
        ------
        TargetError
            If the target cannot be reached.
        """
        kinds = [limit.kind for limit in target.limits]
        scaled = scales or {}
        widths = plan_widths(
            self._analysis.groups,
            target,
            lambda widths: {kind: scaled.get(kind, 1.0) * self._cost(kind, widths) for kind in kinds},
            {} if target.kind == "ratio" else {kind: self._whole(kind) for kind in kinds},
            self._round_to,
        )
        return Plan(widths, "uniform", self._predicted(kinds, widths))

    def program(self, target: Target) -> Plan:
        """Return the widths with the least damage that keep every limit of a target.

        What was chosen is checked by its real cost: counted, written or timed. Where that is above a limit, or a
        latency far below it, the limit of the tables is corrected and the program solved again.

        Raises
        ------
        SolverError
            If the program finds no widths within its limits.
        TargetError
            If no widths meet the target.
        """
        limits = {limit.kind: limit.absolute(self._whole(limit.kind)) for limit in target.limits}
        found, closest = self._corrected(target, limits)
        if "latency" in limits:
            found += self._by_macs(target, limits)
        if not found:
            raise self._unmet(target, closest)
        return min(found, key=lambda choice: choice[0])[1]

    def _corrected(self, target: Target, limits: Mapping[str, float]) -> tuple[list[_Choice], Mapping[str, float]]:
        """Return what keeps the limits of choices by the tables, which real costs correct; and the last costs."""
        kinds = list(limits)
        allowed, real, kept = dict(limits), dict[str, float](), list[_Choice]()
        for _ in range(_ROUNDS):
            if not self._reachable(allowed):
                break
            choice = self._chosen(target, [self._budget(kind, allowed[kind]) for kind in kinds])
            real = self._real_costs(target, choice[1].widths)
            is_kept = all(real[kind] <= limits[kind] for kind in kinds)
            if is_kept:
                kept.append(choice)
            if is_kept and ("latency" not in limits or real["latency"] >= (1 - _UNUSED) * limits["latency"]):
                break
            for kind in kinds:
                if real[kind] > limits[kind] or kind == "latency":
                    allowed[kind] *= limits[kind] / real[kind] * (1 - _MARGIN)
        return kept, real

    def _by_macs(self, target: Target, limits: Mapping[str, float]) -> list[_Choice]:
        """Return what keeps the limits of choices that limit the MACs in place of the latency.

        The share of the MACs is searched by the latency that is measured. Where the tables predict small networks
        badly, these choices do less damage.
        """
        kept = list[_Choice]()
        low, high = self.least_share("macs"), 1.0
        others = [self._budget(kind, limit) for kind, limit in limits.items() if kind != "latency"]
        for _ in range(_MACS_STEPS):
            share = (low + high) / 2
            choice = self._chosen(target, [self._budget("macs", share * self._whole("macs")), *others])
            real = self._real_costs(target, choice[1].widths)
            is_kept = all(real[kind] <= limit for kind, limit in limits.items())
            low, high = (share, high) if is_kept else (low, share)
            kept += [choice] if is_kept else []
        return kept

    def _chosen(self, target: Target, budgets: Sequence[Budget]) -> _Choice:
        options = replace(self._context.oamip.solver, seed=self._config.seed)
        found = choose_widths(self._choices, budgets, options)
        predicted = self._predicted([limit.kind for limit in target.limits], found.widths)
        return found.damage, Plan(found.widths, "program", predicted, found.result)

    def _real_costs(self, target: Target, widths: Sequence[int]) -> dict[str, float]:
        return {limit.kind: self._real(limit, widths) for limit in target.limits}

    def least_share(self, kind: str) -> float:
        """Return the share of a cost that the narrowest widths leave."""
        return self._cost(kind, self._narrowest) / self._whole(kind)

    def _unmet(self, target: Target, closest: Mapping[str, float]) -> TargetError:
        reached = ", ".join(
            f"{limit.kind}={limit.shown(closest[limit.kind], self._whole(limit.kind))}" for limit in target.limits
        )
        return TargetError(f"The target {target} was not met; the closest found is {reached}. Allow a little more.")

    def _reachable(self, allowed: Mapping[str, float]) -> bool:
        return all(self._tabled(kind, self._narrowest) <= limit for kind, limit in allowed.items())

    @cached_property
    def _choices(self) -> list[WidthChoices]:
        curves = damage_curves(self._context, self._candidates)
        return [WidthChoices(widths, damages) for widths, damages in zip(self._candidates, curves, strict=True)]

    # Costs, by kind: what tables say, and what is real.

    def _whole(self, kind: str) -> float:
        """Return what the original costs, which is found once."""
        if kind not in self._wholes:
            self._wholes[kind] = self._cost_of_original(kind)
        return self._wholes[kind]

    def _cost_of_original(self, kind: str) -> float:
        original = self._prepared.original
        if kind == "latency":
            return self._latency.predict([group.width for group in self._analysis.groups])
        if kind == "size":
            return original.size_bytes
        costs = count_costs(original, self._prepared.types)
        return costs.macs if kind == "macs" else costs.parameters

    def _cost(self, kind: str, widths: Sequence[int]) -> float:
        """Return a cost at given widths, exact where it can be counted."""
        if kind in self._counts:
            costs = costs_of(self._prepared.model, self._analysis, first_units(self._analysis, widths))
            return costs.macs if kind == "macs" else costs.parameters
        return self._tabled(kind, widths)

    def _tabled(self, kind: str, widths: Sequence[int]) -> float:
        if kind == "latency":
            return self._latency.predict(widths)
        return self._size(widths) if kind == "size" else self._counts[kind](widths)

    def _budget(self, kind: str, limit: float) -> Budget:
        if kind == "latency":
            return self._latency.budget(kind, limit, self._candidates)
        polynomial = self._size if kind == "size" else self._counts[kind]
        return polynomial.budget(kind, limit, self._candidates)

    def _real(self, limit: Limit, widths: Sequence[int]) -> float:
        """Return a cost of the model that is cut to given widths; a latency in terms of that of the original."""
        if limit.kind in self._counts:
            return self._cost(limit.kind, widths)
        prepared, kept = self._prepared, first_units(self._analysis, widths)
        if limit.kind == "size":
            return cut(prepared.stored, self._analysis, kept).ByteSize() + _METADATA_BYTES
        narrow = cut(prepared.model, self._analysis, kept)
        feeds = prepared.samples.one_run()
        # Where the memory of a session lies makes one load of a small model faster than another.
        found = [
            compare_latency(
                prepared.original.proto, narrow, feeds, prepared.options, settings=_MEASURED, seed=self._config.seed
            )
            for _ in range(_LOADS)
        ]
        if not limit.is_share:
            return float(np.median([one.pruned.p50_ms for one in found]))
        # A share is one of what the original takes in the same minute: the tables may be of a faster or slower one.
        return self._whole("latency") / float(np.median([one.speedup.median for one in found]))

    def _predicted(self, kinds: Sequence[str], widths: Sequence[int]) -> float | None:
        return self._latency.predict(widths) / self._whole("latency") if "latency" in kinds else None

    @cached_property
    def _counter(self) -> CostCounter:
        return CostCounter(self._prepared.model, self._analysis)

    @cached_property
    def _counts(self) -> dict[str, WidthPolynomial]:
        return {"macs": total(self._counter.macs_by_node().values()), "params": self._counter.parameters()}

    @cached_property
    def _size(self) -> WidthPolynomial:
        """Bytes of the file: the weights, and all else, which hardly changes."""
        stored = CostCounter(self._prepared.stored, self._analysis).weight_bytes()
        whole = [float(group.width) for group in self._analysis.groups]
        rest = self._prepared.stored.proto.ByteSize() + _METADATA_BYTES - stored(whole)
        return total([stored, WidthPolynomial(rest)])

    @cached_property
    def _latency(self) -> LatencyModel:
        prepared = self._prepared
        return measure_latency_model(
            prepared.model,
            self._analysis,
            prepared.samples.one_run(),
            prepared.options,
            seed=self._config.seed,
            cache=default_cache() if self._config.cache else None,
            progress=self._context.progress,
        )
