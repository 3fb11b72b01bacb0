"""Fixtures for reports."""

from pathlib import Path

import pytest
from lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """An empty run root to fill."""
    return Lab(tmp_path)
