"""Shared fixtures."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run; shared machines stall now and then, so that a deadline would fail at random.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

sys.path.insert(0, str(Path(__file__).parent))

EXAMPLES = Path(__file__).parent.parent / "examples" / "fashion"


@pytest.fixture(scope="session")
def fashion() -> Path:
    """Return the folder of the shipped sample."""
    return EXAMPLES
