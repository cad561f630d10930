"""What a benchmark varies: providers, threads, batches and input shapes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from oamip_onnx.bench.sessions import Feeds
from oamip_onnx.errors import UsageError
from oamip_onnx.runtime import RuntimeOptions, short_name

MOST_CONFIGURATIONS = 32
# More threads than this for each logical core help nobody, and each takes memory.
_THREADS_PER_CORE, _ALWAYS_ALLOWED_THREADS = 4, 64


@dataclass(frozen=True)
class Inputs:
    """What a model is run on.

    Attributes
    ----------
    feeds
        One array for each input, by name.
    samples
        How many samples they hold.
    """

    feeds: Feeds
    samples: int


@dataclass(frozen=True)
class Configuration:
    """One way to run every model.

    Attributes
    ----------
    options
        Provider, threads and optimisation.
    inputs
        What the models are run on.
    """

    options: RuntimeOptions
    inputs: Inputs

    @property
    def provider(self) -> str:
        """The short name of the provider, in lower case."""
        return short_name(self.options.provider_names()[0])

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input."""
        return {name: tuple(array.shape) for name, array in self.inputs.feeds.items()}


def sweep(providers: Sequence[str], threads: Sequence[int], inputs: Sequence[Inputs]) -> list[Configuration]:
    """Return every combination, inputs varying fastest.

    Raises
    ------
    UsageError
        If there are none or more than 32, a provider is not available, or a number of threads is negative or beyond
        what the machine can use.
    """
    count = len(providers) * len(threads) * len(inputs)
    if not 0 < count <= MOST_CONFIGURATIONS:
        raise UsageError(
            f"The providers, threads, batches and input shapes make {count} configurations; "
            f"a benchmark takes 1 to {MOST_CONFIGURATIONS}. Name fewer of them, or run it more than once."
        )
    if min(threads) < 0:
        raise UsageError(f"The number of threads cannot be {min(threads)}; give 0 for ONNX Runtime's own choice.")
    most = max(_THREADS_PER_CORE * (os.cpu_count() or 1), _ALWAYS_ALLOWED_THREADS)
    if max(threads) > most:
        raise UsageError(f"{max(threads)} threads are more than this machine can use; give at most {most}.")
    for provider in providers:
        RuntimeOptions(provider).provider_names()
    return [
        Configuration(RuntimeOptions(provider, number), one)
        for provider, number, one in product(providers, threads, inputs)
    ]
