"""A typed, thin cover of `onnxruntime.InferenceSession`."""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from oamip_onnx.errors import ModelError, UsageError, first_line
from oamip_onnx.runtime.providers import CPU, PROVIDERS, Provider, RuntimeOptions, create_session, short_name

# A protobuf message cannot exceed this many bytes; larger models reach ONNX Runtime through a file.
PROTOBUF_LIMIT_BYTES = 2**31 - 1

_ELEMENT_TYPES: dict[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


def numpy_dtype(onnx_type: str) -> np.dtype[np.generic]:
    """Return the numpy dtype of an ONNX Runtime type string such as ``tensor(float)``.

    Raises
    ------
    ModelError
        If the type is no tensor (a sequence, a map, an optional).
    """
    if onnx_type not in _ELEMENT_TYPES:
        raise ModelError(f"An input or output has the type {onnx_type}; only tensors are supported.")
    return np.dtype(_ELEMENT_TYPES[onnx_type])


def runs(model: onnx.ModelProto, options: RuntimeOptions) -> bool:
    """Return whether ONNX Runtime has kernels for everything in a model."""
    try:
        Session(model, options)
    except ModelError:
        return False
    return True


@dataclass(frozen=True)
class TensorInfo:
    """Name, numpy dtype and shape of an input or output; an unknown dimension is None, a named one its name."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str | None, ...]


class Session:
    """A model loaded into ONNX Runtime.

    Parameters
    ----------
    model
        The model, or the path of its file.
    options
        Provider, threads and optimisation.
    profile_prefix
        Where ONNX Runtime records the time of every node until `end_profiling`; the name of the file begins so.

    Raises
    ------
    ModelError
        If ONNX Runtime does not accept the model.
    UsageError
        If the provider is not available.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        options: RuntimeOptions | None = None,
        *,
        profile_prefix: Path | None = None,
    ) -> None:
        self.options = options or RuntimeOptions()
        settings = self.options.session_options()
        if profile_prefix is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(profile_prefix)
        providers = self.options.provider_names()
        try:
            self._session = _create(model, settings, providers)
        except UsageError:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
            raise ModelError(f"ONNX Runtime does not accept the model: {_sentence(error)}") from error
        self.inputs = tuple(_tensor_info(i) for i in self._session.get_inputs())
        self.outputs = tuple(_tensor_info(o) for o in self._session.get_outputs())

    @property
    def provider(self) -> str:
        """The ONNX Runtime name of the provider in use."""
        return str(self._session.get_providers()[0])

    def run(
        self, feeds: Mapping[str, npt.NDArray[np.generic]], outputs: Iterable[str] | None = None
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Return the outputs by name for one batch of inputs.

        Raises
        ------
        ModelError
            If ONNX Runtime fails while running.
        """
        names = [o.name for o in self.outputs] if outputs is None else list(outputs)
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as error:  # as above
            raise ModelError(f"ONNX Runtime failed while running the model: {_sentence(error)}") from error
        return dict(zip(names, values, strict=True))

    def end_profiling(self) -> Path:
        """Return the file of the profile, in the format of Chrome's tracing, and stop recording.

        Raises
        ------
        UsageError
            If the session records none.
        """
        path = str(self._session.end_profiling())
        if not path:
            raise UsageError("The session records no profile; create it with profile_prefix.")
        return Path(path)

    def bind(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> Callable[[], None]:
        """Return a call that runs these inputs once more and waits for the result; for measuring the time it takes.

        On a device, inputs and outputs stay in its memory, so that no transfer is measured.

        Raises
        ------
        ModelError
            If ONNX Runtime fails while running; it is tried once before returning.
        """
        self.run(feeds)
        session = self._session
        if self.provider == CPU:
            names, arrays = [o.name for o in self.outputs], dict(feeds)

            def run() -> None:
                session.run(names, arrays)

            return run
        memory = PROVIDERS.get(short_name(self.provider), Provider(self.provider)).memory
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, memory, 0))
        for output in self.outputs:
            binding.bind_output(output.name, memory, 0)

        def run_bound() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run_bound


def _create(
    model: onnx.ModelProto | Path, settings: onnxruntime.SessionOptions, providers: list[str]
) -> onnxruntime.InferenceSession:
    if isinstance(model, Path):
        return create_session(str(model), settings, providers)
    if model.ByteSize() < PROTOBUF_LIMIT_BYTES:
        return create_session(model.SerializeToString(), settings, providers)
    with tempfile.TemporaryDirectory(prefix="oamip-") as folder:
        path = Path(folder) / "model.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, path, save_as_external_data=True, location="model.data")
        return create_session(str(path), settings, providers)


def _tensor_info(value: onnxruntime.NodeArg) -> TensorInfo:
    return TensorInfo(value.name, numpy_dtype(value.type), tuple(value.shape))


def _sentence(error: Exception) -> str:
    """Return what ONNX Runtime complains about, without its codes and source files."""
    text = first_line(error)
    newest = re.search(r"official support for domain (\S+) is till opset (\d+)", text)
    if newest:
        return (
            f"it uses a newer opset of the domain {newest[1]} than ONNX Runtime {onnxruntime.__version__} takes "
            f"(up to {newest[2]}). Convert it with onnx.version_converter, or upgrade onnxruntime."
        )
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
