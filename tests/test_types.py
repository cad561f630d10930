"""Element types beside float32: half, double and bfloat16 weights, quantised graphs, external data."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

import oamip_onnx
from oamip_onnx.errors import NothingToPruneError

SETTINGS = {"target": "ratio=0.5", "round_to": 1, "importance": "magnitude", "bench": False, "samples": 64}


def _in_type(path: Path, element_type: int) -> onnx.ModelProto:
    """Return a float32 model with weights, inputs and outputs of another type."""
    model = onnx.load(path)
    model.opset_import[0].version = 22  # the first whose Conv takes bfloat16
    model.ir_version = 10
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = element_type
    return model


@pytest.mark.parametrize("element_type", [TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.FLOAT16])
def test_weights_keep_their_type(fashion: Path, element_type: int) -> None:
    model = _in_type(fashion / "lenet5.onnx", element_type)
    before = model.SerializeToString(deterministic=True)
    result = oamip_onnx.prune(model, fashion / "calibration.npz", **SETTINGS)
    assert model.SerializeToString(deterministic=True) == before
    kinds = {t.data_type for t in result.model.graph.initializer if t.data_type != TensorProto.INT64}
    assert kinds == {element_type}
    assert result.model.graph.input[0] == model.graph.input[0]
    assert result.report.pruned.parameters < 0.4 * result.report.original.parameters
    assert result.report.drift.cosine > 0.7
    said = any("float32 copy" in note for note in result.report.notes)
    assert said == (element_type != TensorProto.FLOAT16)
    onnx.checker.check_model(result.model, full_check=True)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: np.ndarray) -> None:  # type: ignore[type-arg]
        self._left = iter(images.reshape(-1, 8, 1, 28, 28))

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
        batch = next(self._left, None)
        return None if batch is None else {"x": batch}


def _quantised(fashion: Path, folder: Path, layout: QuantFormat) -> Path:
    images = np.load(fashion / "calibration.npz")["x"][:64].astype(np.float32) / 255
    path = folder / "quantised.onnx"
    quantize_static(fashion / "resnet8.onnx", path, _Reader(images), quant_format=layout, per_channel=True)
    return path


# The quantiser advises to pre-process the model first, which changes nothing here.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_graph_is_narrowed_with_its_scales(fashion: Path, tmp_path: Path) -> None:
    path = _quantised(fashion, tmp_path, QuantFormat.QDQ)
    result = oamip_onnx.prune(path, fashion / "calibration.npz", **SETTINGS)
    assert result.report.verification.passed
    assert result.report.verification.max_rel_error < 1e-4
    assert result.report.pruned.macs < 0.3 * result.report.original.macs
    assert all(min(g.importance) > 0 for g in result.report.groups), "scales and integers make the weights"
    arrays = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    weights = [n for n in result.model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in arrays]
    per_channel = [n for n in weights if arrays[n.input[1]].ndim == 1 and arrays[n.input[1]].size > 1]
    assert per_channel
    for node in per_channel:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        values, scales, zeros = (arrays[name] for name in node.input)
        assert values.dtype in {np.dtype(np.int8), np.dtype(np.int32)}
        assert values.shape[axis] == scales.size == zeros.size


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_integer_contractions_stay_and_say_why(fashion: Path, tmp_path: Path) -> None:
    path = _quantised(fashion, tmp_path, QuantFormat.QOperator)
    with pytest.raises(NothingToPruneError, match=r"multiplies integers.* QDQ format"):
        oamip_onnx.prune(path, fashion / "calibration.npz", **SETTINGS)
