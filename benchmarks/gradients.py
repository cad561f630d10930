"""Gradients with respect to the mask, in PyTorch: the criteria of others that need backpropagation, for comparison.

    python benchmarks/gradients.py [--models examples/fashion/*.onnx] [--samples 64]

The masked model is interpreted in PyTorch, operator by operator, for the operators of plain convolutional and fully
connected networks. With ℓ_i the cross-entropy of sample i to the class that the original predicts, and m the mask,

    fisher:  mean_i (∂ℓ_i/∂m_g)²,    taylor:  |mean_i ∂ℓ_i/∂m_g|

at m = 1. (Theis et al. 2018, Liu et al. 2021; Molchanov et al. 2019.) Since the mask stands in front of the weights W_g
that read a unit, ∂ℓ/∂m_g = Σ W_g·∂ℓ/∂W_g, the first-order Taylor term of removing all of them at once. As a script it
compares the interpreted logits with ONNX Runtime's, under the full mask and under a random one.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from oamip_onnx.calibration import BATCH_SIZE, Samples
from oamip_onnx.config import make_config
from oamip_onnx.masking import MASK_INPUT, MaskedSession, masked_proto
from oamip_onnx.model import Array
from oamip_onnx.preparation import Prepared, prepare

if importlib.util.find_spec("torch") is None and __name__ == "__main__":
    print("PyTorch is not installed: there is nothing to check.")
    sys.exit(0)

import torch
from torch import Tensor
from torch.nn import functional

FASHION = Path(__file__).resolve().parent.parent / "examples" / "fashion"
NETWORKS = Path(__file__).resolve().parent / "networks"

FloatArray = npt.NDArray[np.float64]
Attributes = dict[str, Any]
Operator = Callable[[list[Tensor], Attributes], Tensor]

# Largest difference between the logits of PyTorch and ONNX Runtime, relative to the largest logit.
TOLERANCE = 1e-4


class MaskedNetwork:
    """The masked model in PyTorch, checked against ONNX Runtime.

    Parameters
    ----------
    prepared
        The model with its channels and samples; it has one input.

    Raises
    ------
    ValueError
        If an operator is not known here, or the logits differ from ONNX Runtime's.
    """

    def __init__(self, prepared: Prepared) -> None:
        graph = masked_proto(prepared.model, prepared.analysis).graph
        self._prepared = prepared
        (self._input,) = prepared.model.input_names
        # Copied: ONNX's arrays are read-only.
        self._constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        self._nodes = []
        for node in graph.node:
            if node.op_type not in OPERATORS or node.domain not in {"", "ai.onnx"} or len(node.output) > 1:
                raise ValueError(f"The node {node.name!r} ({node.op_type}) has no counterpart here.")
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            self._nodes.append((node, OPERATORS[node.op_type], attributes))
        self._check()

    def __call__(self, feed: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of a batch with the units multiplied by the mask, shape (units,)."""
        values = {**self._constants, self._input: feed, MASK_INPUT: mask}
        for node, operator, attributes in self._nodes:
            values[node.output[0]] = operator([values[name] for name in node.input if name], attributes)
        return values[self._prepared.logits]

    def gradients(self, samples: Samples | None = None) -> FloatArray:
        """Return ∂ℓ_i/∂m_g at the full mask, shape (samples, units), on the prepared samples by default."""

        def loss(mask: Tensor, sample: Tensor, label: Tensor) -> Tensor:
            logits = self(sample[None], mask)[0]
            return torch.logsumexp(logits, 0) - (label * logits).sum()

        of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        full = torch.ones(self._prepared.analysis.unit_count)
        found = []
        for feeds in (samples or self._prepared.samples).batches(BATCH_SIZE):
            feed = torch.from_numpy(np.ascontiguousarray(feeds[self._input]))
            with torch.no_grad():
                logits = self(feed, full)
            labels = functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
            found.append(of_each(full, feed, labels).numpy().astype(np.float64))
        return np.concatenate(found)

    def _check(self) -> None:
        """Raise if the logits of a few samples differ from ONNX Runtime's."""
        prepared = self._prepared
        feeds = next(prepared.samples.batches(BATCH_SIZE))
        session = MaskedSession(prepared.model, prepared.analysis, prepared.options, [prepared.logits])
        count = prepared.analysis.unit_count
        for mask in (np.ones(count, np.float32), np.random.default_rng(0).integers(0, 2, count).astype(np.float32)):
            expected = session.run(feeds, mask)[prepared.logits]
            with torch.no_grad():
                logits = self(torch.from_numpy(np.ascontiguousarray(feeds[self._input])), torch.from_numpy(mask))
            error = float(np.abs(logits.numpy() - expected).max() / np.abs(expected).max())
            if not error < TOLERANCE:
                raise ValueError(f"PyTorch's logits differ from ONNX Runtime's by {error:.1e} of the largest.")


