"""A subnetwork and the network that it is part of: which units it keeps, and others of the same widths."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from oamip_onnx.calibration import Samples
from oamip_onnx.channels import BoolArray, ChannelAnalysis, select_units
from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.errors import DataError, ModelError, UsageError
from oamip_onnx.model import Model, load_model
from oamip_onnx.preparation import ModelSource, prepare
from oamip_onnx.report import Result, read_result
from oamip_onnx.surgery import cut

# What surgery adds to a graph has such names.
_ADDED = "oamip_"


@dataclass(frozen=True)
class Parent:
    """A network, and the units of it that a subnetwork keeps.

    Attributes
    ----------
    model
        What is cut: the network with a bias at every layer where the subnetwork has them.
    analysis
        Its channels.
    kept
        Whether the subnetwork keeps each unit, shape (units,).
    """

    model: Model
    analysis: ChannelAnalysis
    kept: BoolArray

    def subnetwork(self) -> Model:
        """Return the subnetwork with the weights that the network has."""
        return load_model(cut(self.model, self.analysis, self.kept))

    def random_subnetwork(self, seed: int) -> Model:
        """Return a subnetwork of the same widths whose units are drawn."""
        widths = [int(self.kept[group.units].sum()) for group in self.analysis.groups]
        scores = np.random.default_rng([seed, 1]).random(self.analysis.unit_count)
        return load_model(cut(self.model, self.analysis, select_units(self.analysis, widths, scores)))


def load_result(result: str | Path | Result) -> Result:
    """Return the result of ``oamip prune --json``.

    Raises
    ------
    DataError, UsageError
        If the file is no such result, or units were merged, so that the network holds no such subnetwork.
    """
    found = result if isinstance(result, Result) else read_result(Path(result))
    if found.lossless is not None and found.lossless.merged:
        raise UsageError(
            "The subnetwork was made by --lossless, which merged layers: no units of the original make it up. Leave "
            "--result out, or prune with a target."
        )
    return found


def find_parent(source: ModelSource, result: Result, samples: Samples) -> Parent:
    """Return a network and the units of it that a result keeps.

    Parameters
    ----------
    source
        The network before pruning, with any weights.
    result
        What ``oamip prune --json`` has said about the subnetwork.
    samples
        Samples, for shapes.

    Raises
    ------
    DataError
        If the result is of another network.
    """
    prepared = prepare(source, replace(samples, labels=None), _settings(result))
    analysis = prepared.analysis
    wanted = [(group.name, group.before) for group in result.groups]
    found = [(group.name, group.width) for group in analysis.groups]
    if found != wanted:
        first = next((one for one in wanted if one not in found), None)
        detail = f"{len(found)} groups instead of {len(wanted)}"
        if first is not None:
            detail = f"no group {first[0]!r} of {first[1]} units"
        raise DataError(
            f"The result is of another network: the original has {detail}; give the file that was pruned as --original "
            "or --initial, and the --json of that run as --result."
        )
    kept = np.zeros(analysis.unit_count, np.bool_)
    for group, record in zip(analysis.groups, result.groups, strict=True):
        kept[group.first_unit + np.asarray(record.kept, np.int64)] = True
    return Parent(prepared.stored, analysis, kept)


def _settings(result: Result) -> PruneConfig:
    """Return the settings that channels and biases depend on; where it ran is of no account."""
    names = ("allow_inexact", "heads", "ignore", "input_shapes", "only", "repair")
    return make_config({name: result.config[name] for name in names if name in result.config})


def check_same_structure(found: Model, wanted: Model, what: str) -> None:
    """Raise unless two models differ in nothing but the values of weights and the number of classes.

    Parameters
    ----------
    found, wanted
        The models; `what` says which two.

    Raises
    ------
    ModelError
        With the first difference.
    """
    left, right = (_nodes(model.proto) for model in (found, wanted))
    difference = next((f"the node {a[2][0]!r}" for a, b in zip(left, right, strict=False) if a != b), None)
    if difference is None and len(left) != len(right):
        difference = f"{len(left)} nodes against {len(right)}"
    if difference is None:
        sizes, others = ({t.name: tuple(t.dims) for t in model.graph.initializer} for model in (found, wanted))
        names = sorted(name for name in {*sizes, *others} if sizes.get(name) != others.get(name))
        if names:
            difference = f"the weight {names[0]!r}: {sizes.get(names[0])} against {others.get(names[0])}"
    if difference is not None:
        raise ModelError(f"{what}: they differ in {difference}; give the files of the same run of oamip prune.")


def _nodes(proto: onnx.ModelProto) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(node.op_type, tuple(node.input), tuple(node.output)) for node in proto.graph.node]


def check_is_part(subnetwork: Model, original: Model) -> None:
    """Raise if a model is certainly no subnetwork of another: other inputs, nodes of its own, larger weights.

    Parameters
    ----------
    subnetwork, original
        The models, for the same number of classes.

    Raises
    ------
    ModelError
        With the first difference.
    """
    difference = None
    if subnetwork.input_names != original.input_names:
        difference = f"its inputs are {list(original.input_names)}"
    own = {tuple(node.output): node.op_type for node in original.graph.node}
    for node in subnetwork.graph.node:
        # An Add of a branch that vanished is an Identity now.
        is_own = own.get(tuple(node.output)) == node.op_type or node.op_type == "Identity"
        if difference is None and not is_own and not node.output[0].startswith(_ADDED):
            difference = f"it has no {node.op_type} that makes {node.output[0]!r}"
    for name, tensor in subnetwork.initializers.items():
        wide, narrow = original.initializers.get(name), tuple(tensor.dims)
        if difference is None and wide is not None and not _holds(tuple(wide.dims), narrow):
            difference = f"its weight {name!r} has the shape {tuple(wide.dims)}, that of the model {narrow}"
    if difference is not None:
        raise ModelError(f"The model is no subnetwork of the original: {difference}; give the model before pruning.")


def _holds(wide: tuple[int, ...], narrow: tuple[int, ...]) -> bool:
    return len(wide) == len(narrow) and all(w >= n for w, n in zip(wide, narrow, strict=True))
