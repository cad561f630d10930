"""Shared fixtures."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings

# The same examples in every run; shared machines stall now and then, so that a deadline would fail at random.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

sys.path.insert(0, str(Path(__file__).parent))

from graphs import GRAPHS  # noqa: E402 - found through the path above
from scored import dense, write  # noqa: E402 - as above

EXAMPLES = Path(__file__).parent.parent / "examples" / "fashion"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep solved programs of this run apart from the user's: an old solution would hide a change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OAMIP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def fashion() -> Path:
    """Return the folder of the shipped sample."""
    return EXAMPLES


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return a folder with a model, its samples and its labels."""
    onnx.save(GRAPHS["residual"](), tmp_path / "model.onnx")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=generator.integers(0, 5, 40))
    return tmp_path


@pytest.fixture
def dense_work(tmp_path: Path) -> Path:
    """Return a folder with a fully connected classifier and its samples."""
    write(tmp_path, dense())
    return tmp_path
