"""What is trained, on what, and towards what."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner

from oamip_onnx.calibration import Samples, Source, check_label_range, load_samples
from oamip_onnx.errors import DataError, ModelError, UsageError, closest
from oamip_onnx.importance import find_logits
from oamip_onnx.model import Model, TensorType, bind_inputs, infer_shapes, load_model
from oamip_onnx.preparation import ModelSource
from oamip_onnx.training import FinetuneSettings

if TYPE_CHECKING:
    from oamip_onnx.training.interpreter import Network
    from oamip_onnx.training.losses import Objective

# Operators whose outputs are compared in layer-wise distillation; what lies between repeats what these compute.
_COMPARED = frozenset(
    "Add Attention BatchNormalization Concat Conv ConvTranspose Einsum GRU Gemm GroupNormalization "
    "InstanceNormalization LSTM LayerNormalization MatMul RMSNormalization RNN Sum".split()
)


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and towards what.

    Attributes
    ----------
    raw
        The model as it came, in which nothing but weights changes.
    graph
        The same with local functions inlined: what runs.
    model
        Its canonical form, for shapes and samples.
    samples, evaluation
        Samples to train and judge on; and those of their own to compare the models on, if any.
    original
        The model that distillation aims at, if any.
    loss, objective
        The name of the loss, and the loss.
    notes
        What a reader should know, as sentences.
    """

    raw: onnx.ModelProto
    graph: onnx.ModelProto
    model: Model
    samples: Samples
    original: Model | None
    evaluation: Samples | None
    loss: str
    objective: "Objective"
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        """What is measured on held-out samples."""
        if self.objective.logits is None:
            return "cosine"
        return "accuracy" if self.samples.labels is not None else "agreement"


def load_job(
    source: ModelSource,
    data: Source,
    labels: str | Path | npt.NDArray[np.integer[Any]] | None,
    original: ModelSource | None,
    evaluation: Source | None,
    settings: FinetuneSettings,
) -> Job:
    """Return what is trained, on what, and towards what; `finetune` describes the parameters.

    Raises
    ------
    ModelError, DataError, UsageError
        If the models, the samples or a setting are not usable.
    """
    model = load_model(source)
    raw = _raw(source)
    samples = load_samples(data, model, labels=labels, limit=settings.samples)
    if samples.by_run:
        raise ModelError(
            "The inputs of the model share no axis of samples, so no batches can be made; fine-tuning needs one."
        )
    feeds = samples.one_run()
    types = infer_shapes(model, bind_inputs(model, feeds), feeds)
    teacher = None if original is None else load_model(original)
    held_out = None if evaluation is None else load_samples(evaluation, model)
    loss, objective = _objective(model, types, samples, teacher, settings)
    if objective.logits is not None:
        for some in (samples, held_out):
            if some is not None and some.labels is not None:
                check_label_range(some.labels, types[objective.logits].shape[1])
    notes = [] if objective.logits is not None or samples.labels is None else [_LABELS_UNUSED]
    graph = onnx.inliner.inline_local_functions(raw) if raw.functions else raw
    return Job(raw, graph, model, samples, teacher, held_out, loss, objective, (*samples.notes, *notes))


_LABELS_UNUSED = "The labels were not used: the output is no vector of classes."


def _raw(source: ModelSource) -> onnx.ModelProto:
    """Return the model as it came; it was loaded before, so that it is known to be one."""
    if isinstance(source, onnx.ModelProto):
        return source
    return onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(str(source))


def _objective(
    model: Model, types: Mapping[str, TensorType], samples: Samples, original: Model | None, settings: FinetuneSettings
) -> "tuple[str, Objective]":
    """Return the loss by its name, and the loss.

    Raises
    ------
    DataError, UsageError, ModelError
        If labels or the original are missing for it, or the original does not fit.
    """
    from oamip_onnx.training.losses import Objective  # noqa: PLC0415 - PyTorch is optional, and slow to import

    main = find_logits(model, types)
    classifies = len(types[main].shape) == 2 and types[main].shape[1] > 1
    labelled = samples.labels is not None and classifies
    loss = settings.loss
    if loss == "auto":
        if original is None and not labelled:
            raise DataError(
                "Fine-tuning needs something to aim at: give labels (the key 'labels', or --labels), or the model "
                "before pruning with --original."
            )
        loss = "labels" if original is None else "both" if labelled else "distillation"
    if loss in {"labels", "both"} and not labelled:
        why = "there are none" if samples.labels is None else "the output is no vector of classes"
        raise DataError(f"The loss {loss!r} needs labels, and {why}; give --labels, or take distillation.")
    if loss in {"distillation", "both", "layers"} and original is None:
        raise UsageError(f"The loss {loss!r} needs the model before pruning; give it with --original.")
    outputs = tuple(name for name in model.output_names if np.issubdtype(types[name].dtype, np.floating))
    layers: tuple[str, ...] = ()
    if original is not None:
        compared = (main,) if classifies else outputs
        wanted = _types_of_original(model, types, original, samples, compared)
        if loss == "layers":
            layers = _common_layers(model, types, original, wanted, compared)
    share = {"labels": 1.0, "both": settings.label_share}.get(loss, 0.0)
    return loss, Objective(main if classifies else None, outputs, layers, share, settings.temperature)


