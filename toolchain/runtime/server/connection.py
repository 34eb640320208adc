"""uvicorn's connection with what it lacks: limits on the time and size of a request's head, and on connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from toolchain.runtime.server.settings import Limits

_MOST_HEAD_BYTES = 64 << 10
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
        super().connection_made(transport)
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


def connection_type(asked: Limits, refuse: Callable[..., Any]) -> type[Connection]:
    """The connection with these limits, for uvicorn makes connections from a type alone."""

    class Limited(Connection):
        limits = asked
        busy = staticmethod(refuse)

    return Limited
