"""What `inspect` reports: groups with what they cost, and pins."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from oamip_onnx.budget import costs_of
from oamip_onnx.channels import ChannelAnalysis
from oamip_onnx.model import Model
from oamip_onnx.report.schema import SCHEMA_VERSION, PinRecord


class GroupInspection(BaseModel):
    """One group; the shares are of the model's costs that touch its channels."""

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
    """The channels of a model; the smallest shares are what is left with every group at its minimum width."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    parameters: int
    macs: int
    smallest_parameters: float
    smallest_macs: float
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
        own[group.units] = _minimum(group.width, group.blocks)
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
    least = costs_of(model, analysis, smallest)
    return Inspection(
        parameters=full.parameters,
        macs=full.macs,
        smallest_parameters=least.parameters / max(full.parameters, 1),
        smallest_macs=least.macs / max(full.macs, 1),
        groups=groups,
        pinned=[PinRecord(tensor=p.tensor, code=str(p.code), reason=p.reason) for p in analysis.pinned],
        notes=list(model.notes),
    )


def _minimum(
    width: int, blocks: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    kept = np.zeros(width, dtype=np.bool_)
    firsts = [0] if blocks is None else np.unique(blocks, return_index=True)[1]
    kept[firsts] = True
    return kept
