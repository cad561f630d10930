"""The formats that a model can be exported to: one row a format, and what its converter gets and returns."""

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.errors import MissingExtraError, ModelError, UsageError, closest
from oamip_onnx.runtime import TensorInfo

Array = npt.NDArray[np.generic]
Feeds = Mapping[str, Array]

# What only models have that were quantised before.
_QUANTISED = frozenset(
    "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear".split()
)


@dataclass(frozen=True)
class ExportTask:
    """What a converter works on.

    Attributes
    ----------
    model
        The model; a converter leaves it as it is.
    source, target
        The model's file, for sentences, and the file that the user asked for.
    feeds
        Runs of real samples, by input name; empty without data.
    example
        One run of few samples, drawn at random without data.
    run
        Returns all outputs of a model on one run.
    sqnr_db
        Returns how close a model's output is to the original's on the samples, in decibel: minus infinity where it is
        not finite. None where the model has no output that can be compared.
    min_sqnr_db
        What `sqnr_db` should reach.
    """

    model: onnx.ModelProto
    source: str
    target: Path
    feeds: tuple[Feeds, ...]
    example: Feeds
    run: Callable[[onnx.ModelProto, Feeds], Mapping[str, Array]]
    sqnr_db: Callable[[onnx.ModelProto], float] | None
    min_sqnr_db: float


@dataclass(frozen=True)
class Exported:
    """What a converter made.

    Attributes
    ----------
    model
        The ONNX model to write; None where the converter has written the file itself.
    kept_float32
        The layers that stay in float32 to keep the output close, by the names of their nodes.
    notes
        What a reader should know, as sentences.
    """

    model: onnx.ModelProto | None = None
    kept_float32: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Convert(Protocol):
    """Converts a model; either returns an ONNX model, or writes `path` and what belongs to it beside."""

    def __call__(self, task: ExportTask, path: Path) -> Exported:
        """Convert the model of a task."""
        ...


class Runnable(Protocol):
    """A model that is loaded into a runtime; `oamip_onnx.runtime.Session` is one in ONNX Runtime."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs."""

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs."""

    def run(self, feeds: Feeds, outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Return the outputs by name for one batch of inputs."""

    def bind(self, feeds: Feeds) -> Callable[[], None]:
        """Return a call that runs these inputs once more and waits for the result."""


@dataclass(frozen=True)
class Format:
    """A format to export to.

    Attributes
    ----------
    name
        What the user calls it.
    summary
        What it is, in a few words.
    suffix
        How the name of its file ends.
    convert
        The converter, as ``module:function`` of this package; it is imported only when it is needed.
    packages
        The modules that it needs beside this package's dependencies.
    install
        The command that brings them.
    min_sqnr_db
        How close the output should come to the original's, in decibel.
    needs_data, needs_float32
        Whether it needs samples, and a model that is still in float32.
    in_onnxruntime
        Whether ONNX Runtime runs the result, so that it can be verified and timed.
    runner
        What runs it elsewhere, as ``module:class`` of this package; empty where nothing here does.
    """

    name: str
    summary: str
    suffix: str
    convert: str
    packages: tuple[str, ...] = ()
    install: str = ""
    min_sqnr_db: float = 60.0
    needs_data: bool = False
    needs_float32: bool = False
    in_onnxruntime: bool = False
    runner: str = ""

    @property
    def runs_here(self) -> bool:
        """Whether the result can be verified and timed."""
        return self.in_onnxruntime or bool(self.runner)

    def load(self, path: Path, threads: int) -> "Runnable":
        """Return a written file in its own runtime, for a format with a `runner`."""
        module, _, name = self.runner.partition(":")
        return cast("Runnable", getattr(importlib.import_module(f"{__package__}.{module}"), name)(path, threads))

    def converter(self) -> Convert:
        """Return the converter."""
        module, _, function = self.convert.partition(":")
        return cast("Convert", getattr(importlib.import_module(f"{__package__}.{module}"), function))

    def require_packages(self) -> None:
        """Raise unless everything that the converter needs is installed.

        Raises
        ------
        MissingExtraError
            With the command that installs it.
        """
        missing = [name for name in self.packages if not is_installed(name)]
        if missing:
            raise MissingExtraError(
                f"The format {self.name!r} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
                f"not installed; run: {self.install}"
            )

    def require_types(self, model: onnx.ModelProto, what: str) -> None:
        """Raise unless the weights have types that the converter takes.

        Raises
        ------
        ModelError
            If the model, which the sentence calls `what`, is quantised or in float16 already.
        """
        if not self.needs_float32:
            return
        types = {tensor.data_type for tensor in model.graph.initializer}
        quantised = any(node.op_type in _QUANTISED for node in model.graph.node)
        if quantised or onnx.TensorProto.FLOAT16 in types:
            raise ModelError(
                f"{what} is {'quantised' if quantised else 'in float16'} already, so it cannot become {self.name}; "
                "export the float32 model instead."
            )
        if onnx.TensorProto.FLOAT not in types:
            raise ModelError(f"{what} has no float32 weights, so it cannot become {self.name}; choose another format.")


