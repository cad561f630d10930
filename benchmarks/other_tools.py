"""Other tools that narrow networks without training, each at a share of the MACs: what `accuracy.py` compares with.

    python benchmarks/other_tools.py [--models benchmarks/networks/*.onnx]

* onnxsim (0.8.1 or later; `pip install onnxsim`) drops channels of the ONNX file by ‖W‖ or by Wanda's ‖W‖·‖X‖, and
  recovers by its own refit of the fully connected layers, `apply_pruning_finetune`.
* Torch-Pruning (1.6 or later; `pip install torch torch-pruning onnxscript`) prunes PyTorch modules, which are built
  here of the ONNX graph, by magnitude or by the first-order Taylor term with gradients of the cross-entropy to the
  classes that the model itself predicts. What it leaves is exported to ONNX.

Both have one number that says how much goes, of every layer alike or, as ``…-global``, ranked over all layers; it is
searched so that the MACs come just below the share wanted. As a script this compares the logits of the PyTorch modules
with ONNX Runtime's.
"""

import argparse
import importlib
import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx.numpy_helper import to_array

from oamip_onnx.calibration import BATCH_SIZE
from oamip_onnx.config import make_config
from oamip_onnx.model import Array, Model
from oamip_onnx.preparation import Prepared, prepare
from oamip_onnx.verify import run_output

FASHION = Path(__file__).resolve().parent.parent / "examples" / "fashion"
NETWORKS = Path(__file__).resolve().parent / "networks"

# The search for the number that reaches a share of the MACs: steps upwards, then halvings of the last one.
STEPS, HALVINGS = 16, 6

# Largest difference between the logits of PyTorch and ONNX Runtime, relative to the largest logit.
TOLERANCE = 1e-4

OPSET = 17

# PyTorch's modules and graphs, which have no types here.
Torch = Any

Counter = Callable[[onnx.ModelProto], float]


class PeerError(Exception):
    """A tool cannot do what is asked of it."""


@dataclass(frozen=True)
class Pruned:
    """What a tool made of a model.

    Attributes
    ----------
    proto
        The narrower model.
    seconds
        The time that it took, the search for the number aside.
    ratio
        The number that the tool was given.
    """

    proto: onnx.ModelProto
    seconds: float
    ratio: float


class Peer:
    """A tool, ready for one model and its images.

    Parameters
    ----------
    prepared
        The model and its samples.
    across
        Whether units are ranked over all layers.
    round_to
        What widths are to be multiples of, where the tool can be told.
    """

    needs: ClassVar[tuple[str, ...]]
    install: ClassVar[str]

    def __init__(self, prepared: Prepared, *, across: bool, round_to: int) -> None:
        self.prepared, self.across, self.round_to = prepared, across, round_to

    def cut(self, ratio: float) -> onnx.ModelProto:
        """Return the model without a share of its units; each tool has its own way."""
        raise NotImplementedError

    def learn(self) -> None:
        """Find out what every cut needs, by default nothing."""

    def recover(self, pruned: onnx.ModelProto) -> onnx.ModelProto:
        """Return a cut model after the tool's own recovery, by default none."""
        return pruned

    def prune(self, share: float, count: Counter) -> Pruned:
        """Return the model that is cut until just below a share of the MACs, which `count` tells.

        Raises
        ------
        PeerError
            If the tool cannot remove so much.
        """
        began = time.perf_counter()
        self.learn()
        learning = time.perf_counter() - began
        low, best, least = 0.0, None, 1.0
        # Upwards: what would lose all units of a layer may keep them instead.
        for high in np.arange(1, STEPS) / STEPS:
            found = self._timed(float(high))
            least = min(least, count(found.proto))
            if least <= share:
                best = found
                break
            low = found.ratio
        if best is None:
            raise PeerError(f"it leaves {least:.3f} of the MACs at least")
        for _ in range(HALVINGS):
            middle = (low + best.ratio) / 2
            found = self._timed(middle)
            if count(found.proto) > share:
                low = middle
            else:
                best = found
        began = time.perf_counter()
        proto = self.recover(best.proto)
        return Pruned(proto, learning + best.seconds + time.perf_counter() - began, best.ratio)

    def _timed(self, ratio: float) -> Pruned:
        began = time.perf_counter()
        proto = self.cut(ratio)
        return Pruned(proto, time.perf_counter() - began, ratio)


