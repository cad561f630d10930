"""Normalisations: over the batch, over a sample, over channels."""

import torch
from torch.nn import functional

from oamip_onnx.training.operators.contraction import windows
from oamip_onnx.training.operators.table import Function, Operation, Tensor, operator

STATISTICS = (3, 4)
"""The operands of BatchNormalization that hold mean and variance."""


@operator("BatchNormalization", weights=(1, 2))
def batch_normalization(operation: Operation) -> Function:
    """BatchNormalization, by stored statistics or, in training, by those of the batch."""
    operation.only_output()
    operation.refuse(training_mode=(0,))
    epsilon, mode = operation.get("epsilon", 1e-5), operation.mode
    own_momentum = 1 - operation.get("momentum", 0.9)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        momentum = own_momentum if mode.momentum is None else mode.momentum
        return functional.batch_norm(x, mean, variance, scale, bias, mode.batch_statistics, momentum, epsilon)

    return run


@operator("InstanceNormalization", weights=(1, 2))
def instance_normalization(operation: Operation) -> Function:
    """InstanceNormalization."""
    epsilon = operation.get("epsilon", 1e-5)
    return lambda x, scale, bias: functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization", weights=(1, 2))
def layer_normalization(operation: Operation) -> Function:
    """LayerNormalization, whose gain and offset broadcast."""
    operation.only_output()
    axis, epsilon = operation.get("axis", -1), operation.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor = None) -> Tensor:
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return functional.layer_norm(x, shape, scale, bias, epsilon)
        y = functional.layer_norm(x, shape, eps=epsilon) * scale
        return y if bias is None else y + bias

    return run


@operator("RMSNormalization", weights=(1,))
def rms_normalization(operation: Operation) -> Function:
    """RMSNormalization."""
    operation.only_output()
    axis, epsilon = operation.get("axis", -1), operation.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        axes = list(range(axis % x.dim(), x.dim()))
        return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + epsilon) * scale

    return run


@operator("GroupNormalization", weights=(1, 2))
def group_normalization(operation: Operation) -> Function:
    """GroupNormalization, with a gain for every group before opset 21 and for every channel since."""
    epsilon, groups = operation.get("epsilon", 1e-5), operation.get("num_groups")

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if operation.opset < 21:
            scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
        return functional.group_norm(x, groups, scale, bias, epsilon)

    return run


@operator("LRN")
def local_response(operation: Operation) -> Function:
    """LRN: a window of neighbouring channels, of which an even one reaches further to the back."""
    size, alpha, beta = operation.get("size"), operation.get("alpha", 1e-4), operation.get("beta", 0.75)
    bias = operation.get("bias", 1.0)

    def run(x: Tensor) -> Tensor:
        padding = [0] * (2 * (x.dim() - 2)) + [(size - 1) // 2, size // 2]
        power = windows(functional.pad(x * x, padding), size)
        return x / (bias + alpha / size * power) ** beta

    return run


@operator("LpNormalization")
def lp_normalization(operation: Operation) -> Function:
    """LpNormalization; where the norm is zero, so is the result."""
    axis, order = operation.get("axis", -1), operation.get("p", 2)

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, order, axis, keepdim=True)
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)

    return run


@operator("MeanVarianceNormalization")
def mean_variance(operation: Operation) -> Function:
    """MeanVarianceNormalization, with the epsilon that ONNX defines."""
    axes, epsilon = operation.get("axes", [0, 2, 3]), 1e-9

    def run(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / ((centred * centred).mean(axes, keepdim=True).sqrt() + epsilon)

    return run


def _softmax_like(operation: Operation, function: Function) -> Function:
    """Return a function over one axis, or over all from one on before opset 13."""
    if operation.opset >= 13:
        axis = operation.get("axis", -1)
        return lambda x: function(x, axis)
    first = operation.get("axis", 1)

    def run(x: Tensor) -> Tensor:
        rows = x.shape[: first % x.dim()].numel()
        return function(x.reshape(rows, -1), -1).reshape(x.shape)

    return run


@operator("Softmax")
def softmax(operation: Operation) -> Function:
    """Softmax."""
    return _softmax_like(operation, torch.softmax)


@operator("LogSoftmax")
def log_softmax(operation: Operation) -> Function:
    """LogSoftmax."""
    return _softmax_like(operation, torch.log_softmax)


@operator("Hardmax", gradient=False)
def hardmax(operation: Operation) -> Function:
    """Hardmax: one at the first largest element."""
    return _softmax_like(
        operation, lambda x, axis: torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)
    )
