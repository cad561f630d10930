"""From float32 to int8: static quantisation."""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from oamip_onnx.errors import DataError, ModelError, first_line

from .formats import Exported, ExportTask, Feeds
from .to_mixed import choose_kept, layers_of, with_node_names

# The first opset whose DequantizeLinear has an axis.
_AXIS_OPSET = 13

# Of the layers, the share that may stay in float32: with more of them, little of the speed is left.
_MOST_KEPT = 0.25


class _Reader(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime ships no types
    """Hands samples to the calibration."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, npt.NDArray[np.generic]] | None:
        """Return the next feeds, or None at the end."""
        found = next(self._feeds, None)
        return None if found is None else dict(found)


def to_int8(model: onnx.ModelProto, feeds: Iterable[Feeds]) -> onnx.ModelProto:
    """Return the model with int8 weights and activations; its inputs and outputs keep their types.

    Weights are quantised symmetrically to seven bits, with a scale for each output channel; activations with one scale
    and zero point for each tensor, over the range that `feeds` make it take. Each is followed by a pair of
    QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses into integer kernels.

    Parameters
    ----------
    model
        The model; it is left as it is.
    feeds
        What the ranges of the activations are measured on: runs of the model, by input name.

    Raises
    ------
    DataError
        If there are no feeds.
    ModelError
        If nothing in the model can be quantised, or ONNX Runtime's quantiser fails.
    """
    runs = list(feeds)
    if not runs:
        raise DataError("The int8 variant needs samples for the ranges of its activations; none were given.")
    return _quantised(model, prepared(model), runs, ())


def export(task: ExportTask, _path: Path) -> Exported:
    """Return the model in int8, less the layers whose errors keep the output from the bound: a quarter at most."""
    plain = prepared(task.model)
    layers = layers_of(plain)

    def make(kept: Sequence[int]) -> onnx.ModelProto:
        return _quantised(task.model, plain, task.feeds, [plain.graph.node[number].name for number in kept])

    found, kept = choose_kept(plain, make, task, int(_MOST_KEPT * len(layers)))
    return Exported(found, tuple(plain.graph.node[number].name for number in kept))


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with named nodes and batch norms folded into convolutions: they would stay in float32.

    Raises
    ------
    ModelError
        If ONNX Runtime's preparation fails.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="oamip-") as folder, quiet():
            source, result = Path(folder) / "source.onnx", Path(folder) / "prepared.onnx"
            # By file: of a message in memory, the preparation hides even the shapes and axes from ONNX Runtime.
            onnx.save(_with_axes(model), source)
            quant_pre_process(source, result, skip_symbolic_shape=True)
            return with_node_names(onnx.load(result))
    except Exception as error:  # the preparation raises whatever its graph code stumbles over
        raise _refused(error) from error


def _quantised(
    model: onnx.ModelProto, plain: onnx.ModelProto, feeds: Iterable[Feeds], kept: Sequence[str]
) -> onnx.ModelProto:
    """Return a prepared model in int8, less the named nodes; `model` is what it was prepared from."""
    try:
        with tempfile.TemporaryDirectory(prefix="oamip-") as folder, quiet():
            source, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
            onnx.save(plain, source)
            quantize_static(
                source,
                quantised,
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                # Unsigned: a ReLU then goes into the rounding behind it, and x86 multiplies unsigned by signed.
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # Seven bits of weight: with eight, the sums of two products overflow in the kernels for AVX2 and for
                # AVX-512 without VNNI, which alters the outputs far more than the bit that is lost.
                reduce_range=True,
                nodes_to_exclude=list(kept),
            )
            result = onnx.load(quantised)
    except Exception as error:  # the quantiser raises whatever its graph code stumbles over
        raise _refused(error) from error
    before, after = (sum(n.op_type == "QuantizeLinear" for n in m.graph.node) for m in (model, result))
    if after <= before:
        raise ModelError("ONNX Runtime found nothing in the model to quantise to int8; do without int8.")
    drop_unused_domains(model, result)
    return result


def _refused(error: Exception) -> ModelError:
    return ModelError(f"ONNX Runtime cannot quantise the model to int8: {first_line(error)}; do without int8.")


def _with_axes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in an opset that knows scales for each channel."""
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), _AXIS_OPSET)
    if opset < _AXIS_OPSET:
        return onnx.version_converter.convert_version(model, _AXIS_OPSET)
    return model


def drop_unused_domains(original: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Remove the opsets that ONNX Runtime's optimiser declares for domains of which it used no operator."""
    needed = {opset.domain for opset in original.opset_import} | {node.domain for node in result.graph.node}
    kept = [opset for opset in result.opset_import if opset.domain in needed]
    del result.opset_import[:]
    result.opset_import.extend(kept)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the quantiser logs from the user: hints at settings that are chosen here, errors that it raises too."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
