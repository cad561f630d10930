"""Functions of one tensor, element by element."""

import math

import torch
from torch.nn import functional

from oamip_onnx.training.operators.table import Function, Operation, Tensor, operator, simple

for _name, _function in {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": functional.hardswish,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}.items():
    simple(_name, _function)

for _name, _function in {
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Not": torch.logical_not,
    "Round": torch.round,
    "Sign": torch.sign,
}.items():
    simple(_name, _function, gradient=False)


@operator("Celu")
def celu(operation: Operation) -> Function:
    """Celu."""
    alpha = operation.get("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


@operator("Elu")
def elu(operation: Operation) -> Function:
    """Elu."""
    alpha = operation.get("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


@operator("Selu")
def selu(operation: Operation) -> Function:
    """Selu, with the node's own constants."""
    alpha, gamma = operation.get("alpha", 1.67326319217681884765625), operation.get("gamma", 1.05070102214813232421875)
    return lambda x: gamma * functional.elu(x, alpha)


@operator("LeakyRelu")
def leaky_relu(operation: Operation) -> Function:
    """LeakyRelu."""
    alpha = operation.get("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(operation: Operation) -> Function:
    """ThresholdedRelu."""
    alpha = operation.get("alpha", 1.0)
    return lambda x: functional.threshold(x, alpha, 0.0)


@operator("HardSigmoid")
def hard_sigmoid(operation: Operation) -> Function:
    """HardSigmoid."""
    alpha, beta = operation.get("alpha", 0.2), operation.get("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0, 1)


@operator("Shrink")
def shrink(operation: Operation) -> Function:
    """Shrink."""
    bias, bound = operation.get("bias", 0.0), operation.get("lambd", 0.5)
    return lambda x: torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))


@operator("Gelu", "com.microsoft:Gelu")
def gelu(operation: Operation) -> Function:
    """Gelu, exact or by the hyperbolic tangent."""
    approximate = operation.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


@operator("com.microsoft:FastGelu", weights=(1,))
def fast_gelu(_operation: Operation) -> Function:
    """ONNX Runtime's Gelu by the hyperbolic tangent, with a bias."""
    return lambda x, bias=None: functional.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("com.microsoft:BiasGelu", weights=(1,))
def bias_gelu(_operation: Operation) -> Function:
    """ONNX Runtime's Gelu of a sum with a bias."""
    return lambda x, bias: functional.gelu(x + bias)


@operator("Swish", "com.microsoft:QuickGelu")
def swish(operation: Operation) -> Function:
    """x·sigmoid(alpha·x)."""
    alpha = operation.get("alpha", 1.702 if operation.op_type == "QuickGelu" else 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


@operator("PRelu", weights=(1,))
def prelu(_operation: Operation) -> Function:
    """PRelu, whose slope broadcasts."""
    return lambda x, slope: torch.where(x < 0, slope * x, x)


@operator("Clip", sizes=(1, 2))
def clip(operation: Operation) -> Function:
    """Clip, with bounds as attributes before opset 11 and as operands since."""
    low, high = operation.get("min"), operation.get("max")

    def run(x: Tensor, least: Tensor = None, most: Tensor = None) -> Tensor:
        lower, upper = (low if least is None else least.item()), (high if most is None else most.item())
        return x if lower is None and upper is None else x.clamp(lower, upper)

    return run


@operator("IsInf", gradient=False)
def is_inf(operation: Operation) -> Function:
    """IsInf, of either sign."""
    negative, positive = operation.get("detect_negative", 1), operation.get("detect_positive", 1)

    def run(x: Tensor) -> Tensor:
        return ((x == math.inf) & bool(positive)) | ((x == -math.inf) & bool(negative))

    return run
