"""The bundle that answers now, its workers and their queue; swapping it for another and going back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from toolchain.runtime.bundle import Bundle
from toolchain.runtime.errors import BundleError
from toolchain.runtime.server import threads
from toolchain.runtime.server.refusals import RefusedError, busy
from toolchain.runtime.server.room import Room
from toolchain.runtime.server.settings import Settings
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


class Engine:
    """Runs work on a fixed number of threads behind a bounded queue.

    Raises, when made, what Bundle.load and Bundle.verify raise: nothing answers before the bundle is verified.
    A call keeps the bundle it began with, so a swap loses none. room: of pixels, which work has to take.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.limits = limits = settings.limits
        # Resolved, so that a link that is turned later does not change what is being read.
        bundle = _verified(settings.bundle)
        measured, workers = threads.choose(bundle, settings.provider, threads.usable_cores())
        self.threads = settings.threads or measured
        self.workers = settings.workers or workers
        self._current = self._loaded(bundle)
        self._previous: Loaded | None = None
        self._swapping = threading.Lock()
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="answer")
        self.room = Room(max(limits.pixels, limits.pixels_held), limits.work_seconds)
        self._held = 0
        self._counting = threading.Lock()
        self.draining = False

    @property
    def held(self) -> int:
        """Requests that wait or are worked on."""
        return self._held

    @property
    def current(self) -> Loaded:
        """The bundle that new requests are answered by."""
        return self._current

    async def do(self, work: Callable[[], T]) -> T:
        """Run `work` on a worker.

        Raises RefusedError 503 when the queue is full or no answer came in time. Work that has begun is finished, and
        holds its place until then, also when nobody waits for it any more.
        """
        limits = self.limits
        with self._counting:
            if self._held >= self.workers + limits.queue:
                raise busy("too many requests wait; try again")
            self._held += 1
        future = self._pool.submit(work)
        future.add_done_callback(self._let_go)
        try:
            async with asyncio.timeout(limits.work_seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError as e:
            raise busy(f"no answer within {limits.work_seconds:g} seconds") from e

    def _let_go(self, _: object) -> None:
        """On the worker's thread, or the event loop's when work was cancelled before it began."""
        with self._counting:
            self._held -= 1

    def swap(self) -> Loaded:
        """Load and verify what lies at the bundle's path now, and answer with it from now on.

        Raises what a start would raise, and BundleError for a model of another name; the bundle that answered
        goes on then.
        """
        with self._swapping:
            new = self._loaded(_verified(self._settings.bundle))
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
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _loaded(self, bundle: Bundle) -> Loaded:
        return Loaded(bundle, bundle.session(self._settings.provider, self.threads))


def _verified(path: Path) -> Bundle:
    bundle = Bundle.load(path.resolve())
    bundle.verify()
    return bundle
