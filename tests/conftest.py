"""Fixtures for the whole suite."""

from __future__ import annotations

import pytest
from tiny import TinyRun
from tiny import tiny_run as make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A finished tiny run with a bundle. Shared: read it, or copy what you are going to change."""
    return make(tmp_path_factory.mktemp("tiny"))
