"""An ONNX graph as a PyTorch module: its parameters are the graph's weights, by name."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from oamip_onnx.errors import ModelError, UnsupportedOperatorError, first_line
from oamip_onnx.model import Array, needed_nodes
from oamip_onnx.training.operators import TABLE, Mode, Operation, torch_type
from oamip_onnx.training.operators.table import Function, Tensor
from oamip_onnx.training.weights import Constants, find_constants

# A sentence names this many nodes of an operator that stands in the way.
_NAMED = 3


# The function of a node, and which of its operands are sizes.
_Bound = tuple[Function, frozenset[int]]


@dataclass(frozen=True)
class _Step:
    """One node: its function, and the registers that it reads, writes and gives back."""

    function: Function
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    sizes: frozenset[int]
    name: str


class Network(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
    """An ONNX graph that PyTorch runs and trains.

    Parameters
    ----------
    proto
        The graph, in topological order, without local functions; not modified.
    outputs
        Tensors to return, inner ones included; the graph's outputs by default.
    device
        Where it runs.
    frozen
        Names of weights that are not trained.

    Attributes
    ----------
    weights
        The parameters by the name of the initializer, or of the Constant node's output.
    statistics
        Means and variances of batch normalisations by name.
    constants
        All constants of the graph, as they were.
    mode
        How batch normalisations run.

    Raises
    ------
    ModelError
        If operators cannot be trained through, all of which are named, or no weight reaches the outputs.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        outputs: Sequence[str] | None = None,
        *,
        device: str = "cpu",
        frozen: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.device, self.mode = torch.device(device), Mode()
        self.constants: Constants = find_constants(proto)
        self.outputs = [o.name for o in proto.graph.output] if outputs is None else list(outputs)
        needed = needed_nodes(proto.graph, self.outputs)
        nodes = [
            node
            for index, node in enumerate(proto.graph.node)
            if index in needed and (node.op_type != "Constant" or node.output[0] not in self.constants.values)
        ]
        functions = _functions(nodes, proto, self.mode)
        trained = _reached(nodes, self.outputs)
        self.weights: dict[str, Any] = {}
        for name in self.constants.weights:
            if name in trained and name not in frozen:
                self.weights[name] = torch.nn.Parameter(_tensor(self.constants.values[name]).to(self.device))
                # The names of initializers may hold dots, which those of PyTorch's parameters may not.
                self.register_parameter(f"weight{len(self.weights)}", self.weights[name])
        if not self.weights:
            raise ModelError("No weight of the model reaches its outputs smoothly, so there is nothing to train.")
        self.statistics: dict[str, Any] = {
            name: _tensor(self.constants.values[name]).to(self.device) for name in sorted(self.constants.statistics)
        }
        self._plan(nodes, functions, [i.name for i in proto.graph.input])

    def _plan(self, nodes: list[onnx.NodeProto], functions: list[_Bound], inputs: list[str]) -> None:
        """Lay out registers and steps; what depends on constants alone is computed here, once."""
        names = [*self.constants.values, *inputs, *(name for node in nodes for name in node.output if name)]
        self._register = {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
        self._inputs = [name for name in inputs if name not in self.constants.values]
        self._initial: list[Any] = [None] * (len(self._register) + 1)  # register 0 stands for an absent operand
        known = set()
        for name in {name for node in nodes for name in node.input}.intersection(self.constants.values):
            if name in self.weights or name in self.statistics:
                self._initial[self._register[name]] = self.weights.get(name, self.statistics.get(name))
            else:
                self._initial[self._register[name]] = _tensor(self.constants.values[name])
                known.add(name)
        last = {name: number for number, node in enumerate(nodes) for name in node.input if name}
        kept = {*self.constants.values, *self.outputs}
        self._steps: list[_Step] = []
        for number, (node, (function, sizes)) in enumerate(zip(nodes, functions, strict=True)):
            step = _Step(
                function,
                tuple(self._register.get(name, 0) for name in node.input),
                tuple(self._register.get(name, 0) for name in node.output),
                tuple(self._register[n] for n in {*node.input} if n and last[n] == number and n not in kept),
                sizes,
                node.name or f"{node.op_type} → {node.output[0]}",
            )
            if all(name in known for name in node.input if name):
                with torch.no_grad():
                    self._run(step, self._initial)
                known.update(node.output)
                kept.update(node.output)
            else:
                self._steps.append(step)
        self._moved: dict[int, Any] = {}

    def forward(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the outputs by name.

        Parameters
        ----------
        feeds
            A tensor for each input of the graph; floating-point ones in float32.
        """
        values = self._initial.copy()
        for name in self._inputs:
            values[self._register[name]] = feeds[name]
        for step in self._steps:
            self._run(step, values)
            for register in step.frees:
                values[register] = None
        return {name: values[self._register[name]] for name in self.outputs}

    def _run(self, step: _Step, values: list[Any]) -> None:
        operands = [values[register] for register in step.reads]
        if self.device.type != "cpu":
            self._bring_together(step, operands)
        try:
            found = step.function(*operands)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise ModelError(f"PyTorch cannot run the node {step.name!r}: {first_line(error)}") from error
        if not isinstance(found, tuple):
            values[step.writes[0]] = found
            return
        for register, value in zip(step.writes, found, strict=False):  # outputs that nobody names are left out
            values[register] = value

    def _bring_together(self, step: _Step, operands: list[Any]) -> None:
        """Move operands to the device that one of them is on; sizes stay in the CPU's memory."""
        where = [k for k, value in enumerate(operands) if value is not None and k not in step.sizes]
        if all(operands[k].device.type == "cpu" for k in where):
            return
        for k in where:
            if operands[k].device.type != "cpu":
                continue
            register = step.reads[k]
            if operands[k] is not self._initial[register]:
                operands[k] = operands[k].to(self.device)
            else:
                if register not in self._moved:
                    self._moved[register] = operands[k].to(self.device)
                operands[k] = self._moved[register]

    def tensors(self, feeds: Mapping[str, Array]) -> dict[str, Tensor]:
        """Return arrays as the tensors that this network takes, where it runs."""
        return {name: _tensor(feeds[name]).to(self.device) for name in self._inputs}

    def changed(self) -> dict[str, Array]:
        """Return the weights and statistics that differ from those of the graph, in the types of the graph."""
        found: dict[str, Array] = {}
        for name, tensor in {**self.weights, **self.statistics}.items():
            before = self.constants.values[name]
            after = tensor.detach().cpu().numpy().reshape(before.shape)
            # Rounded to a narrower type, what training hardly moved is what it was.
            after = np.where(after == before.astype(np.float32), before, after.astype(before.dtype))
            if after.tobytes() != before.tobytes():
                found[name] = after
        return found


def gradients(
    network: Network, feeds: Mapping[str, Array], loss: Callable[[Mapping[str, Tensor]], Tensor]
) -> dict[str, Array]:
    """Return the gradient of a loss by the name of each weight; zeros where none arrives.

    Parameters
    ----------
    network
        The network; its weights stay as they are.
    feeds
        One batch by input.
    loss
        Makes one number of the outputs by name.
    """
    weights = list(network.weights.values())
    found = torch.autograd.grad(loss(network(network.tensors(feeds))), weights, allow_unused=True)
    return {
        name: np.zeros(tuple(weight.shape), np.float32) if gradient is None else gradient.cpu().numpy()
        for (name, weight), gradient in zip(network.weights.items(), found, strict=True)
    }


def _tensor(values: Array) -> Tensor:
    """Return a copy of an array in the type that it is computed in."""
    kind = torch_type(helper.np_dtype_to_tensor_dtype(values.dtype))
    if kind == torch.float32:
        return torch.from_numpy(np.array(values, np.float32))
    return torch.from_numpy(np.array(values, str(kind).removeprefix("torch.")))


def _functions(nodes: Sequence[onnx.NodeProto], proto: onnx.ModelProto, mode: Mode) -> list[_Bound]:
    """Return the function of each node.

    Raises
    ------
    ModelError
        Naming all that the table lacks.
    """
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    found, missing = [], dict[str, list[str]]()
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        entry = TABLE.get((domain, node.op_type))
        used = [k for k, name in enumerate(node.output, start=1) if name]
        operation = Operation(
            node.op_type,
            opsets.get(domain, 1),
            {a.name: _attribute(a) for a in node.attribute},
            len(node.input),
            used[-1],
            mode,
        )
        name = node.name or node.output[used[0] - 1]
        if entry is None:
            missing.setdefault(f"{domain}.{node.op_type}" if domain else node.op_type, []).append(name)
            continue
        try:
            found.append((entry.build(operation), entry.sizes))
        except UnsupportedOperatorError as error:
            missing.setdefault(str(error), []).append(name)
    if missing:
        listed = "; ".join(f"{what} ({_few(where)})" for what, where in sorted(missing.items()))
        raise ModelError(
            f"The model cannot be trained: there is no function for {listed}; fine-tune it before these are added, "
            "such as before it is quantised."
        )
    return found


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [one.decode() for one in value]
    return value


def _reached(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> set[str]:
    """Return the tensors from which a gradient can come to the outputs."""
    reached = set(outputs)
    for node in reversed(nodes):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not reached.isdisjoint(node.output) and TABLE[domain, node.op_type].gradient:
            reached.update(name for name in node.input if name)
    return reached
