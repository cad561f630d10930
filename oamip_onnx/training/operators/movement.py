"""Operators that move elements: shapes, slices, pads, gathers."""

import torch

from oamip_onnx.training.operators.table import Function, Operation, Tensor, numbers, operator


@operator("Reshape", sizes=(1,))
def reshape(operation: Operation) -> Function:
    """Reshape; a zero copies the size, unless zeros are allowed."""
    allows_zero = operation.get("allowzero", 0)

    def run(x: Tensor, sizes: Tensor) -> Tensor:
        wanted = numbers(sizes)
        if not allows_zero:
            wanted = [x.shape[axis] if one == 0 else one for axis, one in enumerate(wanted)]
        return x.reshape(wanted)

    return run


@operator("Flatten")
def flatten(operation: Operation) -> Function:
    """Flatten to a matrix."""
    axis = operation.get("axis", 1)

    def run(x: Tensor) -> Tensor:
        rows = x.shape[: axis if axis >= 0 else axis + x.dim()].numel()
        return x.reshape(rows, -1 if x.numel() else x.numel())

    return run


@operator("Transpose")
def transpose(operation: Operation) -> Function:
    """Transpose."""
    order = operation.get("perm")
    return lambda x: x.permute(order if order is not None else list(reversed(range(x.dim()))))


@operator("Squeeze", sizes=(1,))
def squeeze(operation: Operation) -> Function:
    """Squeeze."""
    own = operation.get("axes")

    def run(x: Tensor, axes: Tensor = None) -> Tensor:
        chosen = own if axes is None else numbers(axes)
        return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))

    return run


@operator("Unsqueeze", sizes=(1,))
def unsqueeze(operation: Operation) -> Function:
    """Unsqueeze; axes count in the result."""
    own = operation.get("axes")

    def run(x: Tensor, axes: Tensor = None) -> Tensor:
        chosen = own if axes is None else numbers(axes)
        rank = x.dim() + len(chosen)
        for axis in sorted(one % rank for one in chosen):
            x = x.unsqueeze(axis)
        return x

    return run


@operator("Expand", sizes=(1,))
def expand(_operation: Operation) -> Function:
    """Expand, in both directions."""
    return lambda x, sizes: x.expand(torch.broadcast_shapes(x.shape, tuple(numbers(sizes))))


@operator("Tile", sizes=(1,))
def tile(_operation: Operation) -> Function:
    """Tile."""
    return lambda x, repeats: x.repeat(numbers(repeats))


@operator("Concat")
def concat(operation: Operation) -> Function:
    """Concat."""
    axis = operation.get("axis")
    return lambda *operands: torch.cat(operands, axis)


