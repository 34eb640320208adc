"""Fixtures for the whole suite."""

from __future__ import annotations

import pytest
from tiny import TinyRun
from tiny import tiny_run as make

from toolchain.runtime import host


@pytest.fixture(autouse=True)
def shared_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run side by side, so that a bench would note now and then that others had the core."""
    monkeypatch.setattr(host, "CONTENDED", 1.0)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A finished tiny run with a bundle. Shared: read it, or copy what you are going to change."""
    return make(tmp_path_factory.mktemp("tiny"))
