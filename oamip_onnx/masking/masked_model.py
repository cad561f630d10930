"""The masked model: the original graph with every contraction's data operand multiplied by a 0/1 mask.

This is what "removed" means before anything is cut: the unit's value is zero wherever a contraction would read it. The
mask is an input, so one session serves every subset of units.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.channels import FIXED, ChannelAnalysis, IntArray
from oamip_onnx.masking.normalisations import Writer, write_out
from oamip_onnx.model import Array, Model, replace_nodes, with_outputs
from oamip_onnx.runtime import RuntimeOptions, Session

MASK_INPUT = "oamip_mask"


def masked_proto(model: Model, analysis: ChannelAnalysis) -> onnx.ModelProto:
    """Return a copy of the model with one more input, `MASK_INPUT`, float32 of shape (units,): 1 keeps, 0 removes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    graph.input.append(helper.make_tensor_value_info(MASK_INPUT, TensorProto.FLOAT, [analysis.unit_count]))
    one = numpy_helper.from_array(np.ones(1, np.float32), "oamip_mask_one")
    graph.initializer.append(one)
    head = [helper.make_node("Concat", [MASK_INPUT, one.name], ["oamip_mask_all"], axis=0)]
    replaced = _normalisations(model, graph, analysis, head)
    before = _mask_nodes(graph, analysis, head)
    nodes = [*head]
    for index, node in enumerate(graph.node):
        nodes.extend(before.get(index, []))
        nodes.extend(replaced.get(index, [node]))
    replace_nodes(graph, nodes)
    return proto


def _mask_nodes(
    graph: onnx.GraphProto, analysis: ChannelAnalysis, head: list[onnx.NodeProto]
) -> dict[int, list[onnx.NodeProto]]:
    """Point the contractions' operands at masked tensors; return the nodes before each contraction."""
    before: dict[int, list[onnx.NodeProto]] = {}
    masked: dict[tuple[str, bytes], str] = {}
    for contraction in analysis.contractions:
        key = (graph.node[contraction.node].input[contraction.operand], contraction.units.tobytes())
        if key not in masked:
            name = f"oamip_masked_{len(masked)}"
            factor = _factor(graph, contraction.units, analysis, contraction.tensor, name, head)
            multiply = helper.make_node("Mul", [key[0], factor], [name])
            before.setdefault(contraction.node, []).append(multiply)
            masked[key] = name
        graph.node[contraction.node].input[contraction.operand] = masked[key]
    return before


def _factor(
    graph: onnx.GraphProto,
    units: IntArray,
    analysis: ChannelAnalysis,
    tensor: str,
    name: str,
    head: list[onnx.NodeProto],
) -> str:
    """Add the 0/1 mask of some cells in a tensor's type; return its name."""
    cells = np.where(units == FIXED, analysis.unit_count, units)
    graph.initializer.append(numpy_helper.from_array(cells.astype(np.int64), f"{name}_units"))
    head.append(helper.make_node("Gather", ["oamip_mask_all", f"{name}_units"], [f"{name}_factor"], axis=0))
    element_type = analysis.types[tensor].element_type
    if element_type == TensorProto.FLOAT:
        return f"{name}_factor"
    head.append(helper.make_node("Cast", [f"{name}_factor"], [f"{name}_cast"], to=element_type))
    return f"{name}_cast"


def _normalisations(
    model: Model, graph: onnx.GraphProto, analysis: ChannelAnalysis, head: list[onnx.NodeProto]
) -> dict[int, list[onnx.NodeProto]]:
    """Return the nodes that take the place of normalisations over channels that may go."""
    replaced = {}
    for number, normalisation in enumerate(analysis.normalisations):
        node = model.graph.node[normalisation.node]
        data = node.input[0]
        name = f"oamip_normalised_{number}"
        mask = _factor(graph, normalisation.units, analysis, data, name, head)
        writer = Writer(name, model.opsets[""], analysis.types[data])
        write_out(writer, node, data, mask, normalisation.axes)
        graph.initializer.extend(writer.initializers)
        replaced[normalisation.node] = writer.nodes
    return replaced


class MaskedSession:
    """The masked model in ONNX Runtime.

    Parameters
    ----------
    model, analysis
        The model and its channels.
    options
        Provider and threads.
    outputs
        Tensors to return; the model's own outputs by default.
    """

    def __init__(
        self,
        model: Model,
        analysis: ChannelAnalysis,
        options: RuntimeOptions | None = None,
        outputs: Iterable[str] | None = None,
    ) -> None:
        names = list(model.output_names if outputs is None else outputs)
        self.unit_count = analysis.unit_count
        self._session = Session(with_outputs(masked_proto(model, analysis), names), options)

    def run(self, feeds: Mapping[str, Array], alive: npt.ArrayLike) -> dict[str, Array]:
        """Return the outputs by name with the units multiplied by `alive`, shape (units,), 1 keeps and 0 removes."""
        mask = np.asarray(alive, dtype=np.float32)
        if mask.shape != (self.unit_count,):
            raise ValueError(f"The mask has shape {mask.shape}; the model has {self.unit_count} units.")
        return self._session.run({**feeds, MASK_INPUT: mask})
