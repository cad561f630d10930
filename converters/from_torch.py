"""From a PyTorch module to an ONNX file."""

import importlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.errors import MissingExtraError, ModelError, OutputError, UsageError


class TorchConverter:
    """Exports a `torch.nn.Module`; in inference mode, so that batch norms fold into the convolutions before them."""

    name = "torch"
    extra = "torch"

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
        """Write the module `source` to `destination`; see `Converter.convert` for the parameters.

        Raises
        ------
        MissingExtraError
            If PyTorch is not installed.
        UsageError
            If `source` is no module, or no example input is given.
        OutputError
            If the file cannot be written.
        ModelError
            If PyTorch cannot export the module.
        """
        torch = _import_torch()
        if not isinstance(source, torch.nn.Module):
            raise UsageError(
                f"The source to convert has the type {type(source).__name__}, but must be a torch.nn.Module; "
                "build the module and load its weights first, then pass the module."
            )
        if not inputs:
            raise UsageError(
                "The export needs one example array for each input of the module, by name; none was given."
            )
        free = {name: {0: "N"} for name in (*inputs, *outputs)} if dynamic_batch else None
        try:
            # A folder beside the target, so that the finished file moves within one file system: all or nothing.
            with tempfile.TemporaryDirectory(prefix=".oamip-", dir=destination.parent) as folder:
                path = Path(folder) / destination.name
                with _inference_mode(source):
                    _export(torch, source, path, inputs=inputs, outputs=list(outputs), dynamic_axes=free, opset=opset)
                _check(path)
                path.replace(destination)
        except OSError as error:
            raise OutputError(
                f"The converted model cannot be written to {destination}: {error.strerror or error}; "
                "choose a folder that exists and is writable."
            ) from error


def _import_torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise MissingExtraError(
            "Converting from PyTorch needs the package torch, which is not installed; "
            "run: pip install 'oamip-onnx[torch]'"
        ) from error


@contextmanager
def _inference_mode(module: Any) -> Iterator[None]:
    """Switch every submodule to evaluation, and back to the mode that it had: frozen batch norms stay frozen."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _export(
    torch: Any,
    module: Any,
    path: Path,
    *,
    inputs: Mapping[str, npt.NDArray[np.generic]],
    outputs: list[str],
    dynamic_axes: dict[str, dict[int, str]] | None,
    opset: int,
) -> None:
    devices = {parameter.device for parameter in module.parameters()}
    device = next(iter(devices)) if len(devices) == 1 else torch.device("cpu")
    # The copy keeps a read-only array, such as one of a memory map, away from PyTorch, which would warn.
    examples = tuple(torch.from_numpy(np.array(array)).to(device) for array in inputs.values())
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The tracing exporter is chosen on purpose: it folds batch norms, writes this opset without converting
            # it, and needs no further package. That it is deprecated is no news that the user can act on.
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(
                module,
                examples,
                str(path),
                input_names=list(inputs),
                output_names=outputs,
                dynamic_axes=dynamic_axes,
                opset_version=opset,
                dynamo=False,
            )
    except OSError:
        raise
    except Exception as error:  # tracing runs the user's own code, which may raise anything
        text = str(error).strip() or type(error).__name__
        raise ModelError(
            f"PyTorch {torch.__version__} cannot export the module {type(module).__name__} to opset {opset}: "
            f"{text.splitlines()[0]}"
        ) from error


def _check(path: Path) -> None:
    """Refuse a file that is no valid model, or one whose weights spilled into files beside it."""
    if [entry.name for entry in path.parent.iterdir()] != [path.name]:
        raise ModelError(
            f"The module's weights exceed the 2 GiB that one ONNX file holds, so {path.name} was not written; "
            "export it with torch.onnx.export and external data, and pass that file instead."
        )
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"PyTorch wrote a model that ONNX's checker refuses: {str(error).splitlines()[0]}") from error
