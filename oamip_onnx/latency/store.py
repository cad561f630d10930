"""Measurements on disk, so that a network is not measured twice on the same machine."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from oamip_onnx.bench import describe_environment
from oamip_onnx.channels import ChannelAnalysis
from oamip_onnx.latency.measuring import Measurements
from oamip_onnx.model import Array, Model
from oamip_onnx.runtime import RuntimeOptions
from oamip_onnx.tasks import TaskData
from oamip_onnx.tasks.cache import Cache, task_key


class MeasurementStore:
    """Where the measurements of one network on one machine are kept.

    Parameters
    ----------
    folder
        A cache folder; None keeps nothing.
    model, analysis, feeds, options
        What is measured; the values of weights do not matter.
    count, seed
        How many networks are measured, and the seed of their widths.
    """

    def __init__(
        self,
        folder: Path | None,
        model: Model,
        analysis: ChannelAnalysis,
        feeds: Mapping[str, Array],
        options: RuntimeOptions,
        *,
        count: int,
        seed: int,
    ) -> None:
        machine = describe_environment(options)
        settings = {
            "structure": _structure(model),
            "types": {name: [kind.element_type, list(kind.shape)] for name, kind in sorted(analysis.types.items())},
            "groups": [[g.name, *g.tensors, g.width, g.block_count, g.minimum_width] for g in analysis.groups],
            "feeds": {name: [str(array.dtype), list(array.shape)] for name, array in sorted(feeds.items())},
            "options": [machine.provider, options.threads, options.optimise],
            "machine": [machine.cpu, machine.logical_cores, str(onnxruntime.__version__)],
            "configurations": [count, seed],
        }
        self._cache = None if folder is None else Cache(folder)
        self.key = task_key("latency model", TaskData(settings=settings))

    def get(self) -> Measurements | None:
        """Return the measurements, or None where there are none that can be trusted."""
        entry = self._cache.get(self.key) if self._cache else None
        if entry is None:
            return None
        found = entry.arrays
        widths = tuple(tuple(map(int, own)) for own in found["widths"])
        times = dict(zip(found["nodes"].tolist(), found["node_ms"], strict=True))
        return Measurements(widths, found["total_ms"], times)

    def put(self, measured: Measurements) -> None:
        """Keep measurements; a folder that cannot be written to is reported, and nothing is kept."""
        if self._cache:
            nodes = sorted(measured.node_ms)
            arrays = {
                "widths": np.array(measured.widths, np.int64),
                "total_ms": measured.total_ms,
                "nodes": np.array(nodes, np.int64),
                "node_ms": np.array([measured.node_ms[node] for node in nodes]),
            }
            self._cache.put(self.key, TaskData(arrays))


def _structure(model: Model) -> str:
    """Return a SHA-256 over the graph without the values of its weights."""
    graph = onnx.GraphProto(node=model.graph.node, input=model.graph.input, output=model.graph.output)
    for tensor in model.graph.initializer:
        graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    opsets = sorted(f"{opset.domain} {opset.version}" for opset in model.proto.opset_import)
    return hashlib.sha256(graph.SerializeToString(deterministic=True) + " ".join(opsets).encode()).hexdigest()