@operator("Split", sizes=(1,))
def split(operation: Operation) -> Function:
    """Split by sizes, an attribute before opset 13, or into equal parts."""
    axis, own, count = operation.get("axis", 0), operation.get("split"), operation.get("num_outputs", operation.outputs)

    def run(x: Tensor, sizes: Tensor = None) -> tuple[Tensor, ...]:
        wanted = own if sizes is None else numbers(sizes)
        if wanted is None:
            step = -(-x.shape[axis] // count)
            wanted = [min(step, x.shape[axis] - start * step) for start in range(count)]
        return tuple(torch.split(x, wanted, axis))

    return run


@operator("Slice", sizes=(1, 2, 3, 4))
def slice_(operation: Operation) -> Function:
    """Slice, with bounds as attributes before opset 10; steps may go backwards."""
    own = [operation.get(name) for name in ("starts", "ends", "axes")]

    def run(x: Tensor, starts: Tensor = None, ends: Tensor = None, axes: Tensor = None, steps: Tensor = None) -> Tensor:
        first, last, along = (
            value if given is None else numbers(given) for given, value in zip((starts, ends, axes), own, strict=True)
        )
        along = range(len(first)) if along is None else along
        by = [1] * len(first) if steps is None else numbers(steps)
        for axis, start, end, step in zip(along, first, last, by, strict=True):
            x = sliced(x, axis, slice(start, end, step))
        return x

    return run


def sliced(x: Tensor, axis: int, part: slice) -> Tensor:
    """Return a part of one axis; PyTorch's own slices do not go backwards."""
    start, stop, step = part.indices(x.shape[axis])
    if step == 1:
        return x.narrow(axis, start, max(stop - start, 0))
    return x.index_select(axis, torch.arange(start, stop, step, device=x.device))


@operator("Gather", weights=(0,))
def gather(operation: Operation) -> Function:
    """Gather; negative indices count from the end."""
    axis = operation.get("axis", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        along = axis % x.dim()
        rows = indices.reshape(-1).long()
        rows = torch.where(rows < 0, rows + x.shape[along], rows)
        return x.index_select(along, rows).reshape(x.shape[:along] + indices.shape + x.shape[along + 1 :])

    return run


@operator("GatherElements")
def gather_elements(operation: Operation) -> Function:
    """GatherElements."""
    axis = operation.get("axis", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        rows = indices.long()
        return torch.gather(x, axis, torch.where(rows < 0, rows + x.shape[axis], rows))

    return run


@operator("GatherND")
def gather_nd(operation: Operation) -> Function:
    """GatherND, without batch dimensions."""
    operation.refuse(batch_dims=(0,))
    return lambda x, indices: x[tuple(indices.long().unbind(-1))]


@operator("ScatterND")
def scatter_nd(operation: Operation) -> Function:
    """ScatterND."""
    operation.refuse(reduction=("none", "add"))
    adds = operation.get("reduction", "none") == "add"

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        return x.index_put(tuple(indices.long().unbind(-1)), updates, accumulate=adds)

    return run


@operator("ScatterElements")
def scatter_elements(operation: Operation) -> Function:
    """ScatterElements."""
    operation.refuse(reduction=("none", "add"))
    axis, adds = operation.get("axis", 0), operation.get("reduction", "none") == "add"

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        rows = indices.long()
        rows = torch.where(rows < 0, rows + x.shape[axis], rows)
        return x.scatter_add(axis, rows, updates) if adds else x.scatter(axis, rows, updates)

    return run


@operator("ReverseSequence", sizes=(1,))
def reverse_sequence(operation: Operation) -> Function:
    """ReverseSequence: the first steps of every sample, as many as its length, backwards."""
    batch, time = operation.get("batch_axis", 1), operation.get("time_axis", 0)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        parts = []
        for sample, length in zip(x.unbind(batch), numbers(lengths), strict=True):
            along = time - (batch < time)
            front, rest = sample.split([length, sample.shape[along] - length], along)
            parts.append(torch.cat((front.flip(along), rest), along))
        return torch.stack(parts, batch)

    return run


@operator("Pad", sizes=(1, 2, 3))
def pad(operation: Operation) -> Function:
    """Pad, with its sizes as attributes before opset 11; negative ones cut."""
    mode, own, filling = operation.get("mode", "constant"), operation.get("pads"), operation.get("value", 0.0)
    operation.refuse(mode=("constant", "reflect", "edge", "wrap"))

    def run(x: Tensor, sides: Tensor = None, value: Tensor = None, axes: Tensor = None) -> Tensor:
        sizes = own if sides is None else numbers(sides)
        along = range(x.dim()) if axes is None else [axis % x.dim() for axis in numbers(axes)]
        count = len(sizes) // 2
        pairs = {axis: (sizes[k], sizes[k + count]) for k, axis in enumerate(along)}
        if mode == "constant":
            flat = [side for axis in reversed(range(x.dim())) for side in pairs.get(axis, (0, 0))]
            return torch.nn.functional.pad(x, flat, value=filling if value is None else value.item())
        for axis, (before, after) in pairs.items():
            if before or after:
                x = x.index_select(axis, _padded_indices(x.shape[axis], before, after, mode).to(x.device))
        return x

    return run


def _padded_indices(size: int, before: int, after: int, mode: str) -> Tensor:
    """Return which element stands at each place of a padded axis."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    places = places.abs() % period
    return torch.where(places >= size, period - places, places)


@operator("CenterCropPad", sizes=(1,))
def center_crop_pad(operation: Operation) -> Function:
    """CenterCropPad: the middle, or zeros around it."""
    own = operation.get("axes")

    def run(x: Tensor, sizes: Tensor) -> Tensor:
        wanted = numbers(sizes)
        for axis, size in zip(own or range(x.dim()), wanted, strict=True):
            missing = size - x.shape[axis]
            if missing < 0:
                x = x.narrow(axis, -missing // 2, size)
            elif missing > 0:
                flat = [0] * (2 * x.dim())
                at = 2 * (x.dim() - 1 - axis % x.dim())
                flat[at : at + 2] = [missing // 2, missing - missing // 2]
                x = torch.nn.functional.pad(x, flat)
        return x

    return run


@operator("DepthToSpace")
def depth_to_space(operation: Operation) -> Function:
    """DepthToSpace, depth first or columns first."""
    block, columns_first = operation.get("blocksize"), operation.get("mode", "DCR") == "CRD"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if columns_first:
            return torch.pixel_shuffle(x, block)
        y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, c // block**2, h * block, w * block)

    return run


@operator("SpaceToDepth")
def space_to_depth(operation: Operation) -> Function:
    """SpaceToDepth."""
    block = operation.get("blocksize")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return y.reshape(n, c * block**2, h // block, w // block)

    return run
