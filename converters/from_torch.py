"""From PyTorch to ONNX: modules, exported programs and TorchScript."""

import importlib
import inspect
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from oamip_onnx.errors import MissingExtraError, ModelError, UsageError, first_line

from .base import Array, FrameworkModel, ImportOptions, InputSpec
from .common import framework_version, free_first_dimension, is_installed, output_names, packages_of, quiet

TRACING = "tracing exporter"
EXPORT = "torch.export exporter"

# The newest opset that the tracing exporter writes, and the oldest of the other one.
_TRACING_NEWEST, _EXPORT_OLDEST = 20, 18

# A batch of one would be taken for a constant.
_BATCH = 2


class TorchConverter:
    """Reads `torch.nn.Module`, exported programs and TorchScript; in inference mode, with batch norms folded."""

    name: ClassVar[str] = "torch"
    extra: ClassVar[str] = "torch"
    packages: ClassVar[tuple[str, ...]] = ("torch", "onnxslim")
    sources: ClassVar[str] = ".pt2 (exported program), .pt, .pth, .ts (TorchScript), file.py:factory"

    def reads(self, path: Path) -> bool:
        """Return whether the name ends as PyTorch's files do."""
        return path.is_file() and path.suffix.lower() in {".pt", ".pt2", ".pth", ".ts"}

    def takes(self, source: object) -> bool:
        """Return whether an object is a module or an exported program; models of Keras are left to Keras."""
        packages = packages_of(source)
        return "torch" in packages and "keras" not in packages

    def load(self, source: Any, options: ImportOptions) -> FrameworkModel:
        """Return the model of a file or an object.

        Raises
        ------
        UsageError
            If `source` is no module, or its inputs are not described.
        ModelError
            If the file holds weights without code, the weights do not fit, or the module fails on its inputs.
        MissingExtraError
            If an exported program is to be converted without onnxscript.
        """
        torch = importlib.import_module("torch")
        if isinstance(source, Path):
            source = _read(torch, source)
        if isinstance(source, torch.export.ExportedProgram):
            if not is_installed("onnxscript"):
                raise MissingExtraError(
                    "Converting an exported program needs onnxscript, which is not installed; "
                    "run: pip install 'oamip-onnx[torch]'"
                )
            return ProgramModel(torch, source, options)
        if not isinstance(source, torch.nn.Module):
            raise UsageError(
                f"The source to convert has the type {type(source).__name__}, but must be a torch.nn.Module; "
                "build the module and load its weights first, then pass the module."
            )
        if options.state is not None:
            _load_state(torch, source, options.state)
        return ModuleModel(torch, source, _described(source, options), options)


def _read(torch: Any, path: Path) -> Any:
    """Return what a file holds: an exported program or a scripted module, never pickled objects.

    Raises
    ------
    ModelError
        If it holds neither.
    """
    names = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    scripted = any(name.startswith("code/") for name in names)
    exported = any(name.startswith(("models/", "serialized_exported_program")) for name in names)
    if not scripted and not exported:
        raise ModelError(
            f"The file {str(path)!r} holds neither an exported program nor TorchScript: weights alone have no code. "
            f"Give the code as SOURCE, file.py:factory, and the file with --state {path}"
        )
    with quiet():
        return torch.export.load(path) if exported else torch.jit.load(path, map_location="cpu")


def _load_state(torch: Any, module: Any, path: Path) -> None:
    """Put the weights of a file into a module.

    Raises
    ------
    ModelError
        If the file is missing, holds anything but tensors, or does not fit.
    """
    if not path.is_file():
        raise ModelError(f"The file of weights {str(path)!r} does not exist; check the path.")
    try:
        # Tensors alone: a pickled object would run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises unrelated classes on files that it does not know
        raise ModelError(
            f"The file of weights {str(path)!r} cannot be read as tensors alone; "
            "save it with torch.save(module.state_dict(), path)."
        ) from error
    inner = state.get("state_dict", state) if isinstance(state, dict) else state
    try:
        module.load_state_dict(inner)
    except Exception as error:  # wrong keys, wrong shapes, no dictionary
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"The weights {str(path)!r} do not fit the module {type(module).__name__}: {lines[min(1, len(lines) - 1)]}"
        ) from error


def _described(module: Any, options: ImportOptions) -> tuple[InputSpec, ...]:
    if stated := options.stated():
        return stated
    try:
        names = [name for name in inspect.signature(module.forward).parameters if name != "self"]
    except (TypeError, ValueError):  # compiled code has no signature
        names = []
    raise UsageError(
        f"The shapes of what the module {type(module).__name__} takes are not known; give each input, in the order of "
        f"the arguments{' (' + ', '.join(names) + ')' if names else ''}, with --input {(names or ['x'])[0]}=2,3,32,32"
    )