_EXPORTS = (
    Format(
        "ort",
        "ONNX Runtime's own format, optimised for any machine",
        ".ort",
        "to_ort:portable",
        in_onnxruntime=True,
    ),
    Format(
        "ort-native",
        "the same, with the memory layouts of this CPU; for machines with the same CPU",
        ".ort",
        "to_ort:native",
        in_onnxruntime=True,
    ),
    Format(
        "fp16",
        "float16, less the layers that need float32",
        ".onnx",
        "to_float16:export",
        min_sqnr_db=40.0,
        needs_float32=True,
        in_onnxruntime=True,
    ),
    Format(
        "int8",
        "int8 weights and activations, less the layers that lose most",
        ".onnx",
        "to_int8:export",
        min_sqnr_db=20.0,
        needs_data=True,
        needs_float32=True,
        in_onnxruntime=True,
    ),
    Format(
        "int8-dynamic",
        "int8 weights; the ranges of activations are found while the model runs",
        ".onnx",
        "to_int8_dynamic:export",
        min_sqnr_db=20.0,
        needs_float32=True,
        in_onnxruntime=True,
    ),
    Format(
        "openvino",
        "OpenVINO IR",
        ".xml",
        "to_openvino:export",
        ("openvino",),
        "pip install openvino",
        runner="to_openvino:OpenVinoModel",
    ),
    Format("tensorrt", "a TensorRT engine for this GPU, built by trtexec", ".engine", "to_tensorrt:export"),
    Format(
        "coreml",
        "Core ML, by way of PyTorch",
        ".mlpackage",
        "to_coreml:export",
        ("coremltools", "torch", "onnx2torch"),
        "pip install coremltools torch onnx2torch",
    ),
    Format(
        "tflite",
        "TensorFlow Lite",
        ".tflite",
        "to_tflite:export",
        ("onnx2tf", "tensorflow"),
        "pip install onnx2tf tensorflow",
    ),
)

FORMATS: dict[str, Format] = {one.name: one for one in _EXPORTS}
"""The formats by name, in the order in which they are listed."""


def find_format(name: str) -> Format:
    """Return a format by its name.

    Raises
    ------
    UsageError
        If there is none of that name, with the closest.
    """
    if name not in FORMATS:
        raise UsageError(f"There is no format {name!r}{closest(name, FORMATS)}; choose from {', '.join(FORMATS)}.")
    return FORMATS[name]


def is_installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that is blocked in sys.modules has no spec
        return False


@contextmanager
def saved(model: onnx.ModelProto) -> Iterator[Path]:
    """Give the path of a model's file in a temporary folder, its weights beside it where one file cannot hold them."""
    with tempfile.TemporaryDirectory(prefix="oamip-") as folder:
        path = Path(folder) / "model.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, path, save_as_external_data=model.ByteSize() >= 2**31 - 1, location="model.data")
        yield path
