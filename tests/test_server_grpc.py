"""gRPC beside HTTP: Triton's own client, unmodified, and what is refused."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from runtime_helpers import GOLDEN, make_bundle
from server_helpers import Server, refused, serving

from toolchain.runtime.server import wire
from toolchain.runtime.server.refusals import RefusedError

pytest.importorskip("uvicorn", reason="serving needs the extra 'server'")
grpc = pytest.importorskip("grpc", reason="needs the extra 'grpc'")
BATCH = np.stack([GOLDEN[0], GOLDEN[0][::-1]])
INFER = "/inference.GRPCInferenceService/ModelInfer"
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = make_bundle(tmp_path_factory.mktemp("rpc") / "bundle")
    with serving(folder, "--grpc-port", "0", "--limit-body", "200000") as running:
        yield running


def address(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


def test_tritons_client_gets_the_sessions_very_bits(server: Server) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient, grpcio and protobuf")
    client = triton.InferenceServerClient(address(server))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("colours")
    assert client.get_server_metadata().name == "toolchain"
    about = client.get_model_metadata("colours", as_json=True)
    (version,) = about["versions"]
    assert about["inputs"] == [{"name": "pictures", "datatype": "UINT8", "shape": ["-1", "-1", "-1", "3"]}]
    assert about["outputs"][0]["datatype"] == "FP32"
    given = triton.InferInput("pictures", list(BATCH.shape), "UINT8")
    given.set_data_from_numpy(BATCH)
    for outputs in (None, [triton.InferRequestedOutput("probabilities")]):
        reply = client.infer("colours", [given], version, outputs, request_id="7")
        np.testing.assert_array_equal(reply.as_numpy("probabilities"), server.raw(BATCH))
        assert (reply.get_response().id, reply.get_response().model_version) == ("7", version)
    with pytest.raises(triton.InferenceServerException, match="only model here"):
        client.infer("other", [given])
    with pytest.raises(triton.InferenceServerException, match="only output"):
        client.infer("colours", [given], outputs=[triton.InferRequestedOutput("logits")])
    client.close()


def tensor(shape: list[int], name: str = "pictures", kind: str = "UINT8") -> bytes:
    return wire.data(5, wire.data(1, name) + wire.data(2, kind) + wire.numbers(3, shape))


PIXEL = wire.data(7, b"123")
ROWS = {
    "no message": (b"\xff" * 20, "INVALID_ARGUMENT", "no protobuf"),
    "a length beyond the end": (b"\x0a\x7f", "INVALID_ARGUMENT", "cut short"),
    "a name that is no text": (wire.data(1, b"\xff\xfe"), "INVALID_ARGUMENT", "no UTF-8"),
    "a name that is a number": (wire.flag(1, True), "INVALID_ARGUMENT", "a number where"),
    "another model": (wire.data(1, "other"), "NOT_FOUND", "only model here"),
    "no input": (wire.data(1, "colours"), "INVALID_ARGUMENT", "raw_input_contents"),
    "a negative shape": (wire.data(1, "colours") + tensor([1, -1, 1, 3]) + PIXEL, "INVALID_ARGUMENT", "above 0"),
    "another type": (wire.data(1, "colours") + tensor([1, 1, 1, 3], kind="FP32") + PIXEL, "INVALID_ARGUMENT", "UINT8"),
    "too many pictures": (
        wire.data(1, "colours") + tensor([17, 1, 1, 3]) + wire.data(7, bytes(51)), "RESOURCE_EXHAUSTED", "pictures"),
    "too few bytes": (wire.data(1, "colours") + tensor([1, 2, 2, 3]) + PIXEL, "INVALID_ARGUMENT", "12 bytes"),
    "fields without end": (wire.data(5, b"") * 10_001, "INVALID_ARGUMENT", "more than 10000 fields"),
    "too large": (bytes(200_001), "RESOURCE_EXHAUSTED", "larger than max"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_it_is_refused_with_a_sentence(name: str, server: Server) -> None:
    sent, code, sentence = ROWS[name]
    with grpc.insecure_channel(address(server)) as channel, pytest.raises(grpc.RpcError) as told:
        channel.unary_unary(INFER)(sent, timeout=30)
    assert told.value.code().name == code
    assert sentence in told.value.details()
    assert "Traceback" not in server.log.read_text()
    assert server.client.get("/v2/health/ready").status_code == 200


def test_packed_messages_are_not_unpacked(server: Server) -> None:
    with grpc.insecure_channel(address(server)) as channel, pytest.raises(grpc.RpcError) as told:
        channel.unary_unary(INFER)(bytes(150_000), timeout=30, compression=grpc.Compression.Gzip)
    assert told.value.code().name == "UNIMPLEMENTED"


def test_calls_are_counted(server: Server) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=30)
    text = server.client.get("/metrics").text
    assert re.search(r'requests_total\{route="grpc_ServerLive",status="200"\} [1-9]', text)


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    options = ("--grpc-port", "0", "--token-file", str(tmp_path / "token"))
    folder = make_bundle(tmp_path / "bundle")
    with serving(folder, *options) as server, grpc.insecure_channel(address(server)) as channel:
        channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=30)
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        with pytest.raises(grpc.RpcError) as told:
            ask(wire.data(1, "colours"), timeout=30)
        assert told.value.code().name == "UNAUTHENTICATED"
        assert (
            ask(wire.data(1, "colours"), timeout=30, metadata=[("authorization", f"Bearer {TOKEN}")])
            == b"\x08\x01"
        )


def test_a_stop_answers_what_is_in_flight(tmp_path: Path) -> None:
    with serving(make_bundle(tmp_path / "bundle"), "--grpc-port", "0", "--limit-body", "20000000") as server:
        picture = np.zeros((1, 1500, 1500, 3), np.uint8)
        sent = wire.data(1, "colours") + tensor(list(picture.shape)) + wire.data(7, picture.tobytes())
        codes: list[str] = []

        def ask(channel: grpc.Channel) -> None:
            try:
                channel.unary_unary(INFER)(sent, timeout=60)
                codes.append("OK")
            except grpc.RpcError as e:
                codes.append(e.code().name)

        with grpc.insecure_channel(address(server)) as channel:
            ask(channel)
            clients = [threading.Thread(target=ask, args=(channel,)) for _ in range(4)]
            for client in clients:
                client.start()
            server.process.send_signal(signal.SIGTERM)
            for client in clients:
                client.join()
        assert server.process.wait(60) == 0
        # Too late for the listener, or sent but not taken up yet: grpc itself ends those as CANCELLED.
        assert set(codes) <= {"OK", "UNAVAILABLE", "CANCELLED"}
        assert codes[0] == "OK"


def test_a_port_that_is_no_port(tmp_path: Path) -> None:
    code, told = refused(make_bundle(tmp_path / "bundle"), "--grpc-port", "99999")
    assert code == 2
    assert "--grpc-port" in told


@pytest.mark.parametrize("values", [[], [0], [1, 127, 128, 300, -1, 2**62, -(2**63)]])
def test_numbers_come_back(values: list[int]) -> None:
    ((number, content),) = wire.fields(memoryview(wire.numbers(3, values)))
    assert (number, list(wire.numbers_of(content))) == (3, values)


@pytest.mark.parametrize("read", [lambda m: list(wire.fields(m)), lambda m: list(wire.numbers_of(m))])
def test_fields_without_end_are_refused(read: Callable[[memoryview], object]) -> None:
    with pytest.raises(RefusedError, match="more than 10000 fields"):
        read(memoryview(b"\x28\x00" * 10_001))


@pytest.mark.parametrize("message", [b"\x80", b"\x0b", b"\x0a\x05abc", b"\x08" + b"\x80" * 11, b"\x0d\x00"])
def test_what_is_no_message_is_told(message: bytes) -> None:
    with pytest.raises(RefusedError, match="no protobuf"):
        list(wire.fields(memoryview(message)))
