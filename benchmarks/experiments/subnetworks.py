"""Which units stay: by OAMIP and by its controls, all with the same number of units in every layer."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from threadpoolctl import threadpool_limits

from oamip_onnx import finetune, prune
from oamip_onnx.budget import costs_of, paper_threshold, widths_above
from oamip_onnx.calibration import Samples, load_samples
from oamip_onnx.channels import BoolArray, select_units
from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.importance import Scores, score
from oamip_onnx.masking import MaskedSession
from oamip_onnx.model import Array, load_model
from oamip_onnx.preparation import Prepared, prepare
from oamip_onnx.repair import REPAIRS, RepairContext
from oamip_onnx.scoring import importance_context, planned_widths
from oamip_onnx.surgery import cut
from oamip_onnx.verify import run_output

from .networks import Data

FloatArray = npt.NDArray[np.float64]

PAPER: Mapping[str, object] = {"preset": "paper"}
LAYERS: Mapping[str, object] = {**PAPER, "form": "layerwise", "images": 100}

# What scores units, by the name of a method.
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "random": {"importance": "random"},
    "magnitude": {"importance": "magnitude"},
    "snip": {"importance": "snip"},
    # The authors' program, and its two decouplings.
    "oamip-paper": PAPER,
    "by class": {**PAPER, "by_class": "mean"},
    "by layer": LAYERS,
    "by layer and class": {**LAYERS, "by_class": "mean"},
    "by layer, linear probe": {**LAYERS, "head": "linear"},
    # This package's: responses that are measured; as it is by default, and without the exchanges.
    "oamip-rounds": {"importance": "oamip", "form": "response", "exchanges": 0},
    "oamip": {"importance": "oamip"},
    # What `prune` takes by default where weights are refit.
    "reconstruction": {"importance": "reconstruction"},
}

# These keep what the authors' program scores lowest: the control of the paper.
REVERSED: Mapping[str, str] = {"critical": "oamip-paper"}

# These read how many units are to stay.
READ_WIDTHS = ("oamip-rounds", "oamip", "reconstruction")

TEST_BATCH = 500


@dataclass(frozen=True)
class Found:
    """Scores of a method.

    Attributes
    ----------
    values
        One score a unit.
    seconds
        Time of scoring, on one thread.
    solver
        What became of the programs: their number, engines, statuses, largest gap, nodes and seconds.
    """

    values: FloatArray
    seconds: float
    solver: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A trained network with its samples.

    Attributes
    ----------
    prepared
        The model with its channels, and the samples that programs and repairs see.
    data
        The data set, whose training split fine-tuning sees.
    run
        Seed of what is drawn.
    program
        The settings that the authors' program has for this network.
    known, made
        Scores, and pruned models, that were found before, by method and settings.
    """

    prepared: Prepared
    data: Data
    run: int
    program: str
    known: dict[str, Found] = field(default_factory=dict)
    made: dict[str, tuple[BoolArray, onnx.ModelProto]] = field(default_factory=dict)

    @cached_property
    def test(self) -> Samples:
        """The test split."""
        model = load_model(self.prepared.original.proto)
        return load_samples({model.input_names[0]: self.data.test.images, "labels": self.data.test.labels}, model)

    @cached_property
    def masked(self) -> MaskedSession:
        """The masked model."""
        return MaskedSession(self.prepared.model, self.prepared.analysis, self.prepared.options, [self.prepared.logits])

    def config(self, target: str, settings: Mapping[str, object]) -> PruneConfig:
        """Return the settings of a method at a target."""
        return make_config(settings, usual(self.run), {"target": target})

    def widths(self, goal: float) -> tuple[int, ...]:
        """Return the same share of every layer, which leaves a share of the parameters."""
        found = planned_widths(self.prepared, self.config(f"params={goal:g}", {}))
        if found is None:
            raise ValueError("A share of the parameters plans widths.")
        return found

    def above(self, found: Found) -> tuple[int, ...]:
        """Return how many units of every layer score above the paper's threshold for this network."""
        return widths_above(self.prepared.analysis.groups, found.values, paper_threshold(self.prepared.model))

    def scores(self, method: str, widths: Sequence[int] | None = None, **more: object) -> Found:
        """Return the scores of a method.

        Parameters
        ----------
        method
            Its name.
        widths
            Units that are to stay, for a method that reads them.
        more
            Further settings.
        """
        planned = tuple(widths) if widths is not None and method in READ_WIDTHS else None
        key = f"{method} {planned} {more}"
        if key not in self.known:
            # Targets are no part of it: widths are given, or a term of the program stands in for them.
            config = self.config("ratio=0.5", {**SETTINGS[self._settings_of(method)], **more})
            self.known[key] = _scored(self.prepared, config, planned)
        return self.known[key]

    def _settings_of(self, method: str) -> str:
        return self.program if method == "oamip-paper" else method

    def kept(self, method: str, widths: Sequence[int]) -> tuple[BoolArray, Found]:
        """Return which units a method keeps at these widths, and its scores."""
        found = self.scores(REVERSED.get(method, method), widths)
        values = -found.values if method in REVERSED else found.values
        return select_units(self.prepared.analysis, widths, values), found

    def at_random(self, widths: Sequence[int], draw: int) -> BoolArray:
        """Return units at random."""
        values = np.random.default_rng([self.run, draw]).random(self.prepared.analysis.unit_count)
        return select_units(self.prepared.analysis, widths, values)

    def removed(self, kept: BoolArray) -> float:
        """Return the share of the parameters that goes."""
        original, analysis = self.prepared.original, self.prepared.analysis
        before = costs_of(original, analysis, np.ones_like(kept)).parameters
        return 1 - costs_of(original, analysis, kept).parameters / before

    def masked_accuracy(self, kept: BoolArray | None = None) -> float:
        """Return the test accuracy with masks alone; of the original by default."""
        if kept is None:
            kept = np.ones(self.prepared.analysis.unit_count, np.bool_)
        name = self.prepared.logits
        values = [self.masked.run(feeds, kept)[name] for feeds in self.test.batches(TEST_BATCH)]
        return self._accuracy(np.concatenate(values))

    def widths_of(self, kept: BoolArray) -> tuple[int, ...]:
        """Return how many units of every group stay."""
        return tuple(int(kept[group.units].sum()) for group in self.prepared.analysis.groups)

    def narrow(self, kept: BoolArray) -> onnx.ModelProto:
        """Return the model without the other units."""
        return cut(self.prepared.model, self.prepared.analysis, kept)

    def repaired(self, kept: BoolArray) -> onnx.ModelProto:
        """Return the model without the other units after the least-squares repair."""
        own = self.prepared
        context = RepairContext(own.model, own.analysis, kept, self.narrow(kept), own.samples, own.options, self.run)
        return REPAIRS["least-squares"](context).proto

    def pruned(self, goal: float, **settings: object) -> tuple[BoolArray, onnx.ModelProto]:
        """Return which units `prune` keeps at a share of the parameters, and its model.

        Parameters
        ----------
        goal
            Share of the parameters that stays.
        settings
            Settings other than the defaults.
        """
        key = f"{goal} {settings}"
        if key not in self.made:
            self.made[key] = self._pruned(goal, settings)
        return self.made[key]

    def _pruned(self, goal: float, settings: Mapping[str, object]) -> tuple[BoolArray, onnx.ModelProto]:
        own = self.prepared
        feeds: dict[str, Array] = dict(own.samples.feeds)
        if own.samples.labels is not None:
            feeds["labels"] = own.samples.labels
        shared = {name: value for name, value in usual(self.run).items() if name not in {"repair", "widths"}}
        config = make_config(shared, settings, {"target": f"params={goal:g}"})
        found = prune(own.original.proto, feeds, config=config)
        records = {record.name: record for record in found.report.groups}
        kept = np.ones(own.analysis.unit_count, np.bool_)
        for group in own.analysis.groups:
            if group.name in records:
                units = np.arange(own.analysis.unit_count)[group.units]
                kept[np.delete(units, records[group.name].kept)] = False
        return kept, found.model

    def accuracy(self, proto: onnx.ModelProto) -> float:
        """Return the test accuracy of a model."""
        return self._accuracy(run_output(proto, self.prepared.compared, self.test, self.prepared.options))

    def tuned(self, proto: onnx.ModelProto, **settings: Any) -> float:
        """Return the test accuracy of a model after fine-tuning: by default after one epoch on labels."""
        data = {self.prepared.original.input_names[0]: self.data.train.images, "labels": self.data.train.labels}
        chosen = {"epochs": 1, "loss": "labels", "seed": self.run, "threads": 1, "device": "cpu", **settings}
        return self.accuracy(finetune(proto, data, **chosen).model)

    def distilled(self, proto: onnx.ModelProto, epochs: int = 5) -> float:
        """Return the test accuracy after fine-tuning on labels and distillation; five epochs are the default."""
        more = {"epochs": epochs, "patience": epochs, "original": self.prepared.original.proto}
        return self.tuned(proto, loss="both", **more)

    def _accuracy(self, values: Array) -> float:
        return float((values.argmax(axis=1) == self.test.labels).mean())


