"""What is trained: the subnetwork, the unpruned network, and a random subnetwork, each for the new classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.calibration import Samples, Source, load_samples
from oamip_onnx.errors import DataError, UsageError
from oamip_onnx.model import (
    Array,
    Model,
    bind_inputs,
    count_costs,
    history_entry,
    infer_shapes,
    load_model,
    with_initializers,
    with_metadata,
)
from oamip_onnx.preparation import ModelSource
from oamip_onnx.report import FinetuneReport, Result
from oamip_onnx.training import FinetuneSettings, shaping_options
from oamip_onnx.transferring.initialise import fresh_weights, initialise
from oamip_onnx.transferring.last_layer import LastLayer, find_last_layer, replace_last_layer
from oamip_onnx.transferring.subnetwork import Parent, check_is_part, check_same_structure, find_parent, load_result

# Settings that `oamip finetune` has an option for, and `oamip transfer` only takes by --set.
_BY_SET = frozenset({"--device", "--held-out", "--optimiser", "--patience"})

# A note names this many weights.
_NAMED = 3


@dataclass(frozen=True)
class Task:
    """A subnetwork and the data that it is to learn.

    Attributes
    ----------
    model
        The subnetwork as it came.
    layer
        Its last layer.
    classes
        Number of classes in the new data.
    weights
        Where training starts: ``keep``, ``fresh`` or ``initial``.
    samples, evaluation
        Samples to train on, and to measure the accuracy on, if there are any of their own; both with labels.
    notes
        What a reader should know, as sentences.
    """

    model: Model
    layer: LastLayer
    classes: int
    weights: str
    samples: Samples
    evaluation: Samples | None
    notes: tuple[str, ...] = ()

    @property
    def feeds(self) -> dict[str, Array]:
        """One run of samples by input."""
        return self.samples.one_run()


@dataclass(frozen=True)
class Candidate:
    """A network to train.

    Attributes
    ----------
    name
        ``subnetwork``, ``unpruned`` or ``random``.
    parameters
        Number of its weights.
    make
        Returns it as training finds it, by the seed.
    """

    name: str
    parameters: int
    make: Callable[[int], onnx.ModelProto] = field(repr=False)


def load_task(
    source: ModelSource,
    data: Source,
    labels: str | Path | npt.NDArray[np.integer[Any]] | None,
    evaluation: Source | None,
    classes: int | None,
    weights: str,
    settings: FinetuneSettings,
) -> Task:
    """Return a subnetwork and its data; `transfer` describes the parameters.

    Raises
    ------
    ModelError, DataError, UsageError
        If the model has no last layer to replace, or the samples do not fit it or lack labels.
    """
    model = load_model(source)
    samples = load_samples(data, model, labels=labels, limit=settings.samples)
    measured = None if evaluation is None else load_samples(evaluation, model)
    feeds = samples.one_run()
    layer = find_last_layer(model, infer_shapes(model, bind_inputs(model, feeds), feeds))
    count = layer.classes if classes is None else classes
    if count < 2:
        raise UsageError(f"A classifier tells at least two classes apart, not {count}; give --classes another number.")
    for some, option in ((samples, "the key 'labels', or --labels"), (measured, "the key 'labels' in --eval")):
        if some is not None:
            _check_labels(some, count, option)
    found = Task(model, layer, count, weights, samples, measured, samples.notes)
    return replace(found, notes=(*found.notes, *_untouched_note(found))) if weights == "fresh" else found


def _check_labels(samples: Samples, classes: int, missing: str) -> None:
    """Raise if samples have no labels, or such of other classes.

    Raises
    ------
    DataError
        With the first label out of range.
    """
    if samples.labels is None:
        raise DataError(f"Transfer trains and measures on labels, and the data have none; give {missing}.")
    wrong = np.flatnonzero((samples.labels < 0) | (samples.labels >= classes))
    if wrong.size:
        row, most = int(wrong[0]), int(samples.labels.max())
        advice = f"give --classes {most + 1}" if samples.labels.min() >= 0 else "count classes from 0"
        raise DataError(
            f"The label {samples.labels[row]} of sample {row} is out of range for {classes} classes; {advice}."
        )


def _untouched_note(task: Task) -> list[str]:
    names = fresh_weights(task.model, task.layer.node, 0).untouched
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(repr(name) for name in names[:_NAMED])
    return [f"Constants that are no weights of a known layer were not drawn anew: {listed}{more}."]


def candidates(
    task: Task, original: ModelSource | None, initial: ModelSource | None, result: str | Path | Result | None
) -> tuple[list[Candidate], list[str]]:
    """Return the networks to train, the subnetwork first, and notes; `transfer` describes the parameters.

    Raises
    ------
    UsageError, DataError, ModelError
        If the result is missing, or subnetwork, original and initial network do not belong together.
    """
    if initial is not None and result is None:
        raise UsageError(
            "Which units of the initial network the subnetwork keeps stands in the result of oamip prune --json; give "
            "it with --result."
        )
    if result is not None and initial is None and original is None:
        raise UsageError("--result tells which units of the original were kept; give that with --original as well.")
    # With initial weights, everything is trained from those; the original then only has to have the same structure.
    whole = original if initial is None else initial
    parent = None
    if result is not None and whole is not None:
        parent = find_parent(whole, load_result(result), task.samples)
        _check_subnetwork(task, parent)
    own = _start(task, task.model if initial is None or parent is None else _initial(task, parent))
    found = [Candidate("subnetwork", _parameters(task, own(0)), own)]
    if original is None or whole is None:
        return found, []
    unpruned = load_model(whole)
    if initial is not None:
        check_same_structure(load_model(original), unpruned, "The original is not the initial network")
    start = _start(task, unpruned)
    first = start(0)
    check_is_part(load_model(found[0].make(0)), load_model(first))
    found.append(Candidate("unpruned", _parameters(task, first), start))
    if task.weights == "fresh":
        return found, [_SAME_NETWORK]
    if parent is None:
        return found, [_NO_RANDOM]
    return [*found, _random(task, parent, found[0].parameters)], []


_SAME_NETWORK = (
    "With fresh weights a random subnetwork of the same widths is the same network, so there is none to compare with."
)
_NO_RANDOM = (
    "No random subnetwork was trained: the widths stand in the result of oamip prune --json; give it with --result."
)


def _check_subnetwork(task: Task, parent: Parent) -> None:
    """Raise unless the subnetwork is what cutting its parent gives, the number of classes aside."""
    made = [load_model(_for_classes(task, model, 0, task.classes)) for model in (task.model, parent.subnetwork())]
    check_same_structure(made[0], made[1], "The model is not the subnetwork of the original that the result tells of")


def _initial(task: Task, parent: Parent) -> Model:
    """Return the subnetwork with the weights that its parent has; the last layer where the classes are as many."""
    cut = parent.subnetwork()
    names = [name for name, tensor in cut.initializers.items() if cut.array(name).dtype.kind in "fV"]
    same = [n for n in names if cut.initializers[n].dims == task.model.initializers[n].dims]
    return replace(task.model, proto=with_initializers(task.model.proto, {name: cut.array(name) for name in same}))


def _random(task: Task, parent: Parent, parameters: int) -> Candidate:
    def make(seed: int) -> onnx.ModelProto:
        return _start(task, parent.random_subnetwork(seed))(seed)

    return Candidate("random", parameters, make)


def _start(task: Task, model: Model) -> Callable[[int], onnx.ModelProto]:
    """Return what makes a model as training finds it: for the new classes, with the weights that were chosen."""

    def make(seed: int) -> onnx.ModelProto:
        proto = _for_classes(task, model, seed, task.classes)
        if task.weights != "fresh":
            return proto
        adapted = load_model(proto)
        return initialise(adapted, _last_layer(task, adapted).node, seed)

    return make


def _last_layer(task: Task, model: Model) -> LastLayer:
    return find_last_layer(model, infer_shapes(model, bind_inputs(model, task.feeds), task.feeds))


def _for_classes(task: Task, model: Model, seed: int, classes: int) -> onnx.ModelProto:
    """Return a model for a number of classes: with a new last layer where it has another."""
    layer = _last_layer(task, model)
    return model.proto if layer.classes == classes else replace_last_layer(model, layer, classes, task.feeds, seed)


def _parameters(task: Task, proto: onnx.ModelProto) -> int:
    model = load_model(proto)
    return count_costs(model, infer_shapes(model, bind_inputs(model, task.feeds), task.feeds)).parameters


def with_history(
    task: Task, proto: onnx.ModelProto, settings: FinetuneSettings, report: FinetuneReport
) -> onnx.ModelProto:
    """Return a copy of the trained model whose metadata tell of the transfer in place of a fine-tuning.

    Parameters
    ----------
    task
        What was trained.
    proto, report
        The trained model, and how it was trained.
    settings
        The settings of the training.
    """
    told: Mapping[str, object] = {
        "weights": task.weights,
        "classes": task.classes,
        "epochs": settings.epochs,
        "optimiser": settings.optimiser,
        "learning_rate": f"{settings.largest_rate:g}",
        "batch_norm": settings.batch_norm,
        "samples": report.training_samples + report.held_out_samples,
        "seed": settings.seed,
    }
    added = {
        "oamip.transfer": " ".join(f"{name}={value}" for name, value in told.items()),
        **history_entry(task.model.proto, "transfer", _options(task, settings), task.model.sha256),
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    before = {entry.key: entry.value for entry in task.model.proto.metadata_props}
    kept = [entry for entry in copy.metadata_props if entry.key != "oamip.finetune"]
    if "oamip.finetune" in before:
        kept.append(onnx.StringStringEntryProto(key="oamip.finetune", value=before["oamip.finetune"]))
    del copy.metadata_props[:]
    copy.metadata_props.extend(with_metadata(kept, added))
    return copy


def _options(task: Task, settings: FinetuneSettings) -> list[str]:
    """Return what shapes the model, as on the command line, less the paths of files."""
    words = ["--weights", task.weights] if task.weights != "keep" else []
    words += ["--classes", str(task.classes)] if task.classes != task.layer.classes else []
    words += ["--batch-norm", settings.batch_norm] if settings.batch_norm != "train" else []
    told = shaping_options(settings.model_copy(update={"loss": "auto", "batch_norm": "frozen"}))
    for option, value in zip(told[::2], told[1::2], strict=True):
        if option in _BY_SET:
            words += ["--set", f"{option.removeprefix('--').replace('-', '_')}={value}"]
        else:
            words += [option, value]
    return words