class Onnxsim(Peer):
    """onnxsim's structured pruning by the norm of the weights."""

    needs = ("onnxsim",)
    install = "pip install 'onnxsim>=0.8.1'"

    def cut(self, ratio: float) -> onnx.ModelProto:
        """Return the model without a share of its units."""
        pruned: onnx.ModelProto = module("onnxsim").apply_structured_pruning(
            self._proto, sparsity=ratio, global_sparsity=self.across
        )
        return pruned

    def recover(self, pruned: onnx.ModelProto) -> onnx.ModelProto:
        """Return a cut model with its fully connected layers refit."""
        recovered: onnx.ModelProto = module("onnxsim").apply_pruning_finetune(self._proto, pruned, self._batches)
        return recovered

    @property
    def _proto(self) -> onnx.ModelProto:
        return self.prepared.original.proto

    @property
    def _batches(self) -> list[dict[str, Array]]:
        return list(self.prepared.samples.batches(BATCH_SIZE))


class OnnxsimWanda(Onnxsim):
    """onnxsim's structured pruning by the norms of weights and activations."""

    def cut(self, ratio: float) -> onnx.ModelProto:
        """Return the model without a share of its units."""
        pruned: onnx.ModelProto = module("onnxsim").apply_structured_wanda_pruning(
            self._proto, self._batches, sparsity=ratio, global_sparsity=self.across
        )
        return pruned


class TorchPruning(Peer):
    """Torch-Pruning by the norm of the weights."""

    needs = ("torch", "torch_pruning", "onnxscript")
    install = "pip install torch 'torch-pruning>=1.6' onnxscript"

    def __init__(self, prepared: Prepared, *, across: bool, round_to: int) -> None:
        import torch  # noqa: PLC0415 - a package that few have

        super().__init__(prepared, across=across, round_to=round_to)
        torch.set_num_threads(1)
        self.network = checked_network(prepared)

    def importance(self) -> Torch:
        """Return Torch-Pruning's criterion."""
        return module("torch_pruning").importance.MagnitudeImportance(p=2)

    def cut(self, ratio: float) -> onnx.ModelProto:
        """Return the model without a share of its units."""
        import torch  # noqa: PLC0415 - as above

        network = deepcopy(self.network)
        for copied, own in zip(network.parameters(), self.network.parameters(), strict=True):
            copied.grad = None if own.grad is None else own.grad.clone()
        (feed,) = self.prepared.samples.one_run().values()
        example = torch.from_numpy(np.ascontiguousarray(feed))
        module("torch_pruning").pruner.BasePruner(
            network,
            (example,),  # a tensor of batch 1 by itself would be unpacked
            importance=self.importance(),
            global_pruning=self.across,
            pruning_ratio=ratio,
            ignored_layers=[classifier(network)],
            round_to=self.round_to if self.round_to > 1 else None,
        ).step()
        return exported(network, example, self.prepared.original)


class TorchPruningTaylor(TorchPruning):
    """Torch-Pruning by the first-order Taylor term."""

    def learn(self) -> None:
        """Find the gradients of the loss towards the model's own predictions."""
        import torch  # noqa: PLC0415 - as above

        self.network.zero_grad()
        for feeds in self.prepared.samples.batches(BATCH_SIZE):
            (feed,) = feeds.values()
            logits = self.network(torch.from_numpy(np.ascontiguousarray(feed)))
            torch.nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()

    def importance(self) -> Torch:
        """Return Torch-Pruning's criterion."""
        return module("torch_pruning").importance.TaylorImportance()


# By name: the tool, what it is called in tables, and whether it ranks over all layers.
PEERS: dict[str, tuple[type[Peer], str, bool]] = {
    f"{name}{suffix}": (peer, f"{label}{more}", bool(suffix))
    for suffix, more in (("", ""), ("-global", ", global"))
    for name, (peer, label) in {
        "onnxsim-l2": (Onnxsim, "onnxsim L2 + recovery"),
        "onnxsim-wanda": (OnnxsimWanda, "onnxsim Wanda + recovery"),
        "tp-magnitude": (TorchPruning, "Torch-Pruning magnitude"),
        "tp-taylor": (TorchPruningTaylor, "Torch-Pruning Taylor"),
    }.items()
}


def make_peer(name: str, prepared: Prepared, round_to: int = 1) -> Peer:
    """Return a tool that is ready for a model.

    Raises
    ------
    PeerError
        If it cannot be used on this model.
    """
    peer, _, across = PEERS[name]
    return peer(prepared, across=across, round_to=round_to)


def module(name: str) -> Any:
    """Return a module that few have installed."""
    return importlib.import_module(name)


def missing(peer: type[Peer]) -> bool:
    """Return whether a tool is not installed."""
    return any(importlib.util.find_spec(name) is None for name in peer.needs)


def checked_network(prepared: Prepared) -> Torch:
    """Return the model as a PyTorch module whose logits agree with ONNX Runtime's.

    Raises
    ------
    PeerError
        If a node has no counterpart here, or the logits differ.
    """
    import torch  # noqa: PLC0415 - as above

    model = prepared.original
    network = network_of(model)
    few = prepared.samples.take(slice(0, BATCH_SIZE))
    expected = run_output(model.proto, model.output_names[0], few, prepared.options)
    with torch.no_grad():
        logits = network(torch.from_numpy(np.ascontiguousarray(few.feeds[model.input_names[0]]))).numpy()
    error = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not error < TOLERANCE:
        raise PeerError(f"PyTorch's logits differ from ONNX Runtime's by {error:.1e} of the largest")
    return network


