"""Running a user's Python file, which may hold anything."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_file(path: Path, kind: str) -> ModuleType:
    """Return the module of a file, which is run.

    Parameters
    ----------
    path
        The file.
    kind
        What it is for; part of the module's name.

    Raises
    ------
    ImportError
        If the file has no name that Python imports; whatever the file's own code raises passes through.
    """
    spec = importlib.util.spec_from_file_location(f"oamip_{kind}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
