"""The state of a training run in a file: written as a whole or not at all."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from oamip_onnx.errors import OutputError, UsageError, first_line

FILE_NAME = "checkpoint.pt"


def check_folder(folder: Path) -> None:
    """Make a folder for checkpoints, and raise unless files can be written there.

    Raises
    ------
    OutputError
        If it cannot be made or written to.
    """
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"Checkpoints cannot be written to {str(folder)!r}: {error.strerror or error}.") from error


def save_checkpoint(state: dict[str, Any], folder: Path) -> None:
    """Put the state in the folder's file, in place of an older one.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=".oamip-", dir=folder)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(folder / FILE_NAME)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"The checkpoint cannot be written to {str(folder)!r}: {error.strerror or error}.") from error


def read_checkpoint(folder: Path, run: str) -> dict[str, Any] | None:
    """Return the state in a folder; None where there is none. Nothing but tensors and plain values is loaded.

    Parameters
    ----------
    folder
        The folder.
    run
        What the checkpoint has to be of: a digest of the model, the data and the settings.

    Raises
    ------
    UsageError
        If the file is damaged, or of another run.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and PyTorch raise unrelated classes on damaged files
        raise UsageError(
            f"The checkpoint {str(path)!r} cannot be read: {first_line(error)}; remove it to start anew."
        ) from error
    if not isinstance(state, dict) or state.get("run") != run:
        raise UsageError(
            f"The checkpoint {str(path)!r} is of another model, other data or other settings; give --checkpoint "
            "another folder, or remove the file."
        )
    return state
