"""One builder per operator: from an ONNX node to an affine map, a ReLU or a max-pool.

`BUILDERS` is the table; pass ``{**BUILDERS, "MyOp": builder}`` to `build_network` to extend or override it.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from scipy import sparse

from oamip_onnx.channels import FIXED
from oamip_onnx.formulation.geometry import windows_of
from oamip_onnx.formulation.network import Affine, MaxPool, Relu
from oamip_onnx.formulation.program import FloatArray, IntArray, SparseMatrix
from oamip_onnx.formulation.view import Builder, NodeView, Same
from oamip_onnx.model import attribute, batch_norm_affine, int_attribute, ints_attribute


def _csr(matrix: object) -> SparseMatrix:
    result = sparse.csr_array(matrix)  # type: ignore[call-overload]
    result.sum_duplicates()
    return result  # type: ignore[no-any-return]


def _diagonal(values: FloatArray) -> SparseMatrix:
    return _csr(sparse.diags_array(values.reshape(-1)))


def _conv(view: NodeView) -> Affine:
    """Write a convolution out: ``a_{o,p} = Σ_{i,k} w_{o,i,k} h_{i,p+k} + b_o`` for feature map o at position p.

    All positions of a feature map carry its unit, so that one score stands for the map.
    """
    weight = view.constant(1)
    shape_in, shape_out = view.shape(), view.output_shape
    groups = int_attribute(view.node, "group", 1)
    windows = windows_of(view.node, shape_in, shape_out, weight.shape[2:])
    cells = windows.cells()
    view.check_size(weight.size * len(cells))
    out_channels, in_per_group = weight.shape[:2]
    flat = weight.reshape(out_channels, in_per_group, -1)
    position, tap = np.nonzero(cells >= 0)
    source = cells[position, tap]
    channel_out, channel_in = np.divmod(np.arange(out_channels * in_per_group), in_per_group)
    group_start = channel_out // (out_channels // groups) * in_per_group
    size_in, size_out = math.prod(windows.spatial_in), math.prod(windows.spatial_out)
    rows = channel_out[:, None] * size_out + position
    columns = (group_start + channel_in)[:, None] * size_in + source
    values = flat[channel_out, channel_in][:, tap]
    matrix = sparse.coo_array(
        (values.reshape(-1), (rows.reshape(-1), columns.reshape(-1))),
        shape=(math.prod(shape_out), math.prod(shape_in)),
    )
    bias = np.repeat(view.constant(2), size_out) if view.has(2) else None
    return view.affine(_csr(matrix), bias, view.node.input[0])


def _gemm(view: NodeView) -> Affine:
    """State ``a = α W h + β b``, a fully connected layer; the last one gives the logits q."""
    if int_attribute(view.node, "transA", 0):
        raise view.refuse("transA turns the sample axis around")
    alpha, beta = attribute(view.node, "alpha", 1.0), attribute(view.node, "beta", 1.0)
    weight = view.constant(1) * alpha  # type: ignore[operator]
    weight = weight if int_attribute(view.node, "transB", 0) else weight.T
    bias = np.zeros(weight.shape[0])
    if view.has(2):
        bias = _per_sample_constant(view, 2).reshape(-1) * beta  # type: ignore[operator]
    return view.affine(_csr(weight), bias, view.node.input[0])


def _matmul(view: NodeView) -> Affine:
    """State ``a = W h`` for every row of the operand."""
    weight = view.constant(1)
    if weight.ndim != 2:
        raise view.refuse(f"its weights have {weight.ndim} axes")
    repeats = math.prod(view.shape()[:-1])
    view.check_size(weight.size * repeats)
    return view.affine(_csr(sparse.kron(sparse.eye_array(repeats), weight.T)), None, view.node.input[0])


def _batch_normalisation(view: NodeView) -> Affine:
    """State ``a = γ (h - μ)/√(σ² + ε) + β`` with the statistics of inference, an affine map a channel."""
    scale, shift, mean, variance = (view.constant(k) for k in range(1, 5))
    slope, offset = batch_norm_affine(view.node, scale, shift, mean, variance)
    repeats = math.prod(view.shape()[1:])
    return view.affine(_diagonal(np.repeat(slope, repeats)), np.repeat(offset, repeats))


def _per_sample_constant(view: NodeView, position: int) -> FloatArray:
    """Return a constant operand broadcast to the output's per-sample shape."""
    constant, shape = view.constant(position), view.output_shape
    if constant.ndim == len(shape) + 1:
        if constant.shape[0] != 1:
            raise view.refuse("a constant differs from sample to sample")
        constant = constant[0]
    return np.broadcast_to(constant, shape)


