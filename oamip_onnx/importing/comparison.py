"""What the framework computes beside what ONNX Runtime computes, on the same inputs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from oamip_onnx.calibration import Samples
from oamip_onnx.converters.base import FrameworkModel  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import ModelError, VerificationError
from oamip_onnx.importing.sources import own_failures
from oamip_onnx.model import Array
from oamip_onnx.runtime import RuntimeOptions, Session

# A shape that only one batch fits shows at two; a kernel that goes wrong in some lanes shows at an odd one.
_BATCHES = (1, 5)
_DRAWS, _SAMPLES_PER_RUN = 2, 32

# Sums in another order differ by some units of the last place, 6e-8 in float32 and 5e-4 in float16; a value that was
# left out or misplaced differs by far more.
FLOAT32_TOLERANCE, FLOAT16_TOLERANCE = 1e-4, 5e-3


@dataclass
class OutputDifference:
    """How far one output of the ONNX model is from the framework's.

    Attributes
    ----------
    name
        The output.
    largest
        The largest absolute value that the framework computes.
    absolute
        The largest difference; for classes and other whole numbers, 1 where one differs.
    exact
        Whether the values are whole numbers, truth values or texts, which have to be equal.
    """

    name: str
    largest: float = 0.0
    absolute: float = 0.0
    exact: bool = False

    @property
    def relative(self) -> float:
        """The largest difference in units of the largest value."""
        return self.absolute / self.largest if self.largest else self.absolute


@dataclass
class Comparison:
    """How far a model is from its source.

    Attributes
    ----------
    outputs
        The outputs, in order.
    samples, batches
        On how many samples it was compared, and in batches of which sizes.
    tolerance
        How far an output may be from the framework's, in units of its largest value.
    """

    outputs: list[OutputDifference]
    tolerance: float
    samples: int = 0
    batches: list[int] = field(default_factory=list)


def default_tolerance(model: onnx.ModelProto) -> float:
    """Return how far outputs may differ: by the narrowest type in which the model computes."""
    narrow = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    return FLOAT16_TOLERANCE if types & narrow else FLOAT32_TOLERANCE


def compare(
    source: FrameworkModel, model: onnx.ModelProto, samples: Samples | None, tolerance: float, seed: int
) -> Comparison:
    """Return how far a model is from its source, on samples or on random inputs.

    Raises
    ------
    VerificationError
        If an output is missing, has another shape or differs by more than the tolerance.
    ModelError
        If one of the two does not run.
    """
    session = Session(model, RuntimeOptions())
    names = [output.name for output in session.outputs]
    found = Comparison([OutputDifference(name) for name in names], tolerance)
    for feeds in _feeds(source, samples, seed):
        with own_failures(f"{source.framework} cannot run the model on its inputs"):
            wanted = source.run(feeds)
        rows = next((values.shape[0] for values in feeds.values() if values.ndim), 1)
        try:
            got = session.run(feeds, names)
        except ModelError as error:
            raise VerificationError(
                f"The ONNX model does not run on a batch of {rows}, which {source.framework} takes, and nothing was "
                f"written; if one size of batch is enough, give --fixed-batch. {error}"
            ) from error
        if len(wanted) != len(names):
            raise VerificationError(
                f"The ONNX model has {len(names)} outputs, {source.framework} {len(wanted)}; nothing was written."
            )
        found.samples += rows
        if rows not in found.batches:
            found.batches.append(rows)
        for difference, values in zip(found.outputs, wanted, strict=True):
            _measure(difference, np.asarray(values), got[difference.name], rows)
    _require(found, source)
    return found


def _feeds(source: FrameworkModel, samples: Samples | None, seed: int) -> Iterator[Mapping[str, Array]]:
    if samples is not None:
        yield samples.one_run()
        rest = samples.take(slice(samples.run_size or 1, None))
        if rest.count:
            yield from rest.batches(_SAMPLES_PER_RUN)
        return
    generator = np.random.default_rng(seed)
    free = all(spec.free_batch for spec in source.inputs)
    for count in _BATCHES if free else _BATCHES[:1]:
        for _ in range(_DRAWS):
            yield source.sample_inputs(count, generator)


def _measure(difference: OutputDifference, wanted: Array, got: Array, rows: int) -> None:
    """Add one run to what is known about an output.

    Raises
    ------
    VerificationError
        If the shapes differ, or one is not finite where the other is.
    """
    if wanted.shape != got.shape:
        raise VerificationError(
            f"The output {difference.name!r} of the ONNX model has the shape {got.shape} for a batch of {rows}, where "
            f"the framework's has {wanted.shape}; nothing was written."
        )
    if not np.issubdtype(wanted.dtype, np.inexact):
        difference.exact = True
        difference.largest = 1.0
        if not np.array_equal(wanted.astype(got.dtype), got):
            difference.absolute = 1.0
        return
    first, second = wanted.astype(np.float64), np.asarray(got, np.float64)
    finite = np.isfinite(first)
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True) or not np.isfinite(second[finite]).all():
        raise VerificationError(
            f"The output {difference.name!r} is not finite where the framework's is, or the other way round; "
            "nothing was written."
        )
    if finite.any():
        difference.largest = max(difference.largest, float(np.abs(first[finite]).max()))
        difference.absolute = max(difference.absolute, float(np.abs(first - second)[finite].max()))


def _require(found: Comparison, source: FrameworkModel) -> None:
    """Raise if an output differs by more than the tolerance."""
    for one in found.outputs:
        if one.exact and one.absolute:
            raise VerificationError(
                f"The output {one.name!r} of the ONNX model is not what {source.framework} computes; it holds whole "
                "numbers or texts, which have to be equal; nothing was written."
            )
        if one.relative > found.tolerance:
            raise VerificationError(
                f"The output {one.name!r} of the ONNX model differs from what {source.framework} computes by "
                f"{one.absolute:.3g}, which is {one.relative:.2g} of its largest value {one.largest:.3g} and above the "
                f"tolerance {found.tolerance:g}; nothing was written. If that is close enough, raise --tolerance."
            )
