"""uvicorn's connection with what it lacks: limits on the time and size of a request's head, and on connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from toolchain.runtime.server.settings import Limits

_MOST_HEAD_BYTES = 64 << 10
_PART_BYTES = 256 << 10  # of a body that a connection holds before the application takes them
# Connections above the limit that are still told so, before further ones are closed without a word.
SPARE = 32


class Connection(HttpToolsProtocol):
    """A connection that is closed when a request's head takes longer than `limits.header_seconds` or 64 KiB.

    The time runs from the connection's start and from each later request's first byte; the idle time between
    two requests is uvicorn's own limit. A request on more than `limits.connections` is answered by the ASGI
    application `busy`.
    """

    limits: Limits
    busy: Callable[..., Any]
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _header_bytes = 0  # of one request, a chunked body's trailers included
    _in_head = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(Gathering(transport, self.loop))
        self._wait_for_head()
        if len(self.connections) > self.limits.connections + SPARE:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_whole()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # The part that ends a head may carry much of the body, and is no longer counted then.
        if self._in_head and self._head_bytes > _MOST_HEAD_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._wait_for_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _MOST_HEAD_BYTES:
            self.transport.close()
            self.headers.clear()

    def on_headers_complete(self) -> None:
        self._head_is_whole()
        self.app = self.busy if len(self.connections) > self.limits.connections else self.config.loaded_app
        super().on_headers_complete()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. It may still read: what was asked whole is answered before the connection ends."""
        self.transport.flush()  # type: ignore[attr-defined]
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete or self.scheme == "https":
            return None  # TLS has no half-closed connections
        cycle.keep_alive = False
        return True

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, which pauses the connection at 64 KiB: four more system calls for a picture of 224 pixels."""
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > _PART_BYTES:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def _wait_for_head(self) -> None:
        self._in_head = True
        if self._deadline is None:
            self._head_bytes = 0
            self._deadline = self.loop.call_later(self.limits.header_seconds, self.transport.close)

    def _head_is_whole(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Gathering(asyncio.Transport):
    """A transport whose writes of one turn of the event loop go out as one: an answer's head with its body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(bytes(data))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def flush(self) -> None:
        """Write what was gathered, unless the connection is ending."""
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))


def connection_type(asked: Limits, refuse: Callable[..., Any]) -> type[Connection]:
    """The connection with these limits, for uvicorn makes connections from a type alone."""

    class Limited(Connection):
        limits = asked
        busy = staticmethod(refuse)

    return Limited
