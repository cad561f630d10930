"""Paths of a pipeline: they start from the folder of its file."""

import os
from pathlib import Path

from oamip_onnx.calibration.datasets import is_built_in
from oamip_onnx.running.definition import Definition


def resolved(definition: Definition, base: Path) -> Definition:
    """Return a pipeline whose paths start from the working directory."""

    def at(source: str | None) -> str | None:
        return source if source is None or is_built_in(source) else _joined(base, source)

    changes: dict[str, object] = {
        name: at(getattr(definition, name)) for name in ("model", "folder", "data", "labels", "evaluation")
    }
    if definition.import_:
        own = definition.import_
        changes["import_"] = own.model_copy(
            update={"source": at(own.source), "state": at(own.state), "data": at(own.data)}
        )
    if definition.prune:
        prune = definition.prune
        config = prune.config.model_copy(update={"metric": at(prune.config.metric)})
        changes["prune"] = prune.model_copy(
            update={"data": at(prune.data), "labels": at(prune.labels), "config": config}
        )
    if definition.finetune:
        tune = definition.finetune
        changes["finetune"] = tune.model_copy(update={"data": at(tune.data), "labels": at(tune.labels)})
    if definition.bench:
        changes["bench"] = definition.bench.model_copy(update={"compare": at(definition.bench.compare)})
    return definition.model_copy(update=changes)


def _joined(base: Path, source: str) -> str:
    """Return a path, or a path with a function behind it, below a folder; an absolute one stays."""
    return os.path.normpath(base / source)
