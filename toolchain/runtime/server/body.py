"""A request's body, read under limits of size, time and memory, and unpacked under a cap."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from toolchain.runtime.server.refusals import RefusedError, busy
from toolchain.runtime.server.settings import Limits

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
# What a packed body may unpack to, whatever the limit: zeros pack 1000:1, and unpacking them takes a worker's time.
_MOST_TIMES, _ALWAYS_BYTES = 100, 8 << 20
_MOST_MEMBERS, _PART = 10_000, 1 << 14
_ENCODINGS = ("identity", "", "gzip", "x-gzip", "deflate")


class GoneError(Exception):
    """The client closed the connection before its request was whole."""


class Incoming:
    """A request's body as it arrives; `whole` once its end has come."""

    def __init__(self, receive: Receive, headers: Mapping[bytes, bytes]) -> None:
        self._receive = receive
        self.declared = int(headers.get(b"content-length") or b"0")
        self.whole = not self.declared and b"transfer-encoding" not in headers

    async def __call__(self) -> MutableMapping[str, Any]:
        """The next ASGI message."""
        message = await self._receive()
        self.whole |= message["type"] == "http.request" and not message.get("more_body", False)
        return message


class Reader:
    """Reads bodies; all that are held at once share `limits.buffered`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    async def read(self, incoming: Incoming) -> bytes | bytearray:
        """The body as sent, not copied where it came in one part; call `release` with it when it is answered.

        Raises RefusedError 413 (too large), 408 (too slow) or 503 (too much in flight), and GoneError.
        """
        if incoming.declared > self._limits.body:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while (part := await incoming())["type"] == "http.request":
                    content, more = part.get("body", b""), part.get("more_body", False)
                    self._take(len(body), content)
                    if not more and not body:
                        return bytes(content)
                    body += content
                    if not more:
                        return body
            raise GoneError
        except TimeoutError as e:
            self.release(body)
            raise RefusedError(
                408, f"the body did not arrive within {self._limits.body_seconds:g} seconds"
            ) from e
        except (GoneError, RefusedError):
            self.release(body)
            raise

    def release(self, body: bytes | bytearray) -> None:
        """Give back what `read` took."""
        self._held -= len(body)

    def _take(self, before: int, part: bytes) -> None:
        if before + len(part) > self._limits.body:
            raise self._too_large()
        if self._held + len(part) > self._limits.buffered:
            raise busy("too many large requests are in flight; try again")
        self._held += len(part)

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is larger than the {self._limits.body} bytes allowed")


def unpack(body: bytes | bytearray, encoding: str, cap: int) -> bytes | bytearray:
    """Undo a body's content encoding: gzip or deflate (RFC 9110, 8.4.1), or none.

    Raises RefusedError 415 for another, 400 for damaged data or more than 10,000 members, and 413 as soon as more than
    `cap` bytes come out, or more than 8 MiB that are also 100 times what was sent.
    """
    kind = encoding.strip().lower()
    if kind not in _ENCODINGS:
        raise RefusedError(415, f"the content encoding {kind!r} is not known; use gzip, deflate or none")
    if kind in _ENCODINGS[:2]:
        return body
    cap = min(cap, max(_ALWAYS_BYTES, _MOST_TIMES * len(body)))
    out, members, at = bytearray(), 0, 0
    member = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        while at < len(body):
            if member.eof:  # a gzip file may have several members
                members, member = members + 1, zlib.decompressobj(_GZIP_OR_ZLIB)
                if members == _MOST_MEMBERS:
                    raise RefusedError(400, f"the body has more than {_MOST_MEMBERS} members")
            part = bytes(body[at : at + _PART])  # what lies behind a member's end is copied by zlib each time
            out += member.decompress(part, cap + 1 - len(out))
            if len(out) > cap:
                raise RefusedError(413, f"the body unpacks to more than the {cap} bytes allowed")
            at += len(part) - len(member.unused_data)
        if body and not member.eof:
            raise RefusedError(400, f"the body is not whole as {kind}")
    except zlib.error as e:
        raise RefusedError(400, f"the body is not {kind}, though its content encoding says so ({e})") from e
    return out
