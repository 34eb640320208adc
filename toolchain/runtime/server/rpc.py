"""Open Inference Protocol v2 over gRPC, beside the HTTP server, by the same engine: the extra `grpc` (grpcio).

Messages are read and written without generated code (`wire.py`), so that no version of protobuf is asked for.
https://github.com/kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto.
"""

from __future__ import annotations

import hmac
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolchain.runtime.errors import HostError, ModelError, ToolchainError
from toolchain.runtime.manifest import Port
from toolchain.runtime.server import protocol, wire
from toolchain.runtime.server.engine import Engine, Loaded
from toolchain.runtime.server.metrics import Metrics
from toolchain.runtime.server.refusals import RefusedError, busy
from toolchain.runtime.server.settings import Settings

try:
    import grpc
except ModuleNotFoundError as error:
    raise ToolchainError("--grpc-port needs grpcio: pip install grpcio") from error

_SERVICE = "inference.GRPCInferenceService"
_OPEN = frozenset({"ServerLive", "ServerReady"})
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED, 404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED, 500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}  # fmt: skip
_NO_COMPRESSION = 1  # grpc unpacks without a cap


@dataclass
class _Infer:
    """A ModelInferRequest as far as it is used."""

    model: str = ""
    version: str = ""
    id: str = ""
    inputs: list[memoryview] = field(default_factory=list)
    outputs: list[memoryview] = field(default_factory=list)
    raw: list[memoryview] = field(default_factory=list)