@contextmanager
def inference_mode(module: Any) -> Iterator[None]:
    """Switch every submodule to evaluation, and back to the mode that it had: frozen batch norms stay frozen."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            if part.training != training:
                part.training = training


class ModuleModel(FrameworkModel):
    """A module, of Python or of TorchScript.

    Parameters
    ----------
    torch
        PyTorch.
    module
        The module; it is left in the mode that it is in.
    inputs
        What it takes, in the order of its arguments.
    options
        Opset and batch.
    tracing_only
        Whether only the tracing exporter is tried.
    """

    def __init__(
        self,
        torch: Any,
        module: Any,
        inputs: tuple[InputSpec, ...],
        options: ImportOptions,
        *,
        tracing_only: bool = False,
    ) -> None:
        self.framework = framework_version("torch")
        self.inputs = inputs
        scripted = isinstance(module, torch.jit.ScriptModule)
        self.ways = (TRACING,) if scripted or tracing_only or not is_installed("onnxscript") else (TRACING, EXPORT)
        self._torch, self._module, self._options = torch, module, options
        devices = {parameter.device for parameter in module.parameters()}
        self._device = next(iter(devices)) if len(devices) == 1 else torch.device("cpu")
        self._example = self.sample_inputs(_BATCH, np.random.default_rng(0))
        try:
            self._names = output_names(len(self.run(self._example)))
        except Exception as error:  # the user's own code
            shapes = ", ".join(f"{name} {values.shape}" for name, values in self._example.items())
            raise ModelError(
                f"The module {type(module).__name__} fails on inputs of the shapes {shapes}: {first_line(error)}"
            ) from error

    def convert(self, path: Path, way: str = "") -> None:
        """Write the module by one of PyTorch's exporters."""
        with quiet(), inference_mode(self._module), self._torch.no_grad():
            if way == EXPORT:
                self._by_export(path)
            else:
                self._by_tracing(path)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs: tensors, in the order in which they stand in tuples, lists and dictionaries."""
        with quiet(), inference_mode(self._module), self._torch.no_grad():
            return flat_arrays(self._module(*self._tensors(feeds)))

    def _tensors(self, feeds: Mapping[str, Array]) -> tuple[Any, ...]:
        # The copy keeps a read-only array, such as one of a memory map, away from PyTorch, which would warn.
        return tuple(self._torch.from_numpy(np.array(feeds[spec.name])).to(device=self._device) for spec in self.inputs)

    def _by_tracing(self, path: Path) -> None:
        free = {name: {0: "N"} for name in (*(s.name for s in self.inputs if s.free_batch), *self._names)}
        self._torch.onnx.export(
            self._module,
            self._tensors(self._example),
            str(path),
            input_names=[spec.name for spec in self.inputs],
            output_names=self._names,
            dynamic_axes=free if self._options.dynamic_batch else None,
            opset_version=min(self._options.opset, _TRACING_NEWEST),
            dynamo=False,
        )

    def _by_export(self, path: Path) -> None:
        batch = self._torch.export.Dim("N", min=1)
        free = tuple({0: batch} if spec.free_batch else {} for spec in self.inputs)
        self._torch.onnx.export(
            self._module,
            self._tensors(self._example),
            str(path),
            input_names=[spec.name for spec in self.inputs],
            output_names=self._names,
            dynamic_shapes=free if self._options.dynamic_batch else None,
            opset_version=max(self._options.opset, _EXPORT_OLDEST),
            dynamo=True,
            verbose=False,
            external_data=False,
        )


class ProgramModel(FrameworkModel):
    """An exported program, which knows its inputs; whether its batch is free was decided when it was exported.

    Parameters
    ----------
    torch
        PyTorch.
    program
        The exported program.
    options
        Opset and batch.
    """

    def __init__(self, torch: Any, program: Any, options: ImportOptions) -> None:
        if options.state is not None:
            raise UsageError("An exported program holds its weights; leave --state out.")
        self.framework = framework_version("torch")
        self.ways = (EXPORT,)
        self._torch, self._program, self._options = torch, program, options
        nodes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        known = tuple(
            InputSpec(
                name,
                tuple(size if isinstance(size, int) else None for size in nodes[name].shape),
                np.dtype(str(nodes[name].dtype).removeprefix("torch.")),
            )
            for name in program.graph_signature.user_inputs
        )
        self.inputs = options.described(known)
        self._names = output_names(len(program.graph_signature.user_outputs))
        if options.dynamic_batch and not all(spec.free_batch for spec in self.inputs):
            self.notes = (
                "The batch is fixed, because the program was exported so; free it with dynamic_shapes in torch.export.",
            )

    def convert(self, path: Path, way: str = "") -> None:
        """Write the program."""
        del way
        with quiet():
            self._torch.onnx.export(
                self._program,
                (),
                str(path),
                input_names=[spec.name for spec in self.inputs],
                output_names=self._names,
                opset_version=max(self._options.opset, _EXPORT_OLDEST),
                dynamo=True,
                verbose=False,
                external_data=False,
            )
        if all(spec.free_batch for spec in self.inputs):
            model = onnx.load(path)
            free_first_dimension(model)
            onnx.save(model, path)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs of the program."""
        tensors = [self._torch.from_numpy(np.array(feeds[spec.name])) for spec in self.inputs]
        with quiet(), self._torch.no_grad():
            return flat_arrays(self._program.module()(*tensors))


def flat_arrays(value: Any) -> list[Array]:
    """Return the tensors in nested tuples, lists and dictionaries as arrays, in order."""
    if isinstance(value, Mapping):
        return [array for one in value.values() for array in flat_arrays(one)]
    if isinstance(value, tuple | list):
        return [array for one in value for array in flat_arrays(one)]
    if value is None:
        return []
    return [np.asarray(value.detach().cpu())]
