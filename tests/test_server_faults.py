"""What happens when clients, signals, bundles or settings are bad."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from runtime_helpers import (
    GOLDEN,
    edit_manifest,
    fused_model,
    make_bundle,
    manifest_of,
    write_golden,
    write_manifest,
)
from server_helpers import Server, refused, serving, wait_for

from toolchain.runtime import manifest
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.server import serve, threads
from toolchain.runtime.server.settings import Settings
from toolchain.runtime.session import Session

pytest.importorskip("uvicorn", reason="serving needs the extra 'server'")
TOKEN = "a-token-of-some-length"


def other_bundle(folder: Path) -> Path:
    """A bundle of the same name that answers otherwise."""
    make_bundle(folder)
    onnx.save(fused_model(0.01), folder / manifest.MODEL)
    session = Session(folder / manifest.MODEL)
    write_golden(folder, np.concatenate([session.run({"pictures": p[None]})[0] for p in GOLDEN]))
    content = manifest_of(folder)
    content["identity"] = manifest.identity(content, content["files"])
    write_manifest(folder, content)
    return folder


def ask(client: httpx.Client) -> httpx.Response:
    array = GOLDEN[0][None]
    given = {"name": "pictures", "datatype": "UINT8", "shape": list(array.shape), "data": array.tolist()}
    return client.post("/v2/models/colours/infer", json={"inputs": [given]})


def test_a_changed_bundle_is_not_served(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    edit_manifest(folder, lambda content: content.update(temperature=1.5))
    code, told = refused(folder)
    assert code == 3
    assert "identity" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "options",
    [("--tls-key", "x"), ("--workers", "0"), ("--port", "99999"), ("--token-file", "/nowhere"), ("--limit-queue", "0")],
)  # fmt: skip
def test_wrong_options_are_told_in_one_sentence(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, told = refused(make_bundle(tmp_path / "bundle"), *options)
    assert code == 2
    assert len(told.splitlines()) == 1


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, told = refused(make_bundle(tmp_path / "bundle"), "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "cannot listen" in told


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """Two small writes in a row take 40 ms without TCP_NODELAY, which asyncio alone does not set here."""
    with (
        serve._listen(Settings(tmp_path, port=0)) as listening,
        socket.create_connection(listening.getsockname()),
    ):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with serving(make_bundle(tmp_path / "bundle"), "--token-file", str(file)) as server:
        for path in ("/metrics", "/v2", "/v2/models/colours", "/openapi.json"):
            assert server.client.get(path).status_code == 401
            assert server.client.get(path, headers={"Authorization": "Bearer other"}).status_code == 401
            assert server.client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert ask(server.client).status_code == 401
        assert server.client.get("/v2/health/ready").status_code == 200


def test_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    folder = make_bundle(tmp_path / "bundle")
    with serving(folder, "--tls-certificate", str(certificate), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://")
        assert ask(server.client).status_code == 200
    assert refused(folder, "--tls-certificate", str(key), "--tls-key", str(key))[0] == 2


def test_slow_and_garbled_clients_are_closed(tmp_path: Path) -> None:
    options = ("--limit-header-seconds", "0.5", "--limit-body-seconds", "0.5")
    with serving(make_bundle(tmp_path / "bundle"), *options) as server:
        sent = {
            b"": b"",
            b"GET / HT": b"",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /v2 HT": b"200 OK",
            b"\x16\x03\x01\x02\x00": b"400 Bad Request",
            b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000: b"",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc": b"408 Request Timeout",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nabc": b"413 ",
        }
        for content, expected in sent.items():
            assert expected in _until_closed(server, content), content[:40]
        assert ask(server.client).status_code == 200
        assert "Traceback" not in server.log.read_text()


def _until_closed(server: Server, content: bytes) -> bytes:
    """Send, then read until the server closes; TimeoutError when it does not."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(content)
        found = b""
        try:
            while part := client.recv(65536):
                found += part
        except ConnectionResetError:
            pass
        return found


def test_aborted_uploads_are_counted(tmp_path: Path) -> None:
    with serving(make_bundle(tmp_path / "bundle")) as server:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        wait_for(lambda: "toolchain_aborted_total 5" in server.client.get("/metrics").text)


