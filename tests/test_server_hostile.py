"""Hostile requests: each is refused with one sentence, in bounded memory, and the server answers on.

The bundles, models and pictures of the same table are in test_security_table.py.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runtime_helpers import edit_manifest, encoded, make_bundle
from server_helpers import ROOT, Server, refused, serving, wait_for

from toolchain.runtime.bundle import identity
from toolchain.runtime.server.engine import Engine
from toolchain.runtime.server.opening import opened
from toolchain.runtime.server.refusals import RefusedError
from toolchain.runtime.server.room import Room
from toolchain.runtime.server.settings import Limits, Settings

pytest.importorskip("uvicorn", reason="serving needs the extra 'server'")

from toolchain.runtime.server.app import App, Request

INFER = "/v2/models/colours/infer"
MEGABYTES = 1500  # of address space, threads' stacks and libraries included
RESIDENT = 600 << 20  # what all of the requests together may really take


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = make_bundle(tmp_path_factory.mktemp("hostile") / "bundle")
    options = ("--memory-limit", str(MEGABYTES), "--limit-body-seconds", "5", "--limit-connections", "20")
    with serving(folder, *options) as running:
        yield running


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def infer(shape: list[int], data: bytes = b"", said: int | None = None) -> bytes:
    given = {"name": "pictures", "datatype": "UINT8", "shape": shape}
    given["parameters"] = {"binary_data_size": len(data) if said is None else said}
    text = json.dumps({"inputs": [given]}).encode()
    return post(INFER, text + data, f"Inference-Header-Content-Length: {len(text)}")


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


CHUNKED = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n".encode()
ROWS: dict[str, tuple[bytes, bytes, bytes]] = {
    "a million pictures of one pixel": (infer([10**6, 1, 1, 3], bytes(3 * 10**6)), b"413", b"pictures allowed"),
    "seven million empty objects": (
        post(INFER, b"[" + b"{}," * 2_600_000 + b"{}]"), b"400", b"must be a JSON object"),
    "more JSON than allowed": (post(INFER, b" " * (9 << 20)), b"413", b"send the array as binary data"),
    "JSON nested 500,000 deep": (post(INFER, b"[" * 500_000), b"400", b"not JSON"),
    "a number of two million digits": (post(INFER, b"9" * 2_000_000), b"400", b"not JSON"),
    "a shape of 10^36 pixels": (infer([1, 2**31 - 1, 2**31 - 1, 3]), b"413", b"pixels allowed"),
    "a size that is not that of the shape": (infer([1, 9, 9, 3], bytes(9), said=243), b"400", b"243 bytes"),
    "gzip that unpacks to 1 GB": (
        post(INFER, gzip.compress(bytes(1 << 20)) * 1024, "Content-Encoding: gzip"), b"413", b"unpacks to more"),
    "gzip of 9 MB of zeros": (
        post(INFER, gzip.compress(bytes(9 << 20)), "Content-Encoding: gzip"), b"413", b"than the 8388608 bytes"),
    "a body that is said to have 99 GB": (
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode(), b"413", b"larger than"),
    "chunks without an end": (CHUNKED + b"\r\n" + (b"100000\r\n" + bytes(1 << 20) + b"\r\n") * 40, b"413", b"larger"),
    "trailers without an end": (CHUNKED + b"\r\n0\r\n" + b"a: " + b"b" * 90_000, b"", b""),
    "two lengths of one body": (
        post(INFER, b"{}", "Transfer-Encoding: chunked"), b"400", b"Invalid HTTP request"),
    "headers without an end": (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 40_000, b"", b""),
    "a PNG of 100000 x 100000": (post("/predict", png(100_000, 100_000)), b"400", b"pixels"),
    "another file as the model": (
        b"GET /v2/models/..%5c..%5cetc HTTP/1.1\r\nHost: x\r\n\r\n", b"404", b"the only model here"),
    "a file of the server": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"404", b"nothing at this path"),
    "a header in a header": (b"GET /a%0d%0aSet-Cookie:%20x HTTP/1.1\r\nHost: x\r\n\r\n", b"404", b"nothing at this"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_it_is_refused_in_bounded_memory(name: str, server: Server) -> None:
    sent, status, sentence = ROWS[name]
    before = _snapshot(server.folder.parent)
    reply = _exchange(server, sent)
    assert reply.startswith(b"HTTP/1.1 " + status if status else b""), reply[:200]
    assert sentence in reply
    if status:
        assert reply.count(b"HTTP/1.1 ") == 1
    assert _resident(server) < RESIDENT
    assert _snapshot(server.folder.parent) == before
    assert server.client.get("/v2/health/ready").status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_the_whole_body_of_a_refused_request_is_not_waited_for(server: Server) -> None:
    """A connection that is answered before its body came ends; else a byte now and then would keep it for ever."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert b"connection: close" in _read(client)