class Rpc:
    """The service; `start` and `stop` it in the event loop that the engine's work is awaited in."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics, version: str) -> None:
        self._engine, self._settings, self._metrics, self._version = engine, settings, metrics, version
        limits = settings.limits
        # grpc reads whole messages before anybody is asked, so their number is what bounds the memory.
        most = min(engine.workers + limits.queue, max(engine.workers, limits.buffered // limits.body))
        options = {
            "grpc.max_receive_message_length": limits.body,
            "grpc.compression_enabled_algorithms_bitset": _NO_COMPRESSION,
            "grpc.max_connection_idle_ms": int(1000 * limits.idle_seconds),
            "grpc.so_reuseport": 0,
        }
        self._server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=most)
        calls = {
            "ServerLive": self._live, "ServerReady": self._ready, "ServerMetadata": self._about,
            "ModelReady": self._model_ready, "ModelMetadata": self._model, "ModelInfer": self._infer,
        }  # fmt: skip
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._guarded(name, work))
            for name, work in calls.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))

    async def start(self) -> int:
        """Listen; returns the port. Raises HostError when the address cannot be listened on."""
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            if settings.certificate is None or settings.key is None:
                port = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
            else:
                pair = (settings.key.read_bytes(), settings.certificate.read_bytes())
                port = self._server.add_secure_port(
                    f"{host}:{settings.grpc_port}", grpc.ssl_server_credentials([pair])
                )
        except (RuntimeError, OSError) as e:
            raise HostError(
                f"cannot listen on {settings.host} port {settings.grpc_port} for gRPC; choose another --grpc-port"
            ) from e
        await self._server.start()
        return int(port)

    async def stop(self) -> None:
        """Answer the calls that were taken up, within the limit for draining; grpc ends the others as CANCELLED."""
        await self._server.stop(self._settings.limits.drain_seconds)

    def _guarded(
        self, name: str, work: Callable[[memoryview], Awaitable[bytes]]
    ) -> Callable[..., Awaitable[bytes]]:
        """The call with its token checked, counted, and refusals told as grpc's status."""

        async def call(request: bytes, context: Any) -> bytes:
            start, status, sentence, reply = time.perf_counter(), 200, "", b""
            try:
                if name not in _OPEN:
                    self._check_token(context)
                reply = await work(memoryview(request))
            except RefusedError as e:
                status, sentence = e.status, e.sentence
            except ToolchainError as e:  # of the bundle, not of the request
                print(f"Error: {e}", file=sys.stderr, flush=True)
                status, sentence = 500, "the server failed; its log says why"
            self._metrics.answered(f"grpc_{name}", status, time.perf_counter() - start)
            if status != 200:
                await context.abort(_CODES[status], sentence)
            return reply

        return call

    def _check_token(self, context: Any) -> None:
        given = dict(context.invocation_metadata()).get("authorization", "")
        token = self._settings.token
        if token is not None and not hmac.compare_digest(str(given).encode(), f"Bearer {token}".encode()):
            raise RefusedError(401, "this server wants the metadata 'authorization: Bearer TOKEN'")

    async def _live(self, request: memoryview) -> bytes:
        return wire.flag(1, True)

    async def _ready(self, request: memoryview) -> bytes:
        return wire.flag(1, not self._engine.draining)

    async def _about(self, request: memoryview) -> bytes:
        return wire.data(1, "toolchain") + wire.data(2, self._version)

    async def _model_ready(self, request: memoryview) -> bytes:
        self._named(request)
        return wire.flag(1, not self._engine.draining)

    async def _model(self, request: memoryview) -> bytes:
        served = self._named(request)
        declared = served.bundle.manifest
        names = wire.data(1, served.name) + wire.data(2, served.version) + wire.data(3, "onnxruntime_onnx")
        return names + wire.data(4, _port(declared.input)) + wire.data(5, _port(declared.output))

    def _named(self, request: memoryview) -> Loaded:
        """The bundle, where the message names it: {1: name, 2: version}."""
        given = {number: wire.text_of(value) for number, value in wire.fields(request) if number in (1, 2)}
        served = self._engine.current
        served.check(given.get(1, ""), given.get(2) or None)
        return served

    async def _infer(self, request: memoryview) -> bytes:
        asked, served = _read(request), self._engine.current
        served.check(asked.model, asked.version or None)
        try:
            return await self._engine.do(lambda: self._answer(asked, served))
        except ModelError as e:
            raise RefusedError(400, "the model cannot answer for an input of this shape") from e
        except MemoryError as e:
            raise busy("this request needs more memory than there is now") from e

    def _answer(self, asked: _Infer, served: Loaded) -> bytes:
        declared = served.bundle.manifest
        if len(asked.inputs) != 1 or len(asked.raw) != 1:
            raise RefusedError(
                400, f"one input, {declared.input.name!r}, and its bytes in 'raw_input_contents' are needed"
            )
        if (
            any(name != declared.output.name for name in map(_name_of, asked.outputs))
            or len(asked.outputs) > 1
        ):
            raise RefusedError(400, f"the only output is {declared.output.name!r}")
        given = _tensor(asked.inputs[0]) | {"parameters": {"binary_data_size": len(asked.raw[0])}}
        array = protocol.tensor(given, asked.raw[0], declared, self._settings.limits)
        if array.ndim == 4:
            served.require_shape(array.shape[1], array.shape[2], self._settings.limits.pixels)
        with self._engine.room.take(protocol.pixels(array)):
            output = served.session.run({declared.input.name: array})[0]
        head = wire.data(1, served.name) + wire.data(2, served.version)
        about = wire.data(1, declared.output.name) + wire.data(2, protocol.datatype(declared.output))
        about += wire.numbers(3, output.shape)
        content = np.ascontiguousarray(output).tobytes()
        return head + wire.data(3, asked.id) + wire.data(5, about) + wire.data(6, content)


def _read(request: memoryview) -> _Infer:
    found = _Infer()
    for number, value in wire.fields(request):
        if number == 1:
            found.model = wire.text_of(value)
        elif number == 2:
            found.version = wire.text_of(value)
        elif number == 3:
            found.id = wire.text_of(value)
        elif number in (5, 6, 7):
            {5: found.inputs, 6: found.outputs, 7: found.raw}[number].append(wire.bytes_of(value))
    return found


def _tensor(message: memoryview) -> dict[str, Any]:
    """An InferInputTensor as the JSON object that it is over HTTP."""
    found: dict[str, Any] = {"name": "", "datatype": "", "shape": []}
    for number, value in wire.fields(message):
        if number in (1, 2):
            found["name" if number == 1 else "datatype"] = wire.text_of(value)
        elif number == 3:
            found["shape"] += wire.numbers_of(value)
    return found


def _name_of(message: memoryview) -> str:
    return next((wire.text_of(value) for number, value in wire.fields(message) if number == 1), "")


def _port(port: Port) -> bytes:
    """A TensorMetadata."""
    return (
        wire.data(1, port.name)
        + wire.data(2, protocol.datatype(port))
        + wire.numbers(3, protocol.shape(port))
    )
