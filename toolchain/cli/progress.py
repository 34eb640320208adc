"""Progress bars in a terminal (rich), plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from toolchain.progress import Task

_LINE_EVERY = 15.0  # seconds between lines of one task where there is no terminal


class Bars:
    """A `toolchain.progress.Progress` on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def task(self, name: str, total: float) -> Iterator[Task]:
        """Show a bar, or a line now and then when standard error is no terminal."""
        if not self._console.is_terminal:
            yield _Lines(self._console, name, total)
            return
        columns = (
            TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("[dim]{task.fields[shown]}"),
        )  # fmt: skip
        with Progress(*columns, console=self._console, transient=True) as bars:
            yield _Bar(bars, name, total)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, markup=False, soft_wrap=True)


class _Bar:
    def __init__(self, bars: Progress, name: str, total: float) -> None:
        self._bars = bars
        self._id = bars.add_task(name, total=total, shown="")

    def advance(self, units: float = 1, **shown: float | str) -> None:
        """Move the bar and show the figures."""
        if shown:
            self._bars.update(self._id, advance=units, shown=_figures(shown))
        else:
            self._bars.advance(self._id, units)


class _Lines:
    def __init__(self, console: Console, name: str, total: float) -> None:
        self._console, self._name, self._total = console, name, total
        self._done, self._said = 0.0, time.monotonic()

    def advance(self, units: float = 1, **shown: float | str) -> None:
        """Print a line when the last one is a while ago."""
        self._done += units
        now = time.monotonic()
        if now - self._said >= _LINE_EVERY:
            self._said = now
            line = f"  {self._name}: {self._done:g} of {self._total:g} {_figures(shown)}"
            self._console.print(line.rstrip(), markup=False, soft_wrap=True)


def _figures(shown: dict[str, float | str]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
