"""The execution providers of ONNX Runtime: short names, where tensors live, what is tried behind each."""

from dataclasses import dataclass, replace

import onnxruntime
from onnx import TensorProto, helper

from oamip_onnx.errors import UsageError, closest

CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes
    ----------
    runtime_name
        ONNX Runtime's name of it.
    memory
        ONNX Runtime's name of the memory in which tensors stay between runs.
    behind
        Short names of the providers that take the operators it has no kernel for, before the CPU does.
    has_memory_pattern
        Whether ONNX Runtime may plan its memory ahead.
    install
        How to get a build of ONNX Runtime with it.
    """

    runtime_name: str
    memory: str = "cpu"
    behind: tuple[str, ...] = ()
    has_memory_pattern: bool = True
    install: str = ""


def _instead(package: str) -> str:
    # Every build brings the same module: a second one would overwrite the files of the first.
    return f"run: pip uninstall onnxruntime && pip install {package}"


PROVIDERS: dict[str, Provider] = {
    "cpu": Provider(CPU, install="run: pip install onnxruntime"),
    "cuda": Provider("CUDAExecutionProvider", memory="cuda", install=_instead("onnxruntime-gpu")),
    "tensorrt": Provider(
        "TensorrtExecutionProvider", memory="cuda", behind=("cuda",), install=_instead("onnxruntime-gpu")
    ),
    "openvino": Provider("OpenVINOExecutionProvider", install=_instead("onnxruntime-openvino")),
    "directml": Provider(
        "DmlExecutionProvider",
        memory="dml",
        # It refuses to: https://onnxruntime.ai/docs/execution-providers/DirectML-ExecutionProvider.html
        has_memory_pattern=False,
        install="run on Windows: pip uninstall onnxruntime && pip install onnxruntime-directml",
    ),
    "coreml": Provider("CoreMLExecutionProvider", install="run on macOS: pip install onnxruntime"),
}
"""The providers with a short name of their own; any other of a build goes by ONNX Runtime's name in lower case."""


def short_name(runtime_name: str) -> str:
    """Return the short name of a provider by ONNX Runtime's name of it.

    >>> from oamip_onnx.runtime.providers import short_name
    >>> short_name("DmlExecutionProvider"), short_name("XnnpackExecutionProvider")
    ('directml', 'xnnpack')
    """
    known = {provider.runtime_name: name for name, provider in PROVIDERS.items()}
    return known.get(runtime_name, runtime_name.removesuffix("ExecutionProvider").lower())


def available_providers() -> list[str]:
    """Return the short names of the execution providers in this build of ONNX Runtime, such as ``cpu``, ``cuda``."""
    return [short_name(name) for name in onnxruntime.get_available_providers()]


def find_provider(name: str) -> Provider:
    """Return a provider of this build by its short name, or by ONNX Runtime's.

    Raises
    ------
    UsageError
        If this build of ONNX Runtime does not offer it.
    """
    offered = {short_name(one): one for one in onnxruntime.get_available_providers()}
    same = {one.lower(): short for short, one in offered.items()}
    lower = name.lower()
    wanted = same.get(lower) or same.get(f"{lower}executionprovider") or lower
    if wanted in offered:
        return PROVIDERS.get(wanted, Provider(offered[wanted]))
    known = PROVIDERS.get(wanted)
    install = f"To get it, {known.install}; or use" if known else "Install the package that brings it, or use"
    raise UsageError(
        f"ONNX Runtime {onnxruntime.__version__} on this machine has no provider {name!r}"
        f"{'' if known else closest(wanted, offered)}; available: {', '.join(offered)}. {install} --provider cpu."
    )


@dataclass(frozen=True)
class RuntimeOptions:
    """How ONNX Runtime runs a model.

    Attributes
    ----------
    provider
        Short name of the execution provider: ``cpu``, ``cuda``, ``tensorrt``, …
    threads
        Intra-operator threads; 0 leaves the choice to ONNX Runtime.
    optimise
        Whether ONNX Runtime may fuse and rewrite the graph; off only to measure its own rounding differences.
    """

    provider: str = "cpu"
    threads: int = 0
    optimise: bool = True

    def provider_names(self) -> list[str]:
        """Return ONNX Runtime's names of the provider and of those behind it, for operators it has no kernel for.

        Raises
        ------
        UsageError
            If this build of ONNX Runtime does not offer the provider.
        """
        provider = find_provider(self.provider)
        offered = onnxruntime.get_available_providers()
        behind = [PROVIDERS[name].runtime_name for name in provider.behind]
        return list(dict.fromkeys([provider.runtime_name, *(name for name in behind if name in offered), CPU]))

    def session_options(self) -> onnxruntime.SessionOptions:
        """Return ONNX Runtime's options for a session."""
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = FATAL_SEVERITY
        settings.intra_op_num_threads = self.threads
        # Idle spinning threads of one session steal the cores from the next; the sessions here take turns.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = onnxruntime.GraphOptimizationLevel
        settings.graph_optimization_level = level.ORT_ENABLE_ALL if self.optimise else level.ORT_DISABLE_ALL
        settings.enable_mem_pattern = find_provider(self.provider).has_memory_pattern
        return settings


# Errors arrive as exceptions; ONNX Runtime would print them on standard error as well.
FATAL_SEVERITY = 4
_WARNING_SEVERITY = 2


def create_session(
    model: bytes | str, settings: onnxruntime.SessionOptions, providers: list[str]
) -> onnxruntime.InferenceSession:
    """Return a session of a serialised model or of a file, on these providers or not at all.

    ONNX Runtime's own fallback would print on standard output that it takes another provider.
    """
    return onnxruntime.InferenceSession(model, settings, providers=providers, enable_fallback=0)


def options_that_start(options: RuntimeOptions) -> tuple[RuntimeOptions, str]:
    """Return the options with a provider that runs here, and a sentence if that is not the one that was asked for.

    A build may offer a provider whose libraries or device are missing; then the CPU takes its place.

    Raises
    ------
    UsageError
        If this build of ONNX Runtime does not offer the provider.
    """
    wanted = find_provider(options.provider).runtime_name
    if wanted == CPU or _starts(options, wanted):
        return options, ""
    return replace(options, provider="cpu"), (
        f"ONNX Runtime offers {wanted}, but it does not start here, so everything ran on the CPU, and all times are "
        "the CPU's; oamip doctor says why."
    )


def _starts(options: RuntimeOptions, wanted: str) -> bool:
    """Return whether a session of the trial model runs on a provider."""
    # What a provider without its library logs comes from no session, but from the process.
    onnxruntime.set_default_logger_severity(FATAL_SEVERITY)
    try:
        session = create_session(trial_model(), options.session_options(), options.provider_names())
    except Exception:  # noqa: BLE001 - a missing library or device raises what the provider likes; doctor says why
        return False
    finally:
        onnxruntime.set_default_logger_severity(_WARNING_SEVERITY)
    return str(session.get_providers()[0]) == wanted


def trial_model() -> bytes:
    """Return a model of one matrix product, which any provider should run: its input ``x`` is float32, (1, 2)."""
    weight = helper.make_tensor("weight", TensorProto.FLOAT, (2, 2), [1.0, 0.0, 0.0, 1.0])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2)) for name in ("x", "y")]
    product = helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = helper.make_graph([product], "trial", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())