def usual(seed: int) -> dict[str, object]:
    """Return the settings that all methods share: nothing is repaired unless that is asked for."""
    shared: dict[str, object] = {"round_to": 1, "threads": 1, "workers": 1, "cache": False, "bench": False}
    return shared | {"seed": seed, "repair": "none", "widths": "uniform"}


def case_of(path: Path, data: Data, run: int, rows: npt.NDArray[np.int64], program: str) -> Case:
    """Return a trained network with samples of the training split.

    Parameters
    ----------
    path
        The network.
    data
        The data set.
    run
        Seed of what is drawn.
    rows
        Numbers of the training images that programs and repairs see.
    program
        The settings that the authors' program has for this network.
    """
    (name,) = load_model(path).input_names
    samples = {name: data.train.images[rows], "labels": data.train.labels[rows]}
    return Case(prepare(path, samples, make_config(usual(run))), data, run, program)


def drawn(data: Data, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the numbers of training images that are drawn at random."""
    total = len(data.train.labels)
    return np.random.default_rng(seed).choice(total, min(count, total), replace=False)


def one_a_class(data: Data, seed: int) -> npt.NDArray[np.int64]:
    """Return the numbers of training images, one of each class, that are drawn at random."""
    generator = np.random.default_rng(seed)
    labels = data.train.labels
    return np.array([generator.choice(np.flatnonzero(labels == c)) for c in np.unique(labels)], np.int64)


def _scored(prepared: Prepared, config: PruneConfig, widths: tuple[int, ...] | None) -> Found:
    """Return the scores of a criterion, its time and what became of its programs."""
    context = importance_context(prepared, config, widths)
    began = time.perf_counter()
    with threadpool_limits(1):
        found = score(config.importance, context)
    return Found(found.values, time.perf_counter() - began, solver_of(found))


def solver_of(scores: Scores) -> dict[str, Any]:
    """Return what became of the programs of scores; empty where none was solved."""
    results = scores.solver
    if not results:
        return {}
    gaps = [r.gap for r in results if r.gap is not None]
    return {
        "programs": len(results),
        "engines": sorted({r.engine for r in results}),
        "statuses": dict(Counter(str(r.status) for r in results)),
        "largest_gap": max(gaps) if gaps else None,
        "nodes": sum(r.nodes for r in results),
        "seconds": sum(r.seconds for r in results),
    }
