"""The bundle that answers now, its workers and their queue; swapping it for another and going back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from toolchain.runtime.bundle import Bundle
from toolchain.runtime.errors import BundleError, PictureError
from toolchain.runtime.server import threads
from toolchain.runtime.server.opening import Opened, opened
from toolchain.runtime.server.refusals import RefusedError
from toolchain.runtime.server.room import Room
from toolchain.runtime.server.settings import Settings
from toolchain.runtime.server.workers import Workers
from toolchain.runtime.session import Session

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """A verified bundle with the session that answers for it. version: the start of its identity."""

    bundle: Bundle
    session: Session

    @property
    def name(self) -> str:
        return self.bundle.manifest.name

    @property
    def version(self) -> str:
        return self.bundle.manifest.identity[:12]

    def check(self, model: str, version: str | None) -> None:
        """Raise RefusedError 404 when a request asks for another model, or another version than this."""
        if model != self.name:
            raise RefusedError(404, f"the only model here is {self.name!r}")
        if version not in (None, self.version):
            raise RefusedError(404, f"the only version here is {self.version!r}")

    def require_shape(self, height: int, width: int, most: int) -> None:
        """Raise RefusedError 400 when the model's own padding would make more than `most` pixels of a picture."""
        try:
            self.bundle.require_shape(height, width, most)
        except PictureError as e:
            raise RefusedError(400, f"the picture: {e}") from e


class Engine:
    """Runs work on a fixed number of threads behind a bounded queue.

    Starts with a bundle that was verified, so nothing else ever answers; raises what Bundle.session raises. A call
    keeps the bundle it began with, so a swap loses none. room: of pixels, which work has to take.
    """

    def __init__(self, settings: Settings, first: Opened) -> None:
        self._settings = settings
        self.limits = limits = settings.limits
        measured, workers = threads.choose(first.bundle, settings.provider, threads.usable_cores())
        self.threads = settings.threads or measured
        self.workers = settings.workers or workers
        self._current = self._loaded(first)
        self._previous: Loaded | None = None
        self._swapping = threading.Lock()
        self._pool = Workers(self.workers, limits.queue, limits.work_seconds)
        self.room = Room(max(limits.pixels, limits.pixels_held), limits.work_seconds)
        self.draining = False

    @property
    def held(self) -> int:
        """Requests that wait or are worked on."""
        return self._pool.held

    @property
    def current(self) -> Loaded:
        """The bundle that new requests are answered by."""
        return self._current

    def do(self, work: Callable[[], T]) -> Coroutine[Any, Any, T]:
        """Run `work` on a worker: Workers.do, without a step of its own for each request."""
        return self._pool.do(work)

    def swap(self) -> Loaded:
        """Load and verify what lies at the bundle's path now, and answer with it from now on.

        Raises what a start would raise, and BundleError for a model of another name; the bundle that answered
        goes on then.
        """
        with self._swapping:
            new = self._loaded(opened(self._settings.bundle))
            if new.name != self._current.name:
                raise BundleError(
                    f"{self._settings.bundle}: is the model {new.name!r}, but {self._current.name!r} is served; "
                    "start another server for it"
                )
            if new.version != self._current.version:
                self._previous = self._current
            self._current = new
            return new

    def roll_back(self) -> Loaded:
        """Answer with the bundle before the last swap again. Raises BundleError when there was none."""
        with self._swapping:
            if self._previous is None:
                raise BundleError("there is no earlier bundle to go back to")
            self._current, self._previous = self._previous, self._current
            return self._current

    def close(self) -> None:
        """Wait for what is being answered."""
        self._pool.close()

    def _loaded(self, found: Opened) -> Loaded:
        return Loaded(found.bundle, found.session(self._settings.provider, self.threads))