def _sum(view: NodeView, signs: tuple[float, float]) -> Affine:
    """State ``a = ± h₁ ± h₂``, a residual addition or a bias."""
    inputs, matrices, bias = [], [], np.zeros(math.prod(view.output_shape))
    for position, sign in enumerate(signs):
        if view.is_constant(position):
            bias = bias + sign * _per_sample_constant(view, position).reshape(-1)
        else:
            inputs.append(view.node.input[position])
            matrices.append(_broadcast_matrix(view, position) * sign)
    return Affine(view.output, tuple(inputs), tuple(_csr(m) for m in matrices), bias)


def _broadcast_matrix(view: NodeView, position: int) -> SparseMatrix:
    shape = view.shape(position)
    cells = np.arange(math.prod(shape)).reshape(shape)
    return _selection(np.broadcast_to(cells, view.output_shape).reshape(-1), cells.size)


def _selection(cells: IntArray, size: int) -> SparseMatrix:
    """Return the matrix that picks one cell per row; a negative cell gives zero."""
    rows = np.flatnonzero(cells >= 0)
    return _csr(sparse.coo_array((np.ones(rows.size), (rows, cells[rows])), shape=(cells.size, size)))


def _product(view: NodeView) -> Affine:
    """State ``a = c · h`` or ``a = h / c`` with a constant c."""
    constant = 1 if view.is_constant(1) else 0
    if view.is_constant(0) == view.is_constant(1):
        raise view.refuse("the product of two tensors that depend on the data is not linear")
    if view.node.op_type == "Div" and constant == 0:
        raise view.refuse("its divisor depends on the data")
    factor = _per_sample_constant(view, constant)
    factor = 1.0 / factor if view.node.op_type == "Div" else factor
    return view.affine(_csr(_diagonal(factor) @ _broadcast_matrix(view, 1 - constant)))


def _relu(view: NodeView) -> Relu:
    # The units are filled in from the labels by `build_network`.
    size = math.prod(view.output_shape)
    return Relu(view.output, view.node.input[0], np.full(size, FIXED, np.int64))


def _max_pool(view: NodeView) -> MaxPool:
    """State ``z_p = max_k h_{p+k}``; `constraints` has its rows."""
    if len(view.node.output) > 1 and view.node.output[1]:
        raise view.refuse("its output of indices is in use")
    shape = view.shape()
    kernel = ints_attribute(view.node, "kernel_shape") or list(shape[1:])
    cells = windows_of(view.node, shape, view.output_shape, kernel).cells()
    return MaxPool(view.output, view.node.input[0], _per_channel(cells, shape[0], math.prod(shape[1:])))


def _per_channel(cells: IntArray, channels: int, spatial: int) -> IntArray:
    starts = np.arange(channels)[:, None, None] * spatial
    return np.where(cells >= 0, cells + starts, -1).reshape(-1, cells.shape[1])


def _average_pool(view: NodeView) -> Affine:
    """State ``z_p = Σ_k h_{p+k} / count``, the count with or without padding."""
    shape = view.shape()
    counts_padding = int_attribute(view.node, "count_include_pad", 0)
    if counts_padding and int_attribute(view.node, "ceil_mode", 0):
        raise view.refuse("count_include_pad together with ceil_mode")
    kernel = ints_attribute(view.node, "kernel_shape") or list(shape[1:])
    cells = _per_channel(
        windows_of(view.node, shape, view.output_shape, kernel).cells(), shape[0], math.prod(shape[1:])
    )
    position, tap = np.nonzero(cells >= 0)
    inside = (cells >= 0).sum(axis=1)
    share = np.full(len(cells), 1.0 / cells.shape[1]) if counts_padding else 1.0 / inside
    matrix = sparse.coo_array((share[position], (position, cells[position, tap])), shape=(len(cells), math.prod(shape)))
    return view.affine(_csr(matrix))


