"""Samples in, activations and Gram matrices out, through ONNX Runtime."""

from oamip_onnx.calibration.checks import check_label_range
from oamip_onnx.calibration.features import ConvolutionLayout, ProductLayout, layout_of
from oamip_onnx.calibration.gram import Gram, accumulate_gram, draw_rows
from oamip_onnx.calibration.samples import Samples
from oamip_onnx.calibration.sources import DataReader, Source, load_samples, random_samples
from oamip_onnx.calibration.stream import BATCH_SIZE, ActivationStream

__all__ = [
    "BATCH_SIZE",
    "ActivationStream",
    "ConvolutionLayout",
    "DataReader",
    "Gram",
    "ProductLayout",
    "Samples",
    "Source",
    "accumulate_gram",
    "check_label_range",
    "draw_rows",
    "layout_of",
    "load_samples",
    "random_samples",
]
