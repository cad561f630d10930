"""The latency of narrower networks, predicted from measurements on this machine."""

from oamip_onnx.latency.model import LatencyModel, measure_latency_model

__all__ = ["LatencyModel", "measure_latency_model"]
