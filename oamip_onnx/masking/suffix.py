"""The masked model behind one group: what has to run again when units of that group alone change.

Everything that no unit of the group reaches is computed once for a subset and fed to the rest, which for a late layer
is a small part of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from oamip_onnx.channels import BoolArray, ChannelAnalysis, ChannelGroup
from oamip_onnx.masking.masked_model import MASK_INPUT, masked_proto
from oamip_onnx.model import Array, Model, captured_names, with_initializers, with_outputs
from oamip_onnx.runtime import RuntimeOptions, Session

# Sessions of all groups together may hold this many bytes of weights; beyond, the whole model runs every time.
_LARGEST_COPIES = 1_000_000_000


@dataclass(frozen=True)
class _Part:
    """The nodes behind one group, in order, and the tensors that they read from before it."""

    nodes: tuple[int, ...]
    frontier: tuple[str, ...]


class MaskedSuffixes:
    """The masked model, run from each group on.

    Parameters
    ----------
    model, analysis
        The model and its channels.
    options
        Provider and threads.
    output
        The tensor to compute.
    """

    def __init__(self, model: Model, analysis: ChannelAnalysis, options: RuntimeOptions, output: str) -> None:
        self._options, self._output = options, output
        self._proto = masked_proto(model, analysis)
        self._head = _mask_nodes(self._proto.graph)
        cells = {t.name: numpy_helper.to_array(t) for t in self._proto.graph.initializer if t.name.endswith("_units")}
        whole = self._proto.ByteSize() * max(len(analysis.groups), 1) > _LARGEST_COPIES
        self._parts = [_Part((), ()) if whole else self._part(group, cells) for group in analysis.groups]
        inputs = {i.name for i in self._proto.graph.input}
        wanted = [name for part in self._parts for name in part.frontier if name not in inputs]
        self._full = Session(with_outputs(self._proto, [output, *wanted]), options)
        self._sessions: dict[int, Session] = {}

    def whole(self, feeds: Mapping[str, Array], alive: npt.ArrayLike) -> Array:
        """Return the output with the units masked."""
        return self._full.run({**feeds, MASK_INPUT: np.asarray(alive, np.float32)}, [self._output])[self._output]

    def prefix(self, group: int, feeds: Mapping[str, Array], alive: npt.ArrayLike) -> dict[str, Array]:
        """Return what the part behind a group reads with the units masked, feeds included.

        Parameters
        ----------
        group
            Position of the group in the analysis.
        feeds
            The model's inputs.
        alive
            The mask, shape (units,).
        """
        wanted = [name for name in self._parts[group].frontier if name not in feeds]
        given = {**feeds, MASK_INPUT: np.asarray(alive, np.float32)}
        return {**feeds, **(self._full.run(given, wanted) if wanted else {})}

    def run(self, group: int, prefix: Mapping[str, Array], alive: BoolArray) -> Array:
        """Return the output with another mask that differs from the prefix's in units of that group alone.

        Parameters
        ----------
        group
            Position of the group in the analysis.
        prefix
            What `prefix` has returned for the group.
        alive
            The mask, shape (units,).
        """
        values, mask = self._read(group, prefix), np.asarray(alive, np.float32)
        if values is None:
            return self.whole({i.name: prefix[i.name] for i in self._full.inputs if i.name != MASK_INPUT}, mask)
        if group not in self._sessions:
            self._sessions[group] = Session(self._suffix(group, values, {}), self._options)
        return self._sessions[group].run({**values, MASK_INPUT: mask})[self._output]

    def run_changed(
        self, group: int, prefixes: Sequence[Mapping[str, Array]], alive: BoolArray, weights: Mapping[str, Array]
    ) -> list[Array]:
        """Return the outputs as `run` does, with other values for some initializers that only nodes behind it read.

        Parameters
        ----------
        group
            Position of the group in the analysis.
        prefixes
            What `prefix` has returned for the group, for one batch each.
        alive
            The mask, shape (units,).
        weights
            The other values by name, in the initializers' shapes and types.
        """
        mask = np.asarray(alive, np.float32)
        read = [self._read(group, prefix) for prefix in prefixes]
        if any(values is None for values in read) or not read:
            proto = with_initializers(with_outputs(self._proto, [self._output]), weights)
            session = Session(proto, self._options)
            names = [i.name for i in session.inputs if i.name != MASK_INPUT]
            given = [{name: prefix[name] for name in names} for prefix in prefixes]
        else:
            given = [dict(values) for values in read if values is not None]
            session = Session(self._suffix(group, given[0], weights), self._options)
        return [session.run({**values, MASK_INPUT: mask})[self._output] for values in given]

    def _read(self, group: int, prefix: Mapping[str, Array]) -> dict[str, Array] | None:
        """Return what the part behind a group reads of a prefix; None where the whole model has to run."""
        part = self._parts[group]
        values = {name: prefix[name] for name in part.frontier}
        # A sequence has no place among the inputs of a model that is made here.
        return values if part.nodes and all(isinstance(value, np.ndarray) for value in values.values()) else None

    def _part(self, group: ChannelGroup, cells: Mapping[str, Array]) -> _Part:
        """Return what of the graph the group's units reach on the way to the output."""
        graph = self._proto.graph
        reached = self._factors(group, cells)
        behind: list[int] = []
        for index, node in enumerate(graph.node):
            if index not in self._head and reached.intersection([*node.input, *captured_names(node)]):
                behind.append(index)
                reached.update(node.output)
        needed, nodes = {self._output}, []
        for index in reversed(behind):
            node = graph.node[index]
            if needed.intersection(node.output):
                nodes.append(index)
                needed.update([*node.input, *captured_names(node)])
        produced = {name for index in nodes for name in graph.node[index].output}
        inner = produced | {name for index in self._head for name in graph.node[index].output}
        constant = {t.name for t in graph.initializer} | {MASK_INPUT, ""}
        frontier = sorted(needed - inner - constant) if nodes else []
        return _Part(tuple(reversed(nodes)), tuple(frontier))

    def _factors(self, group: ChannelGroup, cells: Mapping[str, Array]) -> set[str]:
        """Return the masks in which units of a group stand, given the units of every mask's cells."""
        graph = self._proto.graph
        found: set[str] = set()
        for index in sorted(self._head):
            node = graph.node[index]
            if node.op_type == "Gather":
                units = cells[node.input[1]]
                if ((units >= group.units.start) & (units < group.units.stop)).any():
                    found.update(node.output)
            elif found.intersection(node.input):
                found.update(node.output)
        return found

    def _suffix(self, group: int, values: Mapping[str, Array], weights: Mapping[str, Array]) -> onnx.ModelProto:
        """Return the part behind a group as a model of its own, which copies no weights but its own."""
        source = self._proto.graph
        nodes = [source.node[index] for index in [*sorted(self._head), *self._parts[group].nodes]]
        read = {name for node in nodes for name in [*node.input, *captured_names(node)]}
        proto = onnx.ModelProto(ir_version=self._proto.ir_version, opset_import=self._proto.opset_import)
        proto.functions.extend(self._proto.functions)
        graph = proto.graph
        graph.name = source.name
        graph.node.extend(nodes)
        graph.input.extend(entry for entry in source.input if entry.name == MASK_INPUT)
        graph.input.extend(
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), [f"{name}_{axis}" for axis in range(value.ndim)]
            )
            for name, value in values.items()
        )
        graph.output.append(onnx.ValueInfoProto(name=self._output))
        graph.initializer.extend(t for t in source.initializer if t.name in read and t.name not in weights)
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()
        )
        return proto


def _mask_nodes(graph: onnx.GraphProto) -> frozenset[int]:
    """Return the positions of the nodes that compute masks from the mask input and constants alone."""
    constant = {t.name for t in graph.initializer} | {""}
    known = {MASK_INPUT}
    found = set()
    for index, node in enumerate(graph.node):
        if known.intersection(node.input) and all(name in known or name in constant for name in node.input):
            found.add(index)
            known.update(node.output)
    return frozenset(found)
