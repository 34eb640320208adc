"""Room for the pictures that are worked on at once: what bounds the memory of all workers together."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from toolchain.runtime.server.refusals import busy


class Room:
    """`size` units of room, shared by threads; who finds none waits for at most `seconds`."""

    def __init__(self, size: int, seconds: float) -> None:
        self._left = size
        self._seconds = seconds
        self._changed = threading.Condition()

    def take(self, units: int) -> Place:
        """Hold `units`, not more than the whole room, until the place is left (`with room.take(units):`).

        Raises RefusedError 503 after the wait.
        """
        with self._changed:
            if units > self._left:
                self._wait(units)
            self._left -= units
        return Place(self, units)

    def give(self, units: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._left += units
            self._changed.notify_all()

    def _wait(self, units: int) -> None:
        end = time.monotonic() + self._seconds
        while units > self._left:
            if not self._changed.wait(end - time.monotonic()):
                raise busy("too many large pictures are in flight; try again")


@dataclass(slots=True)
class Place:
    """What is held of a room."""

    room: Room
    units: int

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.room.give(self.units)
