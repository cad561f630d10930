"""Whether PyTorch is there."""

import importlib

from oamip_onnx.errors import MissingExtraError


def require_torch(what: str = "Fine-tuning") -> None:
    """Raise unless PyTorch can be imported; the sentence says that `what` needs it.

    Raises
    ------
    MissingExtraError
        With the command that installs it.
    """
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs the package torch, which is not installed; run: pip install 'oamip-onnx[torch]'"
        ) from error
