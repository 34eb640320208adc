"""Clients that misbehave: one fault every 50 ms by turns, slow ones that trickle on until the server ends them."""

from __future__ import annotations

import contextlib
import gzip
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator

_EVERY, _TRICKLE = 0.05, 1.0  # seconds between faults, and between a slow client's bytes


class Faults:
    """Faults in a thread of their own, sent while `active`; `counts` says how many of each kind there were.

    A slow client (slow-loris) sends a byte a second of a head that never ends, also while nothing else is sent, and is
    counted as "slow, ended" when the server has closed its connection.
    """

    def __init__(self, port: int) -> None:
        self.counts: Counter[str] = Counter()
        self._port, self._sent, self._slow = port, _payloads(), list[socket.socket]()
        self._active, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Faults within, none outside."""
        self._active.set()
        try:
            yield
        finally:
            self._active.clear()

    def stop(self) -> None:
        """End the thread and its connections."""
        self._stop.set()
        self._thread.join()
        for one in self._slow:
            one.close()

    def _run(self) -> None:
        number, trickled = 0, time.monotonic()
        while not self._stop.wait(_EVERY):
            if self._active.is_set():
                self._send(list(self._sent)[number % len(self._sent)])
                number += 1
            if time.monotonic() - trickled >= _TRICKLE:
                trickled = time.monotonic()
                self._slow = [one for one in self._slow if self._lives(one)]

    def _send(self, name: str) -> None:
        try:
            client = socket.create_connection(("127.0.0.1", self._port), timeout=10)
            client.sendall(self._sent[name])
        except OSError:  # the server ends it while it is being sent: so it should
            self.counts[f"{name}, cut off"] += 1
            return
        self.counts[name] += 1
        if name == "slow":
            client.setblocking(False)
            self._slow.append(client)
        else:
            client.close()

    def _lives(self, slow: socket.socket) -> bool:
        """Whether the server still holds a slow client, which sends its next byte."""
        try:
            while slow.recv(4096):
                pass
        except BlockingIOError:
            with contextlib.suppress(OSError):
                slow.send(b"x")
                return True
        except OSError:
            pass
        slow.close()
        self.counts["slow, ended"] += 1
        return False


def _payloads() -> dict[str, bytes]:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: "
    bomb = _png(100_000, 100_000)
    packed = gzip.compress(bytes(64 << 20))
    return {
        "aborted": head + b"100000\r\n\r\n" + bytes(50_000), "slow": b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
        "garbage": bytes(range(256)) * 8,
        "oversize": head + b"99999999999\r\n\r\n", "bomb": head + b"%d\r\n\r\n" % len(bomb) + bomb,
        "gzip bomb": head + b"%d\r\nContent-Encoding: gzip\r\n\r\n" % len(packed) + packed,
    }  # fmt: skip


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