def _mean(view: NodeView) -> Affine:
    """State ``z = Σ_k h_k / count`` over whole axes, global average pooling among them."""
    shape = view.shape()
    if view.node.op_type == "GlobalAveragePool":
        axes = list(range(2, len(shape) + 1))
    elif view.has(1):
        axes = [int(a) for a in view.constant(1).reshape(-1)]
    else:
        axes = ints_attribute(view.node, "axes") or []
    axes = [a % (len(shape) + 1) for a in axes]
    if not axes or 0 in axes:
        raise view.refuse("the mean runs over the samples")
    cells = np.arange(math.prod(shape)).reshape(shape)
    kept = [a for a in range(len(shape)) if a + 1 not in axes]
    reduced = [a - 1 for a in axes]
    windows = cells.transpose([*kept, *reduced]).reshape(math.prod(shape[a] for a in kept), -1)
    rows = np.repeat(np.arange(len(windows)), windows.shape[1])
    values = np.full(windows.size, 1.0 / windows.shape[1])
    return view.affine(_csr(sparse.coo_array((values, (rows, windows.reshape(-1))), shape=(len(windows), cells.size))))


def _same(view: NodeView) -> Same:
    """Keep the cells in their order: flattening and reshaping cost nothing."""
    if math.prod(view.shape()) != math.prod(view.output_shape):
        raise view.refuse("it changes the number of cells per sample")
    return Same()


def _concat(view: NodeView) -> Affine:
    """State ``a = (h₁, h₂, …)``, each input placed at its cells."""
    axis = int_attribute(view.node, "axis", 1) % (len(view.output_shape) + 1) - 1
    if axis < 0:
        raise view.refuse("it joins samples")
    inputs, matrices, bias = [], [], np.zeros(view.output_shape)
    cells = np.arange(bias.size).reshape(view.output_shape)
    start = 0
    for position, name in enumerate(view.node.input):
        constant = np.asarray(view.constant(position)[0]) if view.is_constant(position) else None
        shape = view.shape(position) if constant is None else constant.shape
        index = tuple(slice(start, start + shape[axis]) if a == axis else slice(None) for a in range(len(shape)))
        start += shape[axis]
        if constant is not None:
            bias[index] = constant
            continue
        rows = cells[index].reshape(-1)
        inputs.append(name)
        place = sparse.coo_array((np.ones(rows.size), (rows, np.arange(rows.size))), shape=(bias.size, rows.size))
        matrices.append(_csr(place))
    return Affine(view.output, tuple(inputs), tuple(matrices), bias.reshape(-1))


def _movement(view: NodeView) -> Affine:
    """Run the node once on cell numbers and read where each went."""
    shape = view.shape()
    size = math.prod(shape)
    if view.node.op_type == "Pad" and attribute(view.node, "mode", "constant") != "constant":
        raise view.refuse("only padding with zeros is expressed")
    if view.node.op_type == "Pad" and view.has(2) and view.constant(2).any():
        raise view.refuse("only padding with zeros is expressed")
    feeds = {name: view.model.array(name) for name in view.node.input if name and view.model.is_constant(name)}
    numbers = np.arange(1, size + 1, dtype=np.float64).reshape(1, *shape)
    feeds[view.node.input[0]] = numbers
    opsets = list(view.model.proto.opset_import)
    function = onnx.helper.make_function("oamip", "move", list(feeds), [view.output], [view.node], opsets)
    if view.node.op_type == "Pad" and view.has(2):
        feeds[view.node.input[2]] = np.zeros((), np.float64)
    results: list[object] = list(ReferenceEvaluator(function).run(None, feeds, attributes={}))
    moved = np.asarray(results[0])
    if moved.shape != (1, *view.output_shape):
        raise view.refuse("it moves cells between samples")
    return view.affine(_selection(np.asarray(moved, np.int64).reshape(-1) - 1, size), None, view.node.input[0])


BUILDERS: Mapping[str, Builder] = MappingProxyType(
    {
        "Conv": _conv,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "BatchNormalization": _batch_normalisation,
        "Add": lambda view: _sum(view, (1.0, 1.0)),
        "Sub": lambda view: _sum(view, (1.0, -1.0)),
        "Mul": _product,
        "Div": _product,
        "Relu": _relu,
        "MaxPool": _max_pool,
        "GlobalMaxPool": _max_pool,
        "AveragePool": _average_pool,
        "GlobalAveragePool": _mean,
        "ReduceMean": _mean,
        "Flatten": _same,
        "Reshape": _same,
        "Squeeze": _same,
        "Unsqueeze": _same,
        "Identity": _same,
        "Dropout": _same,
        "Concat": _concat,
        "Transpose": _movement,
        "Slice": _movement,
        "Gather": _movement,
        "Pad": _movement,
        "DepthToSpace": _movement,
        "SpaceToDepth": _movement,
    }
)
