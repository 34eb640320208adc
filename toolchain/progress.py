"""How long work tells how far it is, without knowing who listens (a terminal, a log, nobody)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of work with a known number of units."""

    def advance(self, units: float = 1, **shown: float | str) -> None:
        """Say that `units` more are done; `shown` are figures to display beside the bar (loss=0.3)."""
        ...


class Progress(Protocol):
    """Where tasks are shown and lines are said."""

    def task(self, name: str, total: float) -> AbstractContextManager[Task]:
        """Open a bar of `total` units; close it by leaving the context."""
        ...

    def say(self, line: str) -> None:
        """Print one line for the person who waits."""
        ...


class _SilentTask:
    def advance(self, units: float = 1, **shown: float | str) -> None:
        """Ignore the news."""


class Silent:
    """Shows nothing; for libraries and tests."""

    @contextmanager
    def task(self, name: str, total: float) -> Iterator[Task]:
        """Open a task nobody sees."""
        yield _SilentTask()

    def say(self, line: str) -> None:
        """Ignore the line."""