def test_a_full_queue_answers_503_and_recovers(tmp_path: Path) -> None:
    options = ("--workers", "1", "--limit-queue", "1")
    picture = np.zeros((1, 2000, 2000, 3), np.uint8)
    head = {
        "name": "pictures",
        "datatype": "UINT8",
        "shape": list(picture.shape),
        "parameters": {"binary_data_size": picture.size},
    }
    text = json.dumps({"inputs": [head]}).encode()
    found: list[httpx.Response] = []

    def heavy(server: Server) -> None:
        headers = {"inference-header-content-length": str(len(text))}
        reply = server.client.post(
            "/v2/models/colours/infer", content=text + picture.tobytes(), headers=headers
        )
        found.append(reply)

    with serving(make_bundle(tmp_path / "bundle"), *options) as server:
        clients = [threading.Thread(target=heavy, args=(server,)) for _ in range(12)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        codes = {reply.status_code for reply in found}
        assert codes == {200, 503}
        assert all(reply.headers["retry-after"] == "1" for reply in found if reply.status_code == 503)
        assert ask(server.client).status_code == 200
        assert "toolchain_held_requests 0" in server.client.get("/metrics").text


def test_sigterm_answers_what_is_in_flight_and_ends_with_0(tmp_path: Path) -> None:
    with serving(make_bundle(tmp_path / "bundle")) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
            wait_for(lambda: ask(server.client).status_code == 200)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not _listens(server))
            client.sendall(b"cd")
            assert b"400 Bad Request" in client.recv(65536)
        assert server.process.wait(30) == 0


def _listens(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_hot_swap_under_load_loses_nothing_and_goes_back(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "first"), other_bundle(tmp_path / "second")
    link = tmp_path / "current"
    link.symlink_to(first)
    expected = {
        Bundle.load(f).manifest.identity[:12]: Bundle.load(f).session().run({"pictures": GOLDEN[0][None]})[0]
        for f in (first, second)
    }
    one, two = expected
    with serving(link) as server:
        replies: list[httpx.Response] = []
        stop = threading.Event()

        def load() -> None:
            with server.client as client:
                while not stop.is_set():
                    replies.append(ask(client))

        clients = [threading.Thread(target=load) for _ in range(3)]
        for client in clients:
            client.start()
        try:
            wait_for(lambda: bool(replies))
            _turn(link, second)
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: replies[-1].json()["model_version"] == two)
            server.process.send_signal(signal.SIGUSR1)
            wait_for(lambda: replies[-1].json()["model_version"] == one)
        finally:
            stop.set()
            for client in clients:
                client.join()
        assert {reply.status_code for reply in replies} == {200}
        assert {reply.json()["model_version"] for reply in replies} == {one, two}
        for reply in replies:
            answer = np.float32(reply.json()["outputs"][0]["data"])
            np.testing.assert_array_equal(answer, expected[reply.json()["model_version"]][0])


def test_a_bad_bundle_is_not_swapped_to(tmp_path: Path) -> None:
    first, bad = make_bundle(tmp_path / "first"), other_bundle(tmp_path / "bad")
    edit_manifest(bad, lambda content: content.update(temperature=9.0))
    link = tmp_path / "current"
    link.symlink_to(first)
    with serving(link) as server:
        before = _version(server)
        _turn(link, bad)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: 'changes_total{result="refused"} 1' in server.client.get("/metrics").text)
        server.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: 'changes_total{result="refused"} 2' in server.client.get("/metrics").text)
        assert _version(server) == before
        assert ask(server.client).status_code == 200
        assert "identity" in server.log.read_text()
        assert "no earlier bundle" in server.log.read_text()


def _turn(link: Path, target: Path) -> None:
    new = link.with_name("new")
    new.symlink_to(target)
    new.replace(link)


def _version(server: Server) -> str:
    return server.client.get("/v2/models/colours").json()["versions"][0]


@pytest.mark.parametrize(
    ("rows", "cores", "chosen"),
    [
        ([], 4, (1, 4)),
        ([(1, 100), (2, 60)], 4, (1, 4)),
        ([(1, 100), (2, 40)], 4, (2, 2)),
        ([(1, 100), (2, 50)], 4, (1, 4)),
        ([(1, 100), (8, 1)], 4, (1, 4)),
        ([(2, 50)], 3, (2, 1)),
    ],
)
def test_threads_come_from_the_measurements(
    tmp_path: Path, rows: list[tuple[int, int]], cores: int, chosen: tuple[int, int]
) -> None:
    bundle = Bundle.load(make_bundle(tmp_path / "bundle"))
    latency = [{"file": "fused", "batch": 1, "threads": t, "p50_ns": p} for t, p in rows]
    plain = {"file": "plain", "batch": 1, "threads": 4, "p50_ns": 1}
    content = {"variant": {"latency": {"cpu": [plain, *latency]}}}
    (bundle.folder / manifest.MEASURED).write_text(json.dumps(content))
    assert threads.choose(bundle, "cpu", cores) == chosen
