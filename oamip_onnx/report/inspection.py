"""What `inspect` reports: groups with what they cost, pins, and what the program can encode."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from oamip_onnx.budget import costs_of
from oamip_onnx.channels import BoolArray, ChannelAnalysis, ChannelGroup
from oamip_onnx.formulation import BUILDERS
from oamip_onnx.model import Costs, Model
from oamip_onnx.report.schema import SCHEMA_VERSION, PinRecord

_PRODUCTS = frozenset({"Conv", "Div", "Gemm", "MatMul", "Mul"})


class GroupInspection(BaseModel):
    """One group; the shares are of the model's costs that touch its channels.

    Attributes
    ----------
    blocks
        Number of blocks that must keep equally many units; 1 where units are free.
    minimum_width
        Fewest units that must stay; 0 where the branch may vanish.
    exact
        Whether removal equals zeroing; False under a normalisation over these channels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tensors: list[str]
    width: int
    blocks: int
    minimum_width: int
    exact: bool
    macs_share: float
    parameters_share: float


class Inspection(BaseModel):
    """The channels of a model.

    Attributes
    ----------
    smallest_parameters, smallest_macs
        Shares that are left with every group at its minimum width.
    encodable_nodes, encodable_macs
        Shares of the nodes, and of the MACs in them, that the program in shift form can express.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    parameters: int
    macs: int
    smallest_parameters: float
    smallest_macs: float
    encodable_nodes: float
    encodable_macs: float
    groups: list[GroupInspection]
    pinned: list[PinRecord]
    notes: list[str]


def inspect_channels(model: Model, analysis: ChannelAnalysis) -> Inspection:
    """Return groups, pins, and the largest reduction possible."""
    everything = np.ones(analysis.unit_count, dtype=np.bool_)
    full = costs_of(model, analysis, everything)
    smallest = everything.copy()
    groups = []
    for group in analysis.groups:
        # The share that hangs on a group is what disappears when it is narrowed to its minimum, all others untouched.
        own = everything.copy()
        own[group.units] = _minimum(group)
        smallest[group.units] = own[group.units]
        costs = costs_of(model, analysis, own)
        groups.append(
            GroupInspection(
                name=group.name,
                tensors=list(group.tensors),
                width=group.width,
                blocks=group.block_count,
                minimum_width=group.minimum_width,
                exact=group.exact,
                macs_share=1 - costs.macs / max(full.macs, 1),
                parameters_share=1 - costs.parameters / max(full.parameters, 1),
            )
        )
    nodes, macs = _encodable(model, full)
    least = costs_of(model, analysis, smallest)
    return Inspection(
        parameters=full.parameters,
        macs=full.macs,
        smallest_parameters=least.parameters / max(full.parameters, 1),
        smallest_macs=least.macs / max(full.macs, 1),
        encodable_nodes=nodes,
        encodable_macs=macs,
        groups=groups,
        pinned=[PinRecord(tensor=p.tensor, code=str(p.code), reason=p.reason) for p in analysis.pinned],
        notes=list(model.notes),
    )


def _minimum(group: ChannelGroup) -> BoolArray:
    kept = np.zeros(group.width, dtype=np.bool_)
    for members in group.members() if group.minimum_width else []:
        kept[members[0]] = True
    return kept


def _encodable(model: Model, costs: Costs) -> tuple[float, float]:
    """Return the shares of nodes, and of MACs in them, that the program in shift form has a builder for.

    Products count only with one operand that the data reach: their product is not linear in the scores.
    """
    fits = []
    for index, node in enumerate(model.graph.node):
        data = sum(bool(name) and not model.is_constant(name) for name in node.input)
        if not node.domain and node.op_type in BUILDERS and (data == 1 or node.op_type not in _PRODUCTS):
            fits.append(index)
    macs = sum(costs.macs_by_node.get(i, 0) for i in fits)
    return len(fits) / max(len(model.graph.node), 1), macs / max(costs.macs, 1)
