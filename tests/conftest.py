"""Shared fixtures."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

EXAMPLES = Path(__file__).parent.parent / "examples" / "fashion"


@pytest.fixture(scope="session")
def fashion() -> Path:
    """Return the folder of the shipped sample."""
    return EXAMPLES
