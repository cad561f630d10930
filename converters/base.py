"""What every converter to ONNX promises, and how a converter is found by its name."""

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from oamip_onnx.errors import UsageError, closest

ENTRY_POINT_GROUP = "oamip_onnx.converters"


@runtime_checkable
class Converter(Protocol):
    """Turns the trained model of one framework into an ONNX file.

    A converter's module imports without its framework: only `convert` needs it, and says which extra brings it.

    Attributes
    ----------
    name
        The name under which the converter is registered, such as ``torch``.
    extra
        The optional dependency of this package that installs the framework.
    """

    name: str
    extra: str

    def convert(
        self,
        source: Any,
        destination: Path,
        *,
        inputs: Mapping[str, npt.NDArray[np.generic]],
        outputs: Sequence[str] = ("y",),
        opset: int = 17,
        dynamic_batch: bool = True,
    ) -> None:
        """Write `source` to `destination` as an ONNX model in inference mode, or leave `destination` untouched.

        Parameters
        ----------
        source
            The framework's model.
        destination
            The file to write.
        inputs
            One example batch for each input, by the input's name in the ONNX model, in the order of the arguments.
        outputs
            The names of the outputs, in the order in which the model returns them.
        opset
            The version of the ONNX operator set.
        dynamic_batch
            Whether the first dimension of every input and output is the free dimension ``N``.
        """
        ...


def load_converter(name: str) -> Converter:
    """Return the installed converter called `name`; any package may register one in ``oamip_onnx.converters``.

    Raises
    ------
    UsageError
        If no installed package registers such a converter.

    Examples
    --------
    >>> from oamip_onnx.converters import load_converter
    >>> load_converter("torch").extra
    'torch'
    """
    known = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in known:
        raise UsageError(
            f"No converter is called {name!r}{closest(name, known)}; "
            f"installed converters: {', '.join(sorted(known)) or 'none'}."
        )
    converter: Converter = known[name].load()()
    return converter
