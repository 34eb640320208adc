"""Room for the pictures that are worked on at once: what bounds the memory of all workers together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from toolchain.runtime.server.refusals import busy


class Room:
    """`size` units of room, shared by threads; who finds none waits for at most `seconds`."""

    def __init__(self, size: int, seconds: float) -> None:
        self._left = size
        self._seconds = seconds
        self._changed = threading.Condition()

    @contextmanager
    def take(self, units: int) -> Iterator[None]:
        """Hold `units`, which must not be more than the whole room. Raises RefusedError 503 after the wait."""
        end = time.monotonic() + self._seconds
        with self._changed:
            while units > self._left:
                if not self._changed.wait(end - time.monotonic()):
                    raise busy("too many large pictures are in flight; try again")
            self._left -= units
        try:
            yield
        finally:
            with self._changed:
                self._left += units
                self._changed.notify_all()