def fisher(network: MaskedNetwork) -> FloatArray:
    """Return the mean square of each unit's gradient over the samples, shape (units,)."""
    return np.asarray((network.gradients() ** 2).mean(axis=0))


def taylor(network: MaskedNetwork) -> FloatArray:
    """Return the absolute mean of each unit's gradient over the samples, shape (units,)."""
    return np.asarray(np.abs(network.gradients().mean(axis=0)))


def _padded(data: Tensor, attributes: Attributes, value: float = 0.0) -> Tensor:
    """Return data with the padding of a window operator, begin and end of each axis as ONNX has them."""
    if attributes.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
        raise ValueError(f"The padding {attributes['auto_pad']!r} has no counterpart here.")
    pads = attributes.get("pads", [])
    half = len(pads) // 2
    # PyTorch wants pairs, the last axis first.
    pairs = [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]
    return functional.pad(data, pairs, value=value) if any(pairs) else data


def _conv(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    data, weight, *bias = inputs
    convolve = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[data.ndim]
    ones = [1] * (data.ndim - 2)
    return convolve(
        _padded(data, attributes),
        weight,
        bias[0] if bias else None,
        stride=attributes.get("strides", ones),
        dilation=attributes.get("dilations", ones),
        groups=attributes.get("group", 1),
    )


def _gemm(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    left, right, *bias = inputs
    left = left.transpose(0, 1) if attributes.get("transA", 0) else left
    right = right.transpose(0, 1) if attributes.get("transB", 0) else right
    product = attributes.get("alpha", 1.0) * (left @ right)
    return product + attributes.get("beta", 1.0) * bias[0] if bias else product


def _max_pool(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    return functional.max_pool2d(
        _padded(inputs[0], attributes, -np.inf),
        attributes["kernel_shape"],
        attributes.get("strides", [1, 1]),
        dilation=attributes.get("dilations", [1, 1]),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _average_pool(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    if any(attributes.get("pads", [])) and not attributes.get("count_include_pad", 0):
        raise ValueError("An average pool that leaves its padding out has no counterpart here.")
    return functional.avg_pool2d(
        _padded(inputs[0], attributes),
        attributes["kernel_shape"],
        attributes.get("strides", [1, 1]),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _reduce_mean(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    axes = inputs[1].tolist() if len(inputs) > 1 else attributes.get("axes", list(range(inputs[0].ndim)))
    return inputs[0].mean(dim=axes, keepdim=bool(attributes.get("keepdims", 1)))


def _flatten(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    shape = inputs[0].shape
    axis = attributes.get("axis", 1) % (len(shape) + 1)
    return inputs[0].reshape(int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))


def _reshape(inputs: list[Tensor], _: Attributes) -> Tensor:
    data, wanted = inputs[0], inputs[1].tolist()
    return data.reshape([data.shape[i] if size == 0 else size for i, size in enumerate(wanted)])


def _batch_normalisation(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    data, scale, offset, mean, variance = inputs
    factor = scale / torch.sqrt(variance + attributes.get("epsilon", 1e-5))
    shape = [1, -1, *[1] * (data.ndim - 2)]
    return data * factor.reshape(shape) + (offset - mean * factor).reshape(shape)


def _gather(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    data, indices = inputs
    axis = attributes.get("axis", 0) % data.ndim
    taken = torch.index_select(data, axis, (indices % data.shape[axis]).reshape(-1))
    return taken.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


def _cast(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    kind: Array = np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
    return inputs[0].to(torch.from_numpy(kind).dtype)


OPERATORS: dict[str, Operator] = {
    "Add": lambda x, _: x[0] + x[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalisation,
    "Cast": _cast,
    "Concat": lambda x, a: torch.cat(x, dim=a["axis"]),
    "Constant": lambda _, a: torch.from_numpy(numpy_helper.to_array(a["value"]).copy()),
    "Conv": _conv,
    "Div": lambda x, _: x[0] / x[1],
    "Dropout": lambda x, _: x[0],
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x, _: x[0].mean(dim=list(range(2, x[0].ndim)), keepdim=True),
    "Identity": lambda x, _: x[0],
    "MatMul": lambda x, _: x[0] @ x[1],
    "MaxPool": _max_pool,
    "Mul": lambda x, _: x[0] * x[1],
    "ReduceMean": _reduce_mean,
    "Relu": lambda x, _: torch.relu(x[0]),
    "Reshape": _reshape,
    "Sub": lambda x, _: x[0] - x[1],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", default=sorted(NETWORKS.glob("*.onnx")))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="four samples, as a smoke test")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = make_config({"threads": 1, "samples": 4 if args.quick else args.samples})
    for path in args.models:
        network = MaskedNetwork(prepare(path, FASHION / "calibration.npz", config))
        found = network.gradients()
        print(f"{path.stem}: the logits agree; gradients of {found.shape[0]} samples for {found.shape[1]} units.")


if __name__ == "__main__":
    main()