def network_of(model: Model) -> Torch:
    """Return a model of plain convolutional and fully connected layers as a PyTorch module.

    Raises
    ------
    PeerError
        If a node has no counterpart here.
    """
    import torch  # noqa: PLC0415 - as above

    if len(model.input_names) != 1 or len(model.output_names) != 1:
        raise PeerError("a PyTorch module is made here of models with one input and one output only")
    graph, modules = torch.fx.Graph(), {}
    values = {model.input_names[0]: graph.placeholder("x")}
    for number, node in enumerate(model.graph.node):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        inputs = [values[name] for name in node.input if name in values]
        weights = [to_array(model.initializers[name]) for name in node.input if name in model.initializers]
        if node.op_type == "Add" and len(inputs) == 2:
            values[node.output[0]] = graph.call_function(torch.add, tuple(inputs))
        elif node.op_type == "ReduceMean":
            axes = weights[0].tolist() if weights else list(attributes["axes"])
            values[node.output[0]] = graph.call_method("mean", (*inputs, axes, bool(attributes.get("keepdims", 1))))
        else:
            name = f"layer{number}"
            modules[name] = layer_of(node, attributes, weights)
            values[node.output[0]] = graph.call_module(name, tuple(inputs))
    graph.output(values[model.output_names[0]])
    return torch.fx.GraphModule(modules, graph).eval()


def layer_of(node: onnx.NodeProto, attributes: dict[str, Any], weights: Sequence[Array]) -> Torch:
    """Return a node as a PyTorch module.

    Raises
    ------
    PeerError
        If it has no counterpart here.
    """
    from torch import nn  # noqa: PLC0415 - as above

    kind, pads = node.op_type, attributes.get("pads", [0, 0, 0, 0])
    even = len(pads) == 4 and pads[:2] == pads[2:] and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    if kind == "Conv" and even and weights[0].ndim == 4:
        outputs, inputs, *kernel = weights[0].shape
        groups = attributes.get("group", 1)
        layer = nn.Conv2d(
            inputs * groups,
            outputs,
            tuple(kernel),
            stride=tuple(attributes.get("strides", (1, 1))),
            padding=tuple(pads[:2]),
            dilation=tuple(attributes.get("dilations", (1, 1))),
            groups=groups,
            bias=len(weights) > 1,
        )
        return with_weights(layer, weights)
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA")
    if kind == "Gemm" and plain and weights:
        matrix = weights[0] if attributes.get("transB") else weights[0].T
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=len(weights) > 1)
        return with_weights(layer, [matrix, *weights[1:]])
    if kind == "MaxPool" and even and not attributes.get("ceil_mode"):
        stride = tuple(attributes.get("strides", (1, 1)))
        return nn.MaxPool2d(tuple(attributes["kernel_shape"]), stride, tuple(pads[:2]))
    if kind == "Flatten" and attributes.get("axis", 1) == 1:
        return nn.Flatten()
    if kind == "Relu":
        return nn.ReLU()
    raise PeerError(f"the node {node.name!r} ({kind}) has no counterpart in PyTorch here")


def with_weights(layer: Torch, weights: Sequence[Array]) -> Torch:
    """Return a PyTorch module with given parameters: weight, and bias where it has one."""
    import torch  # noqa: PLC0415 - as above

    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(np.array(value)))
    return layer


def classifier(network: Torch) -> Torch:
    """Return the last layer with weights, whose outputs are the classes."""
    return [module for module in network.children() if hasattr(module, "weight")][-1]


def exported(network: Torch, example: Torch, like: Model) -> onnx.ModelProto:
    """Return a PyTorch module in ONNX, with the input and output names of a model and batches of any size."""
    import torch  # noqa: PLC0415 - as above

    name, output = like.input_names[0], like.output_names[0]
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            network,
            (example,),
            buffer,
            input_names=[name],
            output_names=[output],
            dynamic_axes={name: {0: "N"}, output: {0: "N"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return onnx.load_model_from_string(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", default=sorted(NETWORKS.glob("*.onnx")))
    parser.add_argument("--quick", action="store_true", help="four samples, as a smoke test")
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: there is nothing to check.")
        return
    config = make_config({"threads": 1, "samples": 4 if args.quick else 64})
    for path in args.models:
        try:
            checked_network(prepare(path, FASHION / "calibration.npz", config))
        except PeerError as error:
            print(f"{path.stem}: {error}.")
        else:
            print(f"{path.stem}: the logits agree.")


if __name__ == "__main__":
    main()
