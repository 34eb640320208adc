"""Threads that work for the event loop, behind a bounded queue.

What concurrent.futures does as well, in a fraction of the steps between the loop and the thread: a call of a small model
takes a third of a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from toolchain.runtime.server.refusals import busy

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Task:
    """A piece of work and who waits for it. `begun` and `dropped` exclude each other, under the workers' lock."""

    work: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    begun: bool = False
    dropped: bool = False


class Workers:
    """`count` threads; at most `queue` pieces of work wait for them, each for at most `seconds`, its run included."""

    def __init__(self, count: int, queue: int, seconds: float) -> None:
        self._most = count + queue
        self._seconds = seconds
        self._held = 0
        self._counting = threading.Lock()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"answer-{k}", daemon=True) for k in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def held(self) -> int:
        """Pieces of work that wait or are worked on."""
        return self._held

    async def do(self, work: Callable[[], T]) -> T:
        """Run `work` on a thread; raises what it raises.

        Raises RefusedError 503 when the queue is full or no answer came in time. Work that has begun is finished, and
        holds its place until then, also when nobody waits for it any more; work that has not begun is dropped then.
        """
        with self._counting:
            if self._held >= self._most:
                raise busy("too many requests wait; try again")
            self._held += 1
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        task = _Task(work, loop, answer)
        self._tasks.put(task)
        late = loop.call_later(self._seconds, self._give_up, answer)
        try:
            return await answer
        finally:
            late.cancel()
            self._drop(task)
            del (
                task,
                answer,
                late,
            )  # else an error, its traceback, this frame and the request's body hold each other

    def close(self) -> None:
        """Wait for what is being worked on; call it when nobody waits any more."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _give_up(self, answer: asyncio.Future[Any]) -> None:
        if not answer.done():
            answer.set_exception(busy(f"no answer within {self._seconds:g} seconds"))

    def _drop(self, task: _Task) -> None:
        """Give a task's place free unless it has begun: its thread does so then."""
        with self._counting:
            if not task.begun:
                task.dropped = True
                del task.work, task.answer  # it stays in the queue, its request's body does not
                self._held -= 1

    def _run(self) -> None:
        """A thread's life."""
        while (task := self._tasks.get()) is not None:
            with self._counting:
                task.begun = not task.dropped
            if task.dropped:
                del task
                continue
            value, error = _outcome(task.work)
            with self._counting:
                self._held -= 1
            # The loop has ended, and nobody waits; or there is no memory to tell so, and who waits is refused in time.
            with contextlib.suppress(RuntimeError, MemoryError):
                task.loop.call_soon_threadsafe(_tell, task.answer, value, error)
            del task, value, error  # not kept until the next request


def _outcome(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What `work` returned, or what it raised, for the one who waits."""
    try:
        return work(), None
    except StopIteration as error:  # which no future takes
        return None, RuntimeError(f"the work ended its iteration: {error}")
    except BaseException as error:  # noqa: BLE001  (raised again in the event loop, none is hidden)
        return None, error


def _tell(answer: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    """On the event loop's thread."""
    if answer.done():
        return
    if error is None:
        answer.set_result(value)
    else:
        answer.set_exception(error)
