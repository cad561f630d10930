"""The masked model: the original graph with every contraction's data operand multiplied by a 0/1 mask.

This is what "removed" means before anything is cut: the unit's value is zero wherever a contraction would read it. The
mask is an input, so one session serves every subset of units.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from oamip_onnx.channels import FIXED, ChannelAnalysis, Contraction
from oamip_onnx.model import Array, Model, with_outputs
from oamip_onnx.runtime import RuntimeOptions, Session

MASK_INPUT = "oamip_mask"


def masked_proto(model: Model, analysis: ChannelAnalysis) -> onnx.ModelProto:
    """Return a copy of the model with one more input, `MASK_INPUT`, float32 of shape (units,): 1 keeps, 0 removes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    graph.input.append(helper.make_tensor_value_info(MASK_INPUT, TensorProto.FLOAT, [analysis.unit_count]))
    head, before = _mask_nodes(graph, analysis)
    nodes = [*head]
    for index, node in enumerate(graph.node):
        nodes.extend(before.get(index, []))
        nodes.append(node)
    copies = [onnx.NodeProto() for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)
    return proto


def _mask_nodes(
    graph: onnx.GraphProto, analysis: ChannelAnalysis
) -> tuple[list[onnx.NodeProto], dict[int, list[onnx.NodeProto]]]:
    """Point the contractions' operands at masked tensors; return the nodes for the front and those before each node."""
    one = numpy_helper.from_array(np.ones(1, np.float32), "oamip_mask_one")
    graph.initializer.append(one)
    head = [helper.make_node("Concat", [MASK_INPUT, one.name], ["oamip_mask_all"], axis=0)]
    before: dict[int, list[onnx.NodeProto]] = {}
    masked: dict[tuple[str, bytes], str] = {}
    for contraction in analysis.contractions:
        key = (contraction.tensor, contraction.units.tobytes())
        if key not in masked:
            name = f"oamip_masked_{len(masked)}"
            factors, multiply = _masking(graph, contraction, analysis, name)
            head += factors
            before.setdefault(contraction.node, []).append(multiply)
            masked[key] = name
        graph.node[contraction.node].input[contraction.operand] = masked[key]
    return head, before


def _masking(
    graph: onnx.GraphProto, contraction: Contraction, analysis: ChannelAnalysis, name: str
) -> tuple[list[onnx.NodeProto], onnx.NodeProto]:
    cells = np.where(contraction.units == FIXED, analysis.unit_count, contraction.units)
    graph.initializer.append(numpy_helper.from_array(cells.astype(np.int64), f"{name}_units"))
    factor = f"{name}_factor"
    nodes = [helper.make_node("Gather", ["oamip_mask_all", f"{name}_units"], [factor], axis=0)]
    element_type = analysis.types[contraction.tensor].element_type
    if element_type != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [factor], [f"{factor}_cast"], to=element_type))
        factor = f"{factor}_cast"
    return nodes, helper.make_node("Mul", [contraction.tensor, factor], [name])


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
