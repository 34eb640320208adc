"""A server in a process of its own, a client that costs next to nothing, and what the process took."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolchain.runtime.bundle import Bundle

_TICKS = os.sysconf("SC_CLK_TCK")
BUNDLE = Path("runs/quickstart/bundle")


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    port: int

    def cpu(self) -> float:
        """CPU seconds that the process took so far, of all its threads; in steps of 10 ms."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident(self) -> int:
        """Bytes of memory that it holds now."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) << 10


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[Server]:
    """Start one on a free port, wait until it answers, stop it afterwards."""
    words = [sys.executable, "-m", "toolchain.runtime", "serve", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r":(\d+) \(", process.stdout.readline() if process.stdout else "")
        if found is None:
            raise SystemExit(f"{bundle}: the server did not start")
        yield Server(process, int(found[1]))
    finally:
        process.terminate()
        process.wait(60)


class Client:
    """One connection that stays open; requests are made beforehand, answers are read and hardly parsed."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """(status, content) of a whole request."""
        self._socket.sendall(request)
        found = b""
        while b"\r\n\r\n" not in found:
            found += self._part()
        head, _, content = found.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
        while len(content) < length:
            content += self._part()
        return int(head[9:12]), content

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _part(self) -> bytes:
        part = self._socket.recv(1 << 18)
        if not part:
            raise ConnectionResetError("the server closed the connection")
        return part


def infer(bundle: Bundle, picture: NDArray[np.uint8]) -> bytes:
    """A request by the binary tensor extension, binary both ways."""
    given = {"name": bundle.manifest.input.name, "datatype": "UINT8", "shape": [1, *picture.shape]}
    given["parameters"] = {"binary_data_size": picture.size}
    text = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    body = text + picture.tobytes()
    path = f"/v2/models/{bundle.manifest.name}/infer"
    return _post(path, body, f"Inference-Header-Content-Length: {len(text)}")


def predict(file: bytes) -> bytes:
    """A request with a picture's file as its body."""
    return _post("/predict", file)


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answer_of(content: bytes) -> NDArray[np.float32]:
    """The probabilities at the end of a binary answer, [C]."""
    head, _ = json.JSONDecoder().raw_decode(content.decode("latin-1"))
    size = head["outputs"][0]["parameters"]["binary_data_size"]
    return np.frombuffer(content[-size:], np.float32)


def picture(size: int = 224) -> NDArray[np.uint8]:
    """A picture of smooth colours with some noise, [size, size, 3]."""
    chance = np.random.default_rng(0)
    small = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = chance.integers(-8, 9, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def jpeg(array: NDArray[np.uint8]) -> bytes:
    """The picture's file at quality 90."""
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def seconds_of(work, count: int) -> list[float]:
    """Seconds of each of `count` calls, after five that do not count."""
    taken = []
    for number in range(-5, count):
        start = time.perf_counter()
        work()
        if number >= 0:
            taken.append(time.perf_counter() - start)
    return taken


def seconds_for(work: Callable[[], object], duration: float) -> list[float]:
    """Seconds of each call, for as long as `duration` lasts; one at least."""
    end, taken = time.monotonic() + duration, list[float]()
    while not taken or time.monotonic() < end:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def verdict(inside: bool, beyond: bool) -> str:
    """The whole interval inside the bar, the whole beyond it, or neither: then nothing is said."""
    return "kept" if inside else "missed" if beyond else "undecided"


def exit_code(verdicts: Iterable[str]) -> int:
    """0 when every bar is kept, 1 when one is missed, 4 when one is undecided."""
    said = set(verdicts)
    return 1 if "missed" in said else 4 if "undecided" in said else 0
