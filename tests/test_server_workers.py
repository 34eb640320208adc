"""Threads behind a bounded queue, and writes gathered to one: toolchain/runtime/server/workers.py, connection.py."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import threading
import weakref

import pytest

pytest.importorskip("uvicorn", reason="serving needs the extra 'server'")

from toolchain.runtime.server.connection import Gathering
from toolchain.runtime.server.refusals import RefusedError
from toolchain.runtime.server.workers import Workers


def test_answers_and_errors_of_the_work_come_back() -> None:
    workers = Workers(2, 4, 10)
    try:
        assert asyncio.run(workers.do(lambda: 6 * 7)) == 42
        with pytest.raises(KeyError):
            asyncio.run(workers.do(lambda: {}["nothing"]))
        assert workers.held == 0
    finally:
        workers.close()


def test_who_waits_too_long_is_refused_and_what_had_not_begun_never_runs() -> None:
    workers = Workers(1, 1, 0.2)
    go, ran = threading.Event(), list[str]()

    async def both() -> list[object]:
        begun = asyncio.create_task(workers.do(lambda: (go.wait(10), ran.append("begun"))))
        await asyncio.sleep(0.05)
        waits = asyncio.create_task(workers.do(lambda: ran.append("waits")))
        await asyncio.sleep(0.05)
        assert workers.held == 2
        with pytest.raises(RefusedError, match="too many requests wait"):
            await workers.do(lambda: None)
        return await asyncio.gather(begun, waits, return_exceptions=True)

    try:
        refused = asyncio.run(both())
        assert all(
            isinstance(e, RefusedError) and e.status == 503 and "0.2 seconds" in e.sentence for e in refused
        )
        assert workers.held == 1  # what has begun holds its place, what has not gave it back
        go.set()
    finally:
        workers.close()
    assert ran == ["begun"]
    assert workers.held == 0


def test_work_that_ends_after_the_event_loop_harms_nobody() -> None:
    workers = Workers(1, 1, 0.05)
    go = threading.Event()
    with pytest.raises(RefusedError):
        asyncio.run(workers.do(lambda: go.wait(10)))
    go.set()
    assert asyncio.run(workers.do(lambda: "next")) == "next"
    workers.close()


def test_no_body_outlives_its_request() -> None:
    """Neither that of work which was dropped, nor that of work which failed, and without the garbage collector."""

    class Body:
        """What a weak reference can point to."""

    def failing(body: Body) -> None:
        raise ValueError(body.__class__.__name__)

    async def ask(workers: Workers, work: object, body: Body) -> None:
        with contextlib.suppress(ValueError, RefusedError):
            await workers.do(functools.partial(work, body))  # type: ignore[arg-type]

    async def all_of_it() -> list[weakref.ref[Body]]:
        bodies = [Body() for _ in range(4)]
        alive = [weakref.ref(body) for body in bodies]
        await ask(failed, failing, bodies[0])
        await asyncio.gather(*(ask(stuck, lambda body: go.wait(10), body) for body in bodies[1:]))
        return alive

    failed, stuck, go = Workers(1, 4, 10), Workers(1, 4, 0.05), threading.Event()
    gc.disable()
    try:
        alive = asyncio.run(all_of_it())
        assert [one() is None for one in alive] == [True, False, True, True]  # the second is being worked on
    finally:
        gc.enable()
        go.set()
        failed.close()
        stuck.close()
    assert all(one() is None for one in alive)


def test_an_end_of_iteration_is_an_error_like_any_other() -> None:
    workers = Workers(1, 1, 10)
    with pytest.raises(RuntimeError, match="ended its iteration"):
        asyncio.run(workers.do(lambda: next(iter(()))))
    workers.close()


class Written(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def test_writes_of_one_turn_go_out_as_one_and_before_a_close() -> None:
    async def write() -> Written:
        under = Written()
        gathering = Gathering(under, asyncio.get_running_loop())
        gathering.write(b"head ")
        gathering.write(b"body")
        await asyncio.sleep(0)
        gathering.write(b"last")
        gathering.close()
        gathering.write(b"too late")
        await asyncio.sleep(0)
        return under

    under = asyncio.run(write())
    assert under.writes == [b"head body", b"last"]
    assert under.closed