@pytest.mark.parametrize("path", ["/v2/health/live", "/metrics", "/nowhere"])
def test_a_client_that_sends_no_more_is_still_answered(server: Server, path: str) -> None:
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            client.shutdown(socket.SHUT_WR)
            assert _read(client).startswith(b"HTTP/1.1 ")


def test_so_is_one_that_asked_the_model(server: Server) -> None:
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nnone")
            client.shutdown(socket.SHUT_WR)
            assert _read(client).startswith(b"HTTP/1.1 400 ")
            assert client.recv(1) == b""  # and then the connection ends


def test_large_pictures_wait_for_room() -> None:
    """Small files make large pictures: what all workers decode at once is bounded, whatever their number."""
    room = Room(10, seconds=30)
    order: list[str] = []

    def second() -> None:
        with room.take(6):
            order.append("second")

    with room.take(5), room.take(5):
        waiting = threading.Thread(target=second)
        waiting.start()
        with pytest.raises(RefusedError) as refusal, _hurried(room), room.take(1):
            pass
        assert refusal.value.status == 503
        order.append("first")
    waiting.join(30)
    assert order == ["first", "second"]


@contextlib.contextmanager
def _hurried(room: Room) -> Iterator[None]:
    room._seconds = 0.0
    yield


def test_every_picture_takes_room(tmp_path: Path) -> None:
    """With room for one pixel less than a picture has, none is decoded nor asked about, by either way in."""
    bundle = make_bundle(tmp_path / "bundle")
    engine = Engine(
        Settings(bundle, workers=1, limits=Limits(pixels=100, pixels_held=1, work_seconds=0.1)),
        opened(bundle),
    )
    app = App(engine, Settings(bundle))
    picture = encoded(Image.new("RGB", (10, 10)), "PNG")
    with engine.room.take(1):
        with pytest.raises(RefusedError, match="large pictures"):
            app._classify(engine.current, picture)
        with pytest.raises(RefusedError, match="large pictures"):
            asked = {
                "inputs": [
                    {"name": "pictures", "datatype": "UINT8", "shape": [1, 10, 10, 3], "data": [0] * 300}
                ]
            }
            app._ask(Request("infer", None, None, {}, None), engine.current, json.dumps(asked).encode())  # type: ignore[arg-type]
    assert json.loads(app._classify(engine.current, picture).content)["label"]
    engine.close()


def test_a_picture_that_the_model_would_pad_to_gigabytes_is_refused(tmp_path: Path) -> None:
    """A hundred bytes of a line of 20,000 pixels, which a square input without cropping pads to 400 million."""
    bundle = make_bundle(tmp_path / "bundle")

    def pad(content: dict[str, Any]) -> None:
        content["preprocessing"].update({"crop_mode": "border", "height": 8, "width": 8})
        content["identity"] = identity(content, content["files"])

    edit_manifest(bundle, pad)
    engine = Engine(Settings(bundle, workers=1), opened(bundle))
    app = App(engine, Settings(bundle))
    with pytest.raises(RefusedError, match="padded to the model's aspect, are 400000000"):
        app._classify(engine.current, encoded(Image.new("RGB", (20000, 1)), "PNG"))
    data = bytes(60_000)
    head = {
        "name": "pictures",
        "datatype": "UINT8",
        "shape": [1, 1, 20000, 3],
        "parameters": {"binary_data_size": 60_000},
    }
    text = json.dumps({"inputs": [head]}).encode()
    length = {b"inference-header-content-length": str(len(text)).encode()}
    with pytest.raises(RefusedError, match="padded to the model's aspect"):
        app._ask(Request("infer", None, None, length, None), engine.current, text + data)  # type: ignore[arg-type]
    engine.close()