def _types_of_original(
    model: Model, types: Mapping[str, TensorType], original: Model, samples: Samples, compared: tuple[str, ...]
) -> dict[str, TensorType]:
    """Return the types of the original's tensors.

    Raises
    ------
    ModelError
        If it has other inputs, or lacks what is compared.
    """
    found, wanted = ({value.name: _declared(value) for value in one.graph.input} for one in (original, model))
    if found != wanted:
        raise ModelError(f"The original has the inputs {found}, the model {wanted}; give the model before pruning.")
    feeds = samples.one_run()
    inferred = infer_shapes(original, bind_inputs(original, feeds), feeds)
    for name in compared:
        shape = inferred[name].shape if name in inferred else None
        if shape != types[name].shape:
            has = "no tensor" if shape is None else f"the shape {shape} for"
            raise ModelError(
                f"The original has {has} {name!r}, the model the shape {types[name].shape}; give the model before "
                "pruning."
            )
    return inferred


def _declared(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Return the sizes of an input behind the samples, ``?`` where they are free."""
    return tuple(d.dim_value or "?" for d in value.type.tensor_type.shape.dim[1:])


def _common_layers(
    model: Model,
    types: Mapping[str, TensorType],
    original: Model,
    wanted: Mapping[str, TensorType],
    others: tuple[str, ...],
) -> tuple[str, ...]:
    """Return inner tensors that both models have, in the same shape.

    Raises
    ------
    UsageError
        If there are none.
    """
    rows = types[model.input_names[0]].shape[:1]
    found = tuple(
        name
        for node in model.graph.node
        if node.op_type in _COMPARED
        for name in node.output[:1]
        if name in original.producers
        and name not in others
        and wanted[name].shape == types[name].shape
        and types[name].shape[:1] == rows
        and np.issubdtype(types[name].dtype, np.floating)
    )
    if not found:
        raise UsageError(
            "No inner tensor has the same name and shape in both models, so layers cannot be compared; take the loss "
            "distillation."
        )
    return found


def choose_device(settings: FinetuneSettings) -> str:
    """Return where to train.

    Raises
    ------
    UsageError
        If a GPU is asked for that PyTorch does not see.
    """
    import torch  # noqa: PLC0415 - PyTorch is optional, and slow to import

    available = bool(torch.cuda.is_available())
    if settings.device == "cuda" and not available:
        raise UsageError("PyTorch sees no CUDA device; take --device cpu, or install a build of PyTorch for your GPU.")
    return "cuda" if settings.device != "cpu" and available else "cpu"


def make_network(job: Job, settings: FinetuneSettings, device: str) -> "Network":
    """Return the graph in PyTorch.

    Raises
    ------
    ModelError, UsageError
        If it cannot be trained, or a pattern of frozen weights matches nothing.
    """
    from oamip_onnx.training.interpreter import Network  # noqa: PLC0415 - PyTorch is optional, and slow to import
    from oamip_onnx.training.weights import find_constants  # noqa: PLC0415 - as above

    constants = find_constants(job.graph)
    frozen = set(constants.weights)
    frozen -= set(constants.weights if job.graph is job.raw else find_constants(job.raw).weights)
    for glob in settings.freeze:
        matched = {name for name in constants.weights if fnmatchcase(name, glob)}
        if not matched:
            raise UsageError(f"No weight has a name like {glob!r}{closest(glob, constants.weights)}.")
        frozen |= matched
    outputs = dict.fromkeys([*job.objective.tensors, *job.objective.outputs])
    return Network(job.graph, list(outputs), device=device, frozen=frozen)


def fingerprint(job: Job, settings: FinetuneSettings) -> str:
    """Return a digest of all that the result depends on."""
    digest = hashlib.sha256(settings.model_dump_json(exclude={"memory_limit", "threads"}).encode())
    for model in (job.model, job.original):
        digest.update(b"none" if model is None else model.sha256.encode())
    for name, values in sorted(job.samples.feeds.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).data)
    if job.samples.labels is not None:
        digest.update(np.ascontiguousarray(job.samples.labels).data)
    return digest.hexdigest()


def described(job: Job, settings: FinetuneSettings) -> str:
    """Return what the file says about its making; nothing that differs between two runs of the same command."""
    told = {
        "loss": job.loss,
        "epochs": settings.epochs,
        "optimiser": settings.optimiser,
        "learning_rate": f"{settings.largest_rate:g}",
        "batch_size": job.samples.run_size or settings.batch_size,
        "batch_norm": settings.batch_norm,
        "held_out": f"{settings.held_out:g}",
        "samples": job.samples.count,
        "seed": settings.seed,
    }
    return " ".join(f"{name}={value}" for name, value in told.items())
