"""Sessions to measure: on the provider that was asked for, with inputs that fit."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.errors import DataError, UsageError
from oamip_onnx.runtime import RuntimeOptions, Session

Model = onnx.ModelProto | Path
Feeds = Mapping[str, npt.NDArray[np.generic]]


def start_session(model: Model, options: RuntimeOptions, *, profile_prefix: Path | None = None) -> Session:
    """Return the session of a model; with `profile_prefix` it records a profile, see `Session`.

    Raises
    ------
    ModelError
        If ONNX Runtime does not accept the model.
    UsageError
        If the provider is not available or does not start.
    """
    session = Session(model, options, profile_prefix=profile_prefix)
    wanted = options.provider_names()[0]
    # ONNX Runtime takes the CPU without an error when a provider's libraries do not load.
    if session.provider != wanted:
        raise UsageError(
            f"ONNX Runtime offers {wanted} but fell back to {session.provider}, so the figures would be of the "
            "wrong device; install the libraries that the provider needs, or use --provider cpu."
        )
    return session


def check_feeds(session: Session, feeds: Feeds, model: str) -> None:
    """Raise unless there is an array of the right type and shape for each input.

    Raises
    ------
    DataError
        If one is missing, has no input, or does not fit; the message calls the model `model`.
    """
    expected = {info.name: info for info in session.inputs}
    if set(expected) != set(feeds):
        raise DataError(
            f"The inputs of {model} are {', '.join(map(repr, expected)) or 'none'}, but the benchmark's data hold "
            f"{', '.join(map(repr, feeds)) or 'nothing'}; give one array for each input, by its name."
        )
    for name, info in expected.items():
        array = feeds[name]
        fits = len(array.shape) == len(info.shape) and all(
            not isinstance(want, int) or want == have for want, have in zip(info.shape, array.shape, strict=False)
        )
        if array.dtype != info.dtype or not fits:
            want = ", ".join("?" if size is None else str(size) for size in info.shape)
            have = ", ".join(map(str, array.shape))
            raise DataError(
                f"Input {name!r} of {model} takes {info.dtype} of shape ({want}), but the benchmark's array is "
                f"{array.dtype} of shape ({have}); convert it."
            )
