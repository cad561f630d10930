"""The command that reproduces a run."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from oamip_onnx.config import PruneConfig, command_options


def reproducing_command(
    config: PruneConfig, source: object, files: Mapping[str, object], *, random_data: bool
) -> str | None:
    """Return the command line that does a run again; None where the model or some data came from memory.

    Parameters
    ----------
    config
        The settings.
    source
        The model.
    files
        Data by option, such as ``--data``; None where the option was not given.
    random_data
        Whether samples were drawn at random.
    """
    given = {option: value for option, value in files.items() if value is not None}
    if not all(isinstance(value, str | Path) for value in [source, *given.values()]):
        return None
    words = ["oamip", "prune", str(source), f"{Path(str(source)).stem}-pruned.onnx"]
    for option, value in given.items():
        words += [option, str(value)]
    return shlex.join([*words, *(["--random-data"] if random_data else []), *command_options(config)])