def test_large_pictures_leave_no_memory_behind(tmp_path: Path) -> None:
    """onnxruntime would keep twice the 384 MB that a picture of 32 megapixels takes as float32; once is kept here."""
    words = [sys.executable, "-c", _LARGE, str(make_bundle(tmp_path / "bundle"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 550 << 10


_LARGE = """
import sys
from pathlib import Path
import numpy as np
from toolchain.runtime.bundle import Bundle
def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
session = Bundle.load(Path(sys.argv[1])).session()
before = resident()
picture = np.zeros((1, 4000, 8000, 3), np.uint8)
for _ in range(3):
    session.run({"pictures": picture})
del picture
print(before, resident())
"""


def test_too_many_connections_are_told_to_come_again(server: Server) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    try:
        reply = server.client.get("/v2/health/ready")
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert "connections" in reply.json()["error"]
        held += [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(60)]
        assert held[-1].recv(1) == b""  # closed without a word
    finally:
        for one in held:
            one.close()
    _until_ready(server)


def test_more_connections_than_the_process_may_have(tmp_path: Path) -> None:
    code, told = refused(make_bundle(tmp_path / "bundle"), "--limit-connections", "99999999")
    assert code == 2
    assert "ulimit -n" in told


def test_a_supervisor_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with serving(make_bundle(tmp_path / "bundle")):
            assert supervisor.recv(100) == b"READY=1"
        assert supervisor.recv(100) == b"STOPPING=1"


def test_a_supervisor_that_is_gone_does_not_keep_it_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with serving(make_bundle(tmp_path / "bundle")) as server:
            supervisor.recv(100)
            (tmp_path / "notify").unlink()
            server.process.terminate()
            assert server.process.wait(60) == 0


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost"
    subprocess.run([*made.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def test_connections_that_never_say_hello_are_closed(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    options = ("--tls-certificate", str(pair[0]), "--tls-key", str(pair[1]), "--limit-header-seconds", "0.5")
    with serving(make_bundle(tmp_path / "bundle"), *options) as server:
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(50)]
        for one in held:
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""  # asyncio's own limit is 60 seconds
            one.close()


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    locked = tmp_path / "locked.pem"
    words = ["openssl", "pkey", "-in", pair[1], "-aes128", "-passout", "pass:secret", "-out", locked]
    subprocess.run(words, check=True, capture_output=True)
    options = ("--tls-certificate", str(pair[0]), "--tls-key", str(locked))
    code, told = refused(make_bundle(tmp_path / "bundle"), *options)
    assert code == 2
    assert "passphrase" in told


def test_the_scheme_of_a_token_may_be_spelt_anyhow(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-some-length")
    with serving(make_bundle(tmp_path / "bundle"), "--token-file", str(tmp_path / "token")) as server:
        for given, status in (
            ("bearer a-token-of-some-length", 200), ("Basic a-token-of-some-length", 401), ("Bearer", 401),
        ):  # fmt: skip
            assert server.client.get("/v2", headers={"Authorization": given}).status_code == status


def _exchange(server: Server, sent: bytes) -> bytes:
    """Send everything, or as much as is taken, and read until the answer is whole or the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(sent)
        return _read(client)


def _read(client: socket.socket) -> bytes:
    found = b""
    try:
        while part := client.recv(1 << 16):
            found += part
            head, _, content = found.partition(b"\r\n\r\n")
            if b"content-length: %d" % len(content) in head.lower() and content:
                break
    except ConnectionResetError:
        pass
    return found


def _resident(server: Server) -> int:
    """The largest resident memory the server ever had, in bytes."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) << 10


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(p.relative_to(folder)): p.lstat() for p in folder.rglob("*")}
    return {
        name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items() if not name.endswith(".log")
    }


def _until_ready(server: Server) -> None:
    wait_for(lambda: server.client.get("/v2/health/ready").status_code == 200)


def test_the_session_that_was_verified_answers_unless_another_was_asked_for(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    for threads in (1, 2):
        first = opened(bundle)
        assert first.proof is not None
        proof = weakref.ref(first.proof)
        engine = Engine(Settings(bundle, threads=threads), first)
        assert engine.current.session.threads == threads
        assert proof() is (engine.current.session if threads == 1 else None)
        engine.close()
