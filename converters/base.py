"""What every converter to ONNX promises, and how a converter is found."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from oamip_onnx.errors import MissingExtraError, UsageError, closest

from .common import is_installed

ENTRY_POINT_GROUP = "oamip_onnx.converters"

# Written in full, because this package may be installed under no other name.
_PACKAGE = "oamip-onnx"

DEFAULT_OPSET = 18

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InputSpec:
    """What one input of a model takes.

    Attributes
    ----------
    name
        Its name in the ONNX model.
    shape
        Its shape; None for a dimension that is free. The first one is that of samples.
    dtype
        Its numpy type.
    largest
        The largest number that is drawn for an input of integers, which may be an index into a table.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    largest: int = 1

    @property
    def free_batch(self) -> bool:
        """Whether the first dimension is free."""
        return bool(self.shape) and self.shape[0] is None

    def sizes(self, count: int) -> tuple[int, ...]:
        """Return the shape of `count` samples, or of as many as the first dimension fixes.

        Raises
        ------
        UsageError
            If another dimension is free.
        """
        for axis, size in enumerate(self.shape):
            if size is None and axis > 0:
                text = ",".join("…" if one is None else str(one) for one in (1, *self.shape[1:]))
                raise UsageError(
                    f"Dimension {axis} of the input {self.name!r} is free; give a size for it with "
                    f"--input {self.name}={text}"
                )
        return tuple(count if size is None else size for size in self.shape)

    def draw(self, count: int, generator: np.random.Generator) -> Array:
        """Return random values: standard normal for floats, 0 to `largest` for integers."""
        sizes = self.sizes(count)
        if np.issubdtype(self.dtype, np.floating):
            return generator.normal(size=sizes).astype(self.dtype)
        return generator.integers(0, self.largest + 1, size=sizes).astype(self.dtype)


@dataclass(frozen=True)
class ImportOptions:
    """How a model is read and converted.

    Attributes
    ----------
    inputs
        The inputs that the user described, by name, in the order of the model's arguments. Where a framework knows the
        inputs of its models, sizes that are free get these.
    examples
        The same by examples: what a framework that knows its inputs does not look at.
    state
        A file of weights to load into a model that came from code.
    opset
        The version of the ONNX operator set.
    dynamic_batch
        Whether the first dimension of every input and output is free.
    """

    inputs: Mapping[str, InputSpec] = field(default_factory=dict)
    examples: Mapping[str, InputSpec] = field(default_factory=dict)
    state: Path | None = None
    opset: int = DEFAULT_OPSET
    dynamic_batch: bool = True

    def described(self, known: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
        """Return the inputs of a model, with what the user said in place of what is free.

        Raises
        ------
        UsageError
            If a name is unknown, or a shape does not fit.
        """
        names = [spec.name for spec in known]
        for name in self.inputs:
            if name not in names:
                raise UsageError(
                    f"There is no input {name!r}{closest(name, names)}; the model has {', '.join(map(repr, names))}."
                )
        return tuple(self._merged(spec) for spec in known)

    def stated(self) -> tuple[InputSpec, ...]:
        """Return the inputs of a model that does not know them: as described, or by example; empty if neither."""
        return tuple(
            InputSpec(spec.name, self.batched(spec.shape), spec.dtype, spec.largest)
            for spec in {**self.examples, **self.inputs}.values()
        )

    def batched(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return a shape with its first dimension free, or of the size that it has: 1 where it has none."""
        if not shape:
            return ()
        return (None if self.dynamic_batch else shape[0] or 1, *shape[1:])

    def _merged(self, spec: InputSpec) -> InputSpec:
        said = self.inputs.get(spec.name)
        first = spec.shape[:1] if self.dynamic_batch else tuple(size or 1 for size in spec.shape[:1])
        if said is None:
            return InputSpec(spec.name, (*first, *spec.shape[1:]), spec.dtype, spec.largest)
        pairs = list(zip(spec.shape, said.shape, strict=False))
        if len(spec.shape) != len(said.shape) or any(a not in {None, b} for a, b in pairs[1:]):
            known, given = (",".join("…" if size is None else str(size) for size in one.shape) for one in (spec, said))
            raise UsageError(f"The input {spec.name!r} has the shape {known}, which {given} does not fit.")
        if not self.dynamic_batch:
            first = tuple(size if size is not None else said.shape[0] for size in spec.shape[:1])
        return InputSpec(spec.name, (*first, *said.shape[1:]), spec.dtype, max(spec.largest, said.largest))


class FrameworkModel(ABC):
    """A trained model in its framework, ready to be converted.

    Attributes
    ----------
    framework
        Name and version of the framework, such as ``torch 2.13.0``.
    inputs
        The inputs, in the order of the model's arguments.
    ways
        The ways to convert it; all are tried, and the graph that can be pruned most is taken.
    notes
        What a reader should know, as sentences.
    """

    framework: str
    inputs: tuple[InputSpec, ...]
    ways: tuple[str, ...] = ("",)
    notes: tuple[str, ...] = ()

    @abstractmethod
    def convert(self, path: Path, way: str = "") -> None:
        """Write the model to `path` as ONNX in inference mode; one way of `ways`, the first by default."""

    @abstractmethod
    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return what the framework computes in inference mode: the outputs in the order of the ONNX model's."""

    def sample_inputs(self, count: int, generator: np.random.Generator) -> dict[str, Array]:
        """Return `count` samples to compare the framework and ONNX Runtime on, by the name of the input."""
        return {spec.name: spec.draw(count, generator) for spec in self.inputs}


@runtime_checkable
class Converter(Protocol):
    """Reads the trained models of one framework.

    A converter's module imports without its framework: only `load` needs it.

    Attributes
    ----------
    name
        The name under which the converter is registered, such as ``torch``.
    extra
        The optional dependency of this package that installs the framework; empty where another package brings it.
    packages
        The modules that `load` needs.
    sources
        What it reads, in a few words.
    """

    name: ClassVar[str]
    extra: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    sources: ClassVar[str]

    def reads(self, path: Path) -> bool:
        """Return whether a file or folder, which exists, is of this framework; cheap, and without importing it."""
        ...

    def takes(self, source: object) -> bool:
        """Return whether an object, such as a factory returns, is a model of this framework, without importing it."""
        ...

    def load(self, source: Any, options: ImportOptions) -> FrameworkModel:
        """Return the model of a path that `reads` accepts, or of an object that `takes` does."""
        ...


def converter_points() -> dict[str, EntryPoint]:
    """Return the entry points of the installed converters by name; any package may register one."""
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda one: one.name)}


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
    known = converter_points()
    if name not in known:
        raise UsageError(
            f"No converter is called {name!r}{closest(name, known)}; "
            f"installed converters: {', '.join(sorted(known)) or 'none'}."
        )
    converter: Converter = known[name].load()()
    return converter


def require_packages(converter: Converter) -> None:
    """Raise unless every module that a converter needs is installed.

    Raises
    ------
    MissingExtraError
        With the command that installs them.
    """
    missing = [module for module in converter.packages if not is_installed(module)]
    if missing:
        raise MissingExtraError(
            f"The converter {converter.name!r} needs {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed; run: {install_command(converter)}"
        )


def install_command(converter: Converter) -> str:
    """Return the command that brings what a converter needs: its own, or that of its extra."""
    command = getattr(converter, "install", "")
    if command:
        return str(command)
    if converter.extra:
        return f"pip install '{_PACKAGE}[{converter.extra}]'"
    return f"pip install {' '.join(converter.packages)}"
