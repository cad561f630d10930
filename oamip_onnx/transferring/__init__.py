"""Transfer: a subnetwork found on one data set, trained on another beside the network that it comes from."""

from oamip_onnx.transferring.run import TransferResult, transfer

__all__ = ["TransferResult", "transfer"]
