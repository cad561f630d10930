"""Samples in, activations and Gram matrices out, through ONNX Runtime."""

from oamip_onnx.calibration.checks import check_label_range
from oamip_onnx.calibration.features import Layout, layout_of
from oamip_onnx.calibration.gram import draw_rows, moments, with_ones
from oamip_onnx.calibration.samples import Samples
from oamip_onnx.calibration.scripts import import_file
from oamip_onnx.calibration.sources import DataReader, Source, load_samples, random_samples
from oamip_onnx.calibration.stream import BATCH_SIZE, ActivationStream

__all__ = [
    "BATCH_SIZE",
    "ActivationStream",
    "DataReader",
    "Layout",
    "Samples",
    "Source",
    "check_label_range",
    "draw_rows",
    "import_file",
    "layout_of",
    "load_samples",
    "moments",
    "random_samples",
    "with_ones",
]
