"""All that is measured of several models in one configuration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from oamip_onnx.bench.cold import ColdStart, is_portable, measure_cold_start
from oamip_onnx.bench.configuration import Configuration
from oamip_onnx.bench.latency import BenchSettings, Measurement, measure_latency
from oamip_onnx.bench.profile import NodeTime, profile_nodes, profiled_runs
from oamip_onnx.bench.sessions import check_feeds, start_session
from oamip_onnx.errors import ModelError


@dataclass(frozen=True)
class BenchModel:
    """A model to measure.

    Attributes
    ----------
    name
        What the report calls it; no two models of a benchmark share it.
    path
        The file that the user named; the name again where the model came from memory.
    variant
        What was made of it: ``int8``, ``float16``, or an empty text for the model itself.
    file
        The file that is measured.
    size_bytes
        The size of that file, external data included.
    """

    name: str
    path: str
    variant: str
    file: Path
    size_bytes: int


@dataclass(frozen=True)
class ConfigurationResult:
    """What was measured in one configuration; each tuple is in the order of the models.

    Attributes
    ----------
    configuration
        The configuration.
    latency
        The run times, with those of the yardstick.
    cold_starts
        The cold starts; empty where they were left out, as for inputs of text.
    profiles
        The times of the nodes; empty where they were left out.
    profile_runs
        How many runs were recorded for them.
    """

    configuration: Configuration
    latency: Measurement
    cold_starts: tuple[ColdStart, ...] = ()
    profiles: tuple[tuple[NodeTime, ...], ...] = ()
    profile_runs: int = 0


def rehearse(models: Sequence[BenchModel], configurations: Sequence[Configuration]) -> None:
    """Run every model once on every provider and input, so that what is impossible shows before the measurement.

    Raises
    ------
    DataError
        If the feeds do not fit the inputs of a model.
    ModelError
        If ONNX Runtime does not accept or cannot run a model; the message names it and the shapes.
    UsageError
        If a provider does not start.
    """
    by_provider: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        by_provider.setdefault(configuration.provider, []).append(configuration)
    for provider, members in by_provider.items():
        distinct = {id(one.inputs): one for one in members}.values()
        for model in models:
            try:
                session = start_session(model.file, members[0].options)
            except ModelError as error:
                raise ModelError(f"{model.name} cannot run on {provider}: {error}") from error
            for configuration in distinct:
                feeds = configuration.inputs.feeds
                check_feeds(session, feeds, model.name)
                try:
                    session.run(feeds)
                except ModelError as error:
                    shapes = ", ".join(f"{n}={','.join(map(str, s))}" for n, s in configuration.input_shapes.items())
                    raise ModelError(f"{model.name} cannot run on {provider} with {shapes}: {error}") from error


def measure(
    models: Sequence[BenchModel],
    configuration: Configuration,
    settings: BenchSettings,
    *,
    profile: bool = False,
    seed: int = 0,
    started: Callable[[str], None] = lambda _part: None,
) -> ConfigurationResult:
    """Return everything about the models in one configuration.

    Parameters
    ----------
    models
        The models; the first is the reference.
    configuration
        Provider, threads and inputs.
    settings
        How long, and in how many processes for the cold start.
    profile
        Whether to profile.
    seed
        Seed of the random turns and of the bootstrap.
    started
        Called with the name of each part as it begins.

    Raises
    ------
    OamipError
        As `measure_latency`, `measure_cold_start` and `profile_nodes`.
    """
    files, feeds, options = [model.file for model in models], configuration.inputs.feeds, configuration.options
    started("latency")
    latency = measure_latency(files, feeds, options, settings=settings, seed=seed, yardstick=True)
    # After the latency, whose sessions are gone by now: both would take memory and time from each other.
    cold_starts: tuple[ColdStart, ...] = ()
    if settings.cold_processes and is_portable(feeds):
        started("cold start")
        cold_starts = measure_cold_start(files, feeds, options, processes=settings.cold_processes, seed=seed)
    if not profile:
        return ConfigurationResult(configuration, latency, cold_starts)
    started("profile")
    slowest_ms = max(one.p50_ms for one in latency.latencies)
    runs = profiled_runs(slowest_ms)
    profiles = tuple(profile_nodes(file, feeds, options, runs=runs) for file in files)
    return ConfigurationResult(configuration, latency, cold_starts, profiles, runs)
